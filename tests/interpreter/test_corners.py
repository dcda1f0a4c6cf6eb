"""The odd corners of the language in Triton's interpreter, forward and backward."""

from __future__ import annotations

import os

import pytest

from tests.semantics.corner import Corner
from tests.semantics.corners import CORNERS
from tests.semantics.test_corners import compare

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


@pytest.mark.parametrize("case", CORNERS, ids=lambda case: case.name)
def test_corners(case: Corner) -> None:
    compare(case, backend="triton")
