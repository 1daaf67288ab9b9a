"""What runs on a GPU, written in Triton: kernels, the code that launches them, and the tiles they are launched with.

Nothing here is imported before it is asked for, since Triton is optional; what runs anywhere lives one level up.
"""
