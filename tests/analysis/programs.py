"""Random affine predicates: formulas over positions, lengths, heads and an input, at the scale of given tile sizes."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import strategies as st

from spdsl.semantics.nodes import Bounds, Const, Table, TableAxis
from tests.analysis.build import Term, apply, b, causal, h, load, maximum, minimum, n, parameter, q, where
from tests.analysis.build import k as key

HEADS = 8
WINDOW = Table(
    name="w",
    dtype="int",
    axes=(TableAxis(kind="b", size=Const(value=6), label="b"),),
    bounds=Bounds(low=0),
    sorted=False,
)
WIDTH, SHIFT = parameter("window", low=0), parameter("shift")
"""Free parameters, one of a declared range."""

SHAPES = st.sampled_from(["square", "offset"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The numbers that occur: constants, divisors of floors, divisors of remainders, windows, sinks, and the values of
    the input ``w[b]``."""

    constants: tuple[int, ...]
    divisors: tuple[int, ...]
    moduli: tuple[int, ...]
    windows: tuple[int, ...]
    sinks: tuple[int, ...]
    values: tuple[int, ...]


SMALL = Scale(
    constants=(0, 1, 2, 3, 5, 8, 16, 17, 31, 40, 64),
    divisors=(2, 3, 4, 8, 16, 24, 32, -5),
    moduli=(2, 3, 4, 5, 8, 16, 24, -4),
    windows=(5, 16, 40, 64),
    sinks=(1, 4, 16, 20),
    values=(0, 1, 3, 16, 17, 50),
)
"""For tiles of 4 to 32."""

LARGE = Scale(
    constants=(0, 1, 2, 7, 16, 33, 64, 100, 128, 255, 256, 400),
    divisors=(2, 3, 8, 16, 48, 64, 100, 128, 256, -5),
    moduli=(2, 3, 4, 8, 16, 48, 64, 128, 200, -4),
    windows=(1, 50, 128, 200, 256, 511),
    sinks=(1, 4, 64, 100, 128),
    values=(0, 1, 64, 130, 256, 700),
)
"""For tiles of 16 to 256."""


def parameters(chance: random.Random, scale: Scale = SMALL) -> dict[str, int]:
    """Values of the free parameters."""
    return {
        WIDTH.variable: chance.choice(scale.values),
        SHIFT.variable: chance.choice((-1, 1)) * chance.choice(scale.constants),
    }


def predicates(depth: int = 2, scale: Scale = SMALL) -> st.SearchStrategy[Term]:
    """Formulas of comparisons, ``depth`` connectives deep."""
    if not depth:
        return _comparisons(scale)
    inner = predicates(depth - 1, scale)
    return st.one_of(
        _comparisons(scale),
        st.tuples(inner, inner).map(lambda p: p[0] & p[1]),
        st.tuples(inner, inner).map(lambda p: p[0] | p[1]),
        inner.map(lambda p: ~p),
        st.tuples(inner, inner, inner).map(lambda p: where(*p)),
        st.tuples(inner, inner).map(lambda p: p[0].eq(p[1])),
    )


def _comparisons(scale: Scale) -> st.SearchStrategy[Term]:
    op = st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"])
    blocks = st.sampled_from([d for d in scale.divisors if d > 4])
    usual = st.one_of(
        st.just(causal),
        st.sampled_from(scale.windows).map(lambda c: q - key < c),
        st.just(q - key < load("w", b)),
        st.sampled_from([q - key < WIDTH, key < WIDTH, abs(q - key) <= WIDTH // 2, q - key >= SHIFT, q < SHIFT]),
        st.sampled_from(scale.sinks).map(lambda c: key < c),
        blocks.map(lambda c: (q // c).eq(key // c)),
        st.tuples(st.sampled_from([2, 3, 4, 8]), st.sampled_from([0, 1])).map(lambda p: ((q - key) % p[0]).eq(p[1])),
    )
    return usual | st.tuples(op, _ints(2, scale), _ints(1, scale)).map(lambda p: apply(p[0], p[1], p[2], dtype="bool"))


def _ints(depth: int, scale: Scale) -> st.SearchStrategy[Term]:
    leaves = st.sampled_from([q, key, q - key, q - key, h, load("w", b), n, WIDTH, SHIFT]) | st.sampled_from(
        scale.constants
    ).map(lambda value: Term(Const(value=value)))
    if not depth:
        return leaves
    inner = _ints(depth - 1, scale)
    pairs = st.tuples(inner, inner)
    return st.one_of(
        leaves,
        pairs.map(lambda p: p[0] + p[1]),
        pairs.map(lambda p: p[0] - p[1]),
        st.tuples(st.sampled_from([-2, -1, 2, 3]), inner).map(lambda p: p[1] * p[0]),
        st.tuples(inner, st.sampled_from(scale.divisors)).map(lambda p: p[0] // p[1]),
        st.tuples(inner, st.sampled_from(scale.moduli)).map(lambda p: p[0] % p[1]),
        pairs.map(lambda p: minimum(*p)),
        pairs.map(lambda p: maximum(*p)),
        inner.map(abs),
    )
