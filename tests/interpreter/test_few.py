"""Few queries on a cache of keys, in Triton's interpreter, against the float64 reference: heads of a group in one tile,
rows in parts.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.runtime import launch, split
from tests.library.cases import CASES, Case, Sizes
from tests.library.compare import TOLERANCE, check, poisoned, relative_error, sizes_for

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

Splits = list[split.Split]


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> Splits:
    """How rows are cut, told; rows of two tiles are cut too."""
    found: Splits = []

    def told(*given):  # type: ignore[no-untyped-def]
        found.append(split.split_of(*given))
        return found[-1]

    monkeypatch.setattr(split, "FEW_TURNS", 1)
    monkeypatch.setattr(split, "INTERPRETER", 32)
    monkeypatch.setattr(launch, "split_of", told)
    return found


def forward(case: Case, shape: Sizes, *, d: int = 16, dtype: torch.dtype = torch.float32, **places: object) -> None:
    """Output and LSE of a call are those of the reference."""
    sizes = sizes_for(case, shape)
    generator = torch.Generator().manual_seed(0)
    inputs = case.inputs(sizes, generator)
    shapes = ((sizes.heads, sizes.nq, d), (sizes.groups, sizes.n, d), (sizes.groups, sizes.n, 24))
    q, k, v = (torch.randn(sizes.batch, *each, generator=generator).to(dtype) for each in shapes)
    attn = spdsl.compile(case.name, backend="triton", **case.parameters)
    with poisoned():
        out, lse = attn(q, k, v, return_lse=True, **places, **inputs)
    expected, expected_lse = attn.reference(q, k, v, return_lse=True, **places, **inputs)
    assert relative_error(out, expected) <= TOLERANCE[dtype]
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-3, rtol=1e-4)


OFTEN = (
    "full",
    "streaming",
    "documents",
    "dilated",
    "strided",
    "longformer",
    "power",
    "alibi",
    "head_modes",
    "softcap",
)
"""Patterns that CI runs; the others are slow."""


def marked(case: Case) -> object:
    return pytest.param(case, id=case.id, marks=() if case.name in OFTEN else pytest.mark.slow)


@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_library(case: Case, splits: Splits) -> None:
    forward(case, Sizes(batch=2, heads=6, groups=2, nq=2, n=171))
    assert any(each.parts > 1 for each in splits)
    assert all(not each.others for each in splits)


@pytest.mark.parametrize(("heads", "groups", "nq"), [(4, 4, 1), (8, 1, 1), (8, 1, 7), (3, 1, 16), (2, 2, 64)])
def test_groups(heads: int, groups: int, nq: int, splits: Splits) -> None:
    shape = Sizes(batch=1, heads=heads, groups=groups, nq=nq, n=200)
    forward(Case(name="streaming", parameters={"window": 60, "sinks": 4}), shape)
    forward(next(case for case in CASES if case.name == "alibi"), shape)
    assert {each.others for each in splits} == {0}


@pytest.mark.parametrize("name", ["streaming", "documents", "power", "dilated", "head_modes", "prefix_lm"])
def test_places_of_each_sequence(name: str, splits: Splits) -> None:
    case = next(case for case in CASES if case.name == name)
    places = {
        "q_start": torch.tensor([88, 169, -1], dtype=torch.int32),
        "k_start": torch.tensor([3, 0, 10], dtype=torch.int32),
        "k_len": torch.tensor([90, 171, 60], dtype=torch.int32),
    }
    forward(case, Sizes(batch=3, heads=6, groups=2, nq=2, n=171), **places)
    assert any(each.parts > 1 for each in splits)


def test_types() -> None:
    case = Case(name="streaming", parameters={"window": 60, "sinks": 4})
    forward(case, Sizes(batch=1, heads=4, groups=1, nq=1, n=300), d=40, dtype=torch.float16)


def test_gradients() -> None:
    case = Case(name="streaming", parameters={"window": 60, "sinks": 4})
    shape = Sizes(batch=1, heads=4, groups=2, nq=3, n=150)
    check(case, shape, d=16, dv=16, dtype=torch.float32, backend="triton")


def test_bitwise_the_same_in_every_run(splits: Splits) -> None:
    attn = spdsl.compile("causal", backend="triton")
    q, k, v = (torch.randn(1, heads, rows, 16) for heads, rows in ((4, 1), (2, 500), (2, 500)))
    runs: list[Tensor] = []
    for _ in range(2):
        with poisoned():
            runs.append(attn(q, k, v))
    assert splits[0].parts > 4
    assert torch.equal(*runs)
