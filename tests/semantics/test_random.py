"""Random well-typed patterns: the expanded pattern says of every pair what an interpreter of the text says."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from spdsl.grammar.parse import parse
from spdsl.semantics.bind import bind
from spdsl.semantics.check import check
from spdsl.semantics.expand import expand
from spdsl.semantics.nodes import Coord, Param
from spdsl.semantics.rewrite import walk
from tests.semantics.evaluate import Place, value
from tests.semantics.interpret import kept
from tests.semantics.strategies import patterns, tables

HEADS = 2
SETTINGS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


def agree(text: str, n: int) -> None:
    program = parse(text, "random.spat")
    checked = check(program)
    again = check(parse(checked.text, "again.spat"))
    assert (again.attend, again.axes, again.grids) == (checked.attend, checked.axes, checked.grids)
    bound = bind(checked, {}, heads=HEADS, groups=1, head_dim=64)
    keep = expand(bound, bound.attend.keep)
    assert not any(isinstance(node, (Coord, Param)) for node in walk(keep, into_stages=False))
    arrays = tables(n, HEADS) if "input" in text else {}
    for h in range(HEADS):
        for q in range(n):
            for k in range(n):
                place = Place(pattern=bound, n=n, q=q, k=k, h=h, tables=arrays)
                expected = kept(program, q=q, k=k, n=n, h=h, heads=HEADS, tables=arrays)
                assert bool(value(keep, place)) == expected, (h, q, k)


@SETTINGS
@given(patterns(affine=True), st.integers(1, 6))
def test_affine(text: str, n: int) -> None:
    agree(text, n)


@SETTINGS
@given(patterns(affine=False), st.integers(1, 6))
def test_any(text: str, n: int) -> None:
    agree(text, n)


@settings(SETTINGS, max_examples=25)
@given(patterns(affine=False, depth=2, reductions=True), st.integers(1, 6))
def test_reductions(text: str, n: int) -> None:
    agree(text, n)
