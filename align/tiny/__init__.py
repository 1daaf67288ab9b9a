"""The toy world, small enough for a laptop: a tiny Falcon, what it learns, and how it is judged.

Everything here follows from one seed. Nothing outside this folder may depend on the toy world's texts.
"""
