"""What measures the project as a whole, and the records of what was measured: one JSON file a run.

Nothing else imports from here, and what looks at the kernels alone lives in kernels/tools/.
"""
