"""Counts of boxes and pairs on grids, from products over the axes, against masks."""

from __future__ import annotations

from math import prod

import pytest
import torch

import spdsl
from spdsl.explain import explain

WINDOWS = torch.tensor([[1, 3, 1], [3, 1, 3]], dtype=torch.int32)

CASES: dict[str, tuple[str, dict[str, object], int, dict[str, torch.Tensor]]] = {
    "image": ("neighborhood_2d", {"extents": (60, 65), "window": (7, 5)}, 0, {}),
    "dilated": ("neighborhood_2d", {"extents": (64, 64), "window": (5, 5), "dilation": (4, 4)}, 0, {}),
    "video": ("neighborhood_3d", {"extents": (10, 16, 24), "window": (5, 5, 5)}, 0, {}),
    "text": ("sliding_tile_3d", {"extents": (4, 32, 32), "tile": (2, 8, 8)}, 100, {"window": WINDOWS}),
    "no text": ("sliding_tile_3d", {"extents": (4, 32, 32), "tile": (2, 8, 8)}, 0, {"window": WINDOWS}),
}


@pytest.mark.parametrize("name", CASES)
def test_counts(name: str) -> None:
    pattern, parameters, more, tables = CASES[name]
    n = prod(parameters["extents"]) + more  # type: ignore[call-overload]
    attn = spdsl.compile(pattern, **parameters)  # type: ignore[arg-type]
    q = torch.empty(3, 2, n, 16, dtype=torch.bfloat16)
    report = explain(attn._key, q, q, q, tables, "sm_90")
    mask = spdsl.load(pattern).mask(n, n, heads=2, **parameters, **tables)
    assert report.pairs == 3 * int(mask.sum()) * (2 if mask.shape[0] == 1 else 1)
    for kernel in report.kernels:
        assert "boxes" in kernel.walk[0]
        assert report.pairs <= kernel.touched * kernel.block_q * kernel.block_k
        assert kernel.full * kernel.block_q * kernel.block_k <= report.pairs
        assert kernel.touched % 3 == 0
