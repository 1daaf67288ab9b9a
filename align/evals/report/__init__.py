"""The report: results.json as one HTML page, as Markdown, and as a table for the terminal.

Only what results.json and the runs' metrics.jsonl hold is shown; nothing here computes a score.
"""
