"""Unions of sets of the same blocks become one set of their own; others stay as they are."""

from __future__ import annotations

import pytest

import spdsl
from spdsl.semantics.graph import Attention, Mark
from spdsl.semantics.joined_sets import parts_of
from spdsl.semantics.nodes import BoundPattern
from spdsl.semantics.rewrite import conjuncts, disjuncts
from spdsl.semantics.show import stage_text

TEXT = """pattern some() {{
  axis blk = token by 8
  axis half = token by 4
  input trusted: bool[h]
  let own = sum(sum(score(Q, K), over = q), over = k) > 0.0
  let near = score(Q, mean(K, per = k.blk)) |> max(per = q.blk) |> only(k.blk <= q.blk) |> top(2)
  let far = score(mean(Q, per = q.blk), mean(K, per = k.blk)) |> only(k.blk <= q.blk) |> top(1)
  let fine = score(mean(Q, per = q.half), mean(K, per = k.half)) |> only(k.half <= q.half) |> top(1)
  let loose = norm(mean(unit(Q), per = q.blk)) < 0.4
  let wide = norm(mean(unit(K), per = k.blk)) < 0.4
  keep causal and ({keep})
}}
"""


def bound(keep: str) -> BoundPattern:
    return spdsl.compile(spdsl.loads(TEXT.format(keep=keep))).bind(4, 2, 16)


@pytest.mark.parametrize(
    ("keep", "joined", "left"),
    [
        ("near or far", True, 1),
        ("own and near or far", True, 1),
        ("near or far or q - k < 9", True, 2),
        ("near or fine or far", True, 2),
        ("near or fine", False, 2),
        ("near or q - k < 9", False, 2),
        ("near or trusted[h] and far", False, 2),  # an input: tables of a call are not looked at before
        ("near or far and k.blk > 2", False, 2),
        ("near or loose", True, 1),
        ("near or wide", True, 1),
        ("wide or near", True, 1),
        ("near or not loose", True, 1),
        ("fine or loose", False, 2),  # blocks of another size
        ("near or trusted[h] and loose", True, 1),
        ("loose or wide", False, 2),  # no set of pairs beside
        ("near or k.blk == 0", False, 2),  # walked in closed form
    ],
)
def test_sets_of_the_same_blocks_are_one(keep: str, joined: bool, left: int) -> None:
    pattern = bound(keep)
    assert pattern.graph is not None
    stages = {stage.name: stage for stage in pattern.graph.stages}
    marks = [stage for stage in stages.values() if isinstance(stage, Mark) and "_sets_" in stage.name]
    assert len(marks) == joined
    for mark in marks:
        assert mark.axes == ("h", "q.blk", "k.blk")
        assert len(parts_of(stages, mark.value)) == 2
        assert stage_text(mark).count(" or ") == 1
    (softmax,) = (stage for stage in stages.values() if isinstance(stage, Attention))
    assert list(stages).index(softmax.name) == len(stages) - 1
    *_, union = conjuncts(softmax.attend.keep)
    assert len(disjuncts(union)) == left
