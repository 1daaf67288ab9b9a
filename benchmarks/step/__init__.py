"""`make bench-step`: a training step of this project beside TRL's, on the same work in one run."""
