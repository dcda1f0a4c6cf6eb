"""Sums over members that are written out: which are, and what then is read."""

from __future__ import annotations

import spdsl
from spdsl.pipeline import bound
from spdsl.semantics.free_sums import MOST, written_out
from spdsl.semantics.graph import Pool, StageGraph, loads


def graph() -> StageGraph:
    found = bound(spdsl.compile("superlinear", picks=2)._key, 2, 1, 16).graph
    assert found is not None
    return found


def sums(given: StageGraph, names: frozenset[str]) -> list[str]:
    """Those of some stages that are sums over members."""
    return [
        stage.name
        for stage in given.stages
        if isinstance(stage, Pool) and stage.kind == "sum" and stage.over == "a" and stage.name in names
    ]


def test_members_are_read_one_by_one() -> None:
    given = graph()
    assert sums(given, loads(given.result))
    read = loads(written_out(given.result, {stage.name: stage for stage in given.stages}, lambda _: 2))
    assert not sums(given, read)
    assert given.attentions[0].name in read


def test_many_members_are_left_as_they_are() -> None:
    given = graph()
    stages = {stage.name: stage for stage in given.stages}
    for size in (0, MOST + 1):
        assert written_out(given.result, stages, {"a": size}.__getitem__) == given.result
