"""Evaluation: suites of benchmarks, a model's responses to them, and the store of results so far.

What reads published rows lives in formats/, what turns records into numbers in scoring/, what shows them in report/.
Nothing here trains, and a judge that needs no suite lives in align/judges/.
"""
