"""What looks at the kernels, each `python -m kernels.tools.NAME`: benches, the compiler's output, models of hardware.

No kernel and no model imports anything from here.
"""
