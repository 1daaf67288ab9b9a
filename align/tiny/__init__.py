"""A make-believe world, small enough for a laptop: a tiny Falcon, what it learns, and how it is judged."""
