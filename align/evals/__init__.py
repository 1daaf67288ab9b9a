"""Evaluation: suites of benchmarks, what a model answers to them, scores, and the report."""
