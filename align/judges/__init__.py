"""What says whether an answer is safe, right or a refusal."""

from align.judges.refusal import is_refusal

__all__ = ["is_refusal"]
