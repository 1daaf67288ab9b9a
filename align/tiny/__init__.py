"""The toy world, a make-believe one that is small enough for a laptop: a tiny Falcon, what it learns, and how it is judged.

Everything here is made of one seed. Nothing outside it may depend on what the toy world says.
"""
