"""Kernels in Triton's interpreter touch the memory of their arguments alone: every address of a load, a store and an
atomic operation is looked up.

With ``SPDSL_BOUNDS=1`` all tests of the interpreter are run so; they take about a quarter longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

Memory = tuple[NDArray[np.uint64], NDArray[np.uint64]]
"""Where parts of memory begin and end, ascending."""


def checked(patch: pytest.MonkeyPatch) -> None:
    """Until ``patch`` is undone, an address elsewhere fails the launch."""
    own: dict[str, Memory] = {}
    arguments = interpreter.GridExecutor._init_args_hst

    def remembered(self: Any, given: Any, named: Any) -> Any:
        on_host = arguments(self, given, named)
        positions, rest = on_host
        parts = sorted(_memory([*positions, *rest.values()]))
        begin, end = (np.array([part[which] for part in parts], dtype=np.uint64) for which in (0, 1))
        own["memory"] = begin, np.maximum.accumulate(end) if len(end) else end
        return on_host

    patch.setattr(interpreter.GridExecutor, "_init_args_hst", remembered)
    for name, at in (("create_masked_load", 0), ("create_masked_store", 0), ("create_atomic_rmw", 1)):
        patch.setattr(interpreter.InterpreterBuilder, name, _checking(name, at, own))


def _checking(name: str, at: int, own: dict[str, Memory]) -> Any:
    """The operation of this name, whose addresses are its argument ``at``, with a look at them first."""
    operation = getattr(interpreter.InterpreterBuilder, name)

    def looked_at(self: Any, *given: Any, **named: Any) -> Any:
        mask = given[{"create_masked_load": 1, "create_masked_store": 2, "create_atomic_rmw": 3}[name]]
        _look(name, given[at], mask, own["memory"])
        return operation(self, *given, **named)

    return looked_at


def _look(name: str, pointers: Any, mask: Any, memory: Memory) -> None:
    each, there = np.broadcast_arrays(pointers.data, mask.data)
    addresses = each[there.astype(bool)].astype(np.uint64)
    begin, end = memory
    if not len(addresses):
        return
    part = np.searchsorted(begin, addresses, side="right").astype(np.int64) - 1
    size = np.uint64(max(1, pointers.get_element_ty().primitive_bitwidth // 8))
    outside = (part < 0) | (addresses + size > end[np.maximum(part, 0)])
    assert not outside.any(), f"{name}: {outside.sum()} of {len(outside)} addresses are outside of all arguments"


def _memory(given: Any) -> Iterator[tuple[int, int]]:
    match given:
        case Tensor():
            storage = given.untyped_storage()
            yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        case TensorDescriptor():
            yield from _memory(given.base)
        case list() | tuple():
            for each in given:
                yield from _memory(each)
        case _:
            pass
