"""Rows of residue classes as the copy engine reads them: the views, and where a row's numbers lie."""

from __future__ import annotations

import pytest
import torch

from spdsl.codegen.blocks import Argument, Kernel
from spdsl.runtime.starter import Described
from spdsl.runtime.triton_engine import _by_class, _whole

KERNEL = Kernel(name="forward", doc="", arguments=(), constants=(), body=(), fetch=(), block=64, warps=4, stages=2)


@pytest.mark.parametrize(("rows", "classes"), [(64, 4), (65, 4), (1, 4), (333, 3), (100, 1), (101, 1), (1000, 7)])
def test_numbers_of_a_class_lie_together(rows: int, classes: int) -> None:
    """At the place that kernels compute: ``(head * classes + class) * length`` and the row's place in its class."""
    given = torch.arange(2 * 3 * rows, dtype=torch.float32).reshape(2, 3, rows)
    flat = _by_class(given, classes).reshape(-1)
    length = (rows + 4 * classes - 1) // (4 * classes) * 4
    assert flat.numel() == 6 * classes * length
    for head in range(6):
        for row in {0, rows // 2, rows - 1}:
            at = (head * classes + row % classes) * length + row // classes
            assert flat[at] == given.reshape(6, rows)[head, row]


@pytest.mark.parametrize(("rows", "classes"), [(64, 4), (65, 4), (333, 3)])
def test_views_hold_the_rows_of_each_class(rows: int, classes: int) -> None:
    given = torch.randn(2, 3, rows, 64).bfloat16()
    argument = Argument(name="K", type="*bf16", block=(1, 1, 64, 1, 64), classes=classes)
    view = Described.of(argument, KERNEL)(given).base
    assert view.shape == (2, 3, -(-rows // classes), classes, 64)
    assert (view.data_ptr() == given.data_ptr()) == (rows % classes == 0)
    for row in range(rows):
        assert torch.equal(view[:, :, row // classes, row % classes], given[:, :, row])
    assert _whole(given, classes) == (2, 3, view.shape[2] * classes, 64)
    assert not view.flatten(2, 3)[:, :, rows:].any()
