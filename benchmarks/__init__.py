"""Benchmarks of the whole project, and their records: one JSON file per run.

Nothing else imports from here. What examines only the kernels lives in kernels/tools/.
"""
