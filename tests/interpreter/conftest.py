"""Warnings that are the interpreter's own affair."""

from __future__ import annotations

import warnings

import pytest


@pytest.fixture(autouse=True)
def interpreter_warnings() -> None:
    # It turns arrays of one element into loop bounds, and computes both sides of `where`.
    warnings.filterwarnings("ignore", message="Conversion of an array with ndim > 0", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=RuntimeWarning)
