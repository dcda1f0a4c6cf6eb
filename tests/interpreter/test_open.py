"""Free parameters in Triton's interpreter: one file of kernels for all their values, against the reference."""

from __future__ import annotations

import os

import pytest

from tests.runtime.test_open import PATTERNS, check_values

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


@pytest.mark.parametrize("name", PATTERNS)
def test_values_that_change(name: str) -> None:
    check_values(PATTERNS[name], "triton", 4)
