"""Searches by sweeps over all keys, in Triton's interpreter: they choose what searches that read keys one by one do.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.runtime import among, graphs, inputs, sweeps
from spdsl.semantics.graph import Select
from spdsl.semantics.nodes import BoundPattern
from tests.interpreter.test_chains import dense
from tests.interpreter.test_searches import whole

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

SEARCH = {
    "rows": 8, "chunk": (32, 8, 4), "budget": (32, 16, 8), "every": 2, "sinks": 3, "window": 9,
}  # fmt: skip


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were swept in each call."""
    rows: list[int] = []

    def count(run: object) -> dict[str, Tensor] | None:
        found = sweeps.swept_lists(run)  # type: ignore[arg-type]
        rows.append(0 if found is None else next(iter(found.values())).shape[2])
        return found

    monkeypatch.setattr(among, "swept_lists", count)
    return rows


def last_lists(pattern: BoundPattern, q: Tensor, k: Tensor, *, kernels: bool) -> Tensor:
    """The lists of a pattern's last selection, of queries that are the last tokens."""
    call = graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=k.shape[2] - q.shape[2], kernels=kernels)
    arrays = inputs.arrays_of(pattern, call, grad=False)
    assert pattern.graph is not None
    *_, last = (stage.name for stage in pattern.graph.stages if isinstance(stage, Select))
    return graphs.lists(arrays, last)


def compared(parameters: Mapping[str, object], heads: int, groups: int, nq: int, n: int) -> int:
    """Compare the lists of hip on small whole numbers, which have ties, and say how many entries they have."""
    pattern = spdsl.compile("hip", **parameters).bind(heads, groups, 16)  # type: ignore[arg-type]
    q, k = whole(1, heads, nq, 16).half(), whole(1, groups, n, 16, seed=1).half()
    k[0, 0, 16:18] = float("nan")
    found, wanted = (dense(last_lists(pattern, q, k, kernels=way), n) for way in (True, False))
    assert torch.equal(found, wanted.expand_as(found))
    return int(found.sum())


@pytest.mark.parametrize(
    ("heads", "groups", "nq", "n", "changed"),
    [
        pytest.param(4, 2, 67, 67, {}, id="a ragged end that nobody meets"),
        pytest.param(6, 2, 20, 67, {"chunk": (16, 4, 2), "every": 1, "rows": 12}, id="three heads of a group"),
    ],
)
def test_a_sweep_chooses_what_searches_do(
    heads: int, groups: int, nq: int, n: int, changed: dict[str, object], swept: list[int]
) -> None:
    """Ties, rows that see part of a block, numbers that are none, and queries that begin later."""
    assert compared({**SEARCH, **changed}, heads, groups, nq, n) > 50
    assert swept == [-(-n // int({**SEARCH, **changed}["rows"]))]  # type: ignore[call-overload]


def test_rows_that_meet_the_ragged_end_are_searched(monkeypatch: pytest.MonkeyPatch, swept: list[int]) -> None:
    """Of three blocks of 32 keys the last has 5, which the last rows meet; some rows at a time."""
    monkeypatch.setattr(sweeps, "BLOCKS", 1 << 10)
    assert compared({**SEARCH, "window": 1}, 1, 1, 69, 69) > 10
    assert swept == [8]


@pytest.mark.slow
def test_long_rows_are_searched(monkeypatch: pytest.MonkeyPatch, swept: list[int]) -> None:
    """Where the matrix unit is no faster than memory all rows are searched that meet more than a block."""
    monkeypatch.setattr(sweeps, "BALANCE", 0)
    assert compared(SEARCH, 1, 1, 96, 96) > 20
    assert swept[0] == 5
