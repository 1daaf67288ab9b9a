"""Aligning language models with preference optimisation, in plain PyTorch."""
