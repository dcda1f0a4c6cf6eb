"""Inputs that say what tokens are, known by their content."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.runtime import recent, settled

TEXT = """pattern pieces() {
  input piece: int[token] sorted
  axis pc = token by piece
  let chosen = score(mean(Q, per = q.pc), mean(K, per = k.pc)) |> top(2)
  keep chosen
}
"""


def test_what_a_graph_reads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many other contents are seen after its capture."""
    monkeypatch.setattr(recent, "counts", lambda tensor: True)  # as on a GPU
    pattern = spdsl.compile(spdsl.loads(TEXT)).bind(2, 1, 16)

    def seen(piece: Tensor) -> weakref.ref[settled.Settled]:
        found = settled.settled(pattern, {"piece": piece})
        assert found is not None
        return weakref.ref(found)

    some = [torch.arange(9).int() // size for size in range(1, 80)]
    captured, other = (seen(piece) for piece in some[:2])
    with monkeypatch.context() as here:
        here.setattr(settled, "captured", lambda tensor: True)
        assert seen(some[0])() is captured()
        assert settled.settled(pattern, {"piece": torch.arange(9).int()}) is None
    others = [torch.full((9,), number).int() for number in range(70)]
    for piece in others:
        seen(piece)
    gc.collect()
    assert captured() is not None
    assert other() is None
