"""Scoring: from records to verdicts, from verdicts to scores with intervals, and all of it as results.json.

Nothing here generates a response or draws a page.
"""
