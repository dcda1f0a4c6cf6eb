"""Zeros in memory of a GPU without torch, which takes longer to be asked than the device takes to fill it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def clear(address: int, bytes: int, stream: int) -> bool:
    """Have a stream fill memory with zeros; False where the driver does not, or is not there."""
    fill = _driver()
    return fill is not None and fill(address, 0, bytes, stream) == 0


@cache
def _driver() -> Callable[[int, int, int, int], int] | None:
    """The driver's `cuMemsetD8Async`."""
    try:
        function = ctypes.CDLL("libcuda.so.1").cuMemsetD8Async
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_uint64, ctypes.c_ubyte, ctypes.c_size_t, ctypes.c_void_p)
    function.restype = ctypes.c_int
    return function
