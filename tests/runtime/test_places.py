"""Where sequences stand, from ints and tensors in every combination."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from spdsl.arguments import place

BATCH, N, NQ = 3, 40, 5
Given = int | Tensor | None

STARTS: tuple[Given, ...] = (None, 4, torch.tensor([1, 2, 3]))
LENGTHS: tuple[Given, ...] = (None, 20, torch.tensor([7, 8, 9], dtype=torch.int32))
FIRSTS: tuple[Given, ...] = (None, 3, torch.tensor([0, 5, 6], dtype=torch.int16))


@pytest.mark.parametrize(("start", "length", "first"), list(product(STARTS, LENGTHS, FIRSTS))[1:])
def test_places(start: Given, length: Given, first: Given) -> None:
    q, k = torch.zeros(BATCH, 2, NQ, 8), torch.zeros(BATCH, 1, N, 8)
    if not any(isinstance(each, Tensor) for each in (start, length, first)):
        return
    for _ in range(2):
        _, _, found, shape, _ = place(q, k, k, first, start, length)
        assert found is not None
        rows = []
        for sequence in range(BATCH):
            at, size, query = (int(x[sequence]) if isinstance(x, Tensor) else x for x in (start, length, first))
            at = 0 if at is None else at
            size = N - at if size is None else size
            rows.append([size - NQ if query is None else query, at, size])
        assert found.tolist() == rows
        assert (found.dtype, found.is_contiguous(), shape) == (torch.int32, True, "batched")


def test_places_made_in_inference_mode_serve_outside_of_it() -> None:
    q = torch.zeros(2, 1, 63, 8, requires_grad=True)
    k = torch.zeros(2, 1, 70, 8)
    with torch.inference_mode():
        place(q, k, k, None, torch.tensor([1, 2]), None)
    places = place(q, k, k, None, torch.tensor([1, 2]), None)[2]
    assert places is not None
    assert not places.is_inference()
    assert places.tolist() == [[6, 1, 69], [5, 2, 68]]
