"""Judges: what says whether a response is safe, right or a refusal.

A judge is an object with a name that turns records into as many verdicts; suites, scores and reports live in align/evals/.
"""

from align.judges.refusal import is_refusal

__all__ = ["is_refusal"]
