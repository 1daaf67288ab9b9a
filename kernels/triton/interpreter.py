"""Lets the interpreter of Triton before 3.7 run with NumPy 2.4 and newer."""

import functools
from typing import Any

import triton


@functools.cache
def repair_interpreter() -> None:
    """Give an interpreted scalar an __index__ that NumPy accepts, as Triton 3.7 does.

    The interpreter keeps a scalar as an array of shape (1,), and Triton 3.6 takes int() of it, which NumPy 2.4 refuses.
    Nothing is done where kernels are compiled, nor from Triton 3.7 on.
    """
    if not triton.knobs.runtime.interpret or tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7):
        return
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor  # run at every launch, and undone after it by way of its scope

    def patch_tensor_and_index(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_tensor_and_index
