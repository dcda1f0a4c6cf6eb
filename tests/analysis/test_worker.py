"""The worker gives the same relations, and its end costs nothing but a closed form."""

from __future__ import annotations

import os
import signal

import pytest

from spdsl.analysis import worker
from spdsl.analysis.relation import tile_relation
from spdsl.analysis.residues import residues_of
from spdsl.analysis.tiles import ListWalk, SlotWalk
from tests.runtime.build import K, Q, op

CAUSAL = op("le", K, Q)


def ask(block: int) -> dict[str, object]:
    return {"block_q": block, "block_k": 64, "shape": "square", "heads": 1, "groups": 1}


def test_the_same_relation() -> None:
    assert worker.derive(CAUSAL, **ask(64)) == tile_relation(CAUSAL, **ask(64))  # type: ignore[arg-type]


def test_the_same_residues() -> None:
    keep = op("and", CAUSAL, op("eq", op("mod", op("sub", Q, K), 4), 1))
    found = worker.find_residues(keep, shape="square", heads=1, groups=1)
    assert found is not None
    assert found == residues_of(keep, shape="square", heads=1, groups=1)
    assert (found.modulus, found.shift, found.keep) == (4, 1, CAUSAL)


def test_a_child_that_ends_is_replaced() -> None:
    worker.derive(CAUSAL, **ask(16))  # type: ignore[arg-type]
    child = worker._worker()
    assert child is not None
    child.process.kill()
    child.process.wait()
    lost = worker.derive(CAUSAL, **ask(32))  # type: ignore[arg-type]
    assert isinstance(lost.by_query, ListWalk)
    assert "broke off" in lost.by_query.reason
    found = worker.derive(CAUSAL, **ask(48))  # type: ignore[arg-type]
    assert isinstance(found.by_query, SlotWalk)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs a signal that stops a process")
def test_a_child_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    worker.derive(CAUSAL, **ask(80))  # type: ignore[arg-type]
    child = worker._worker()
    assert child is not None
    os.kill(child.process.pid, signal.SIGSTOP)
    monkeypatch.setattr(worker, "SECONDS", 0.2)
    lost = worker.derive(CAUSAL, **ask(96))  # type: ignore[arg-type]
    assert isinstance(lost.by_query, ListWalk)
    assert "too long" in lost.by_query.reason
    assert child.process.returncode is not None
