"""Warnings that are the interpreter's own affair, and a look at every address where that is asked for."""

from __future__ import annotations

import os
import warnings

import pytest


@pytest.fixture(autouse=True)
def interpreter_warnings() -> None:
    # It turns arrays of one element into loop bounds, and computes both sides of `where`.
    warnings.filterwarnings("ignore", message="Conversion of an array with ndim > 0", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=RuntimeWarning)


@pytest.fixture(autouse=True)
def own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("SPDSL_BOUNDS") == "1":
        from tests.interpreter.bounds import checked

        checked(monkeypatch)
