"""Formats: the published forms of benchmark rows, and the items made of them.

A format turns a row into an item and knows nothing of models, judges or scores.
"""
