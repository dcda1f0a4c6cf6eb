"""Patterns that select by scores in Triton's interpreter, against the reference (run with ``TRITON_INTERPRET=1``)."""

from __future__ import annotations

import os

import pytest
import torch

from tests.library.cases import Case, Sizes
from tests.library.selections import SELECTIONS
from tests.library.test_selections import check

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


LONG = ("dma", "xattention")


@pytest.mark.parametrize(
    "case",
    [pytest.param(each, id=each.name, marks=pytest.mark.slow if each.name in LONG else ()) for each in SELECTIONS],
)
def test_pattern(case: Case) -> None:
    shape = Sizes(batch=2 if case.name == "moba" else 1, heads=4, groups=2, nq=case.n or 90, n=case.n or 90)
    check(case, shape, dtype=torch.float16, backend="triton")


@pytest.mark.parametrize("name", ["quest", "dma"])
def test_fewer_queries(name: str) -> None:
    case = next(case for case in SELECTIONS if case.name == name)
    check(case, Sizes(batch=1, heads=3, groups=3, nq=20, n=75), dtype=torch.float16, backend="triton")
