"""Selections of uneven runs of queries in Triton's interpreter (run with ``TRITON_INTERPRET=1``)."""

from __future__ import annotations

import os

import pytest

from tests.library.uneven import CASES, check

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

QUICK = ("later queries",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_uneven_runs(name: str) -> None:
    check(CASES[name])
