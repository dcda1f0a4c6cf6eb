"""What looks at addresses finds those that are outside.  Run with ``TRITON_INTERPRET=1``."""

from __future__ import annotations

import os

import pytest
import torch
import triton
import triton.language as tl

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


@triton.jit  # type: ignore[untyped-decorator]
def move(given, found, count, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, SIZE)
    tl.store(found + at, tl.load(given + at, mask=at < count), mask=at < count)


@pytest.mark.parametrize(("given", "found", "fits"), [(5, 5, True), (4, 5, False), (5, 4, False)])
def test_addresses(given: int, found: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.interpreter.bounds import checked

    checked(monkeypatch)
    tensors = torch.arange(given), torch.zeros(found, dtype=torch.int64)
    if fits:
        move[(1,)](*tensors, 5, SIZE=8)
        assert torch.equal(*tensors)
        return
    with pytest.raises(Exception, match="1 of 5 addresses are outside"):
        move[(1,)](*tensors, 5, SIZE=8)
