"""Aligning language models with preference optimisation, in plain PyTorch.

The modules directly in this folder are the training spine: what train.py calls, from configuration to checkpoint. Data,
models, losses, generation, judges, evaluation and the toy world live in the folders below.
"""
