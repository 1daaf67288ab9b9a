"""`make gpu`: one command that proves and measures everything here that a GPU runs; each module is a part of it.

A part is a separate process with a time limit, and writes rows as it gets them. Nothing here compares records.
"""
