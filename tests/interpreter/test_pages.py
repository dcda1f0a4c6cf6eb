"""Keys in pages, in Triton's interpreter, against the float64 reference.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os

import pytest
import torch

from tests.runtime.test_pages import PATTERNS, case, compare

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


@pytest.mark.parametrize("page", [16, *(pytest.param(each, marks=pytest.mark.slow) for each in (24, 64))])
@pytest.mark.parametrize("name", PATTERNS)
def test_few_queries(name: str, page: int) -> None:
    compare(case(name), page=page, nq=2, backend="triton", dtype=torch.float16)


def test_many_queries() -> None:
    compare(case("streaming"), page=32, nq=33, backend="triton")


def test_pages_of_whole_tiles() -> None:
    compare(case("streaming"), page=64, nq=2, backend="triton", dtype=torch.float16)
