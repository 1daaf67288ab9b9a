"""Aligning language models with preference optimisation, in plain PyTorch.

Flat in this folder lies the spine of training: what train.py calls, from configuration to checkpoint. What has a room of
its own may not lie here: data, models, losses, generation, judges, evaluation and the make-believe world.
"""
