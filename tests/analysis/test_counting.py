"""Formulas for the number of kept pairs, against counting."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import sympy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spdsl.analysis.cardinality import Count, Formula, count, value_at
from spdsl.analysis.formulas import Share, Shares, shares
from spdsl.analysis.pairs import Subject
from spdsl.analysis.polynomials import polynomial
from spdsl.analysis.worker import bounded
from spdsl.semantics.nodes import Bounds, Table
from tests.analysis.brute import environment, mask_of
from tests.analysis.build import Term, causal, k, load, q
from tests.analysis.subjects import subject
from tests.analysis.test_claims import FACTS, mixed, random_tables
from tests.analysis.test_random import HEADS
from tests.library.bound import library, program
from tests.library.cases import CASES


def told(name: str, **parameters: object) -> Share:
    found = shares(Subject.of(library(name, heads=8, groups=2, **parameters)))
    assert isinstance(found, Shares)
    assert found.least == found.most
    return found.least


def test_known_formulas() -> None:
    assert told("causal") == Share(pairs="n*(n + 1)/2", share="(n + 1)/(2*n)", keys="about n/2 keys per query", first=1)
    assert told("full").share == "1"
    window = told("sliding_window", window=512)
    w, n = 512, sympy.Symbol("n")
    assert sympy.expand(sympy.sympify(window.pairs) - (w * n - w * (w - 1) / 2)) == 0
    assert (window.keys, window.first) == ("about 512 keys per query", 511)
    block = told("block_local", block=64)
    assert (block.pairs, block.where) == ("64*n + r**2 - 64*r", "r = n % 64")
    assert told("dilated", span=4096, dilation=4).keys == "about 1024 keys per query"
    s2 = told("s2")
    assert (s2.keys, s2.where) == ("about n/32 keys per query", "n % 1024 == 0")
    assert told("neighborhood_2d", extents=(12, 13), window=(5, 5)) == Share(
        pairs="3900", share="16.0256%", keys="25 keys per query", first=1
    )


def test_inputs_give_bounds() -> None:
    found = shares(Subject.of(library("documents")))
    assert isinstance(found, Shares)
    assert (found.least.pairs, found.most.pairs) == ("n", "n*(n + 1)/2")


def test_heads_are_averaged() -> None:
    found = shares(Subject.of(program("pattern p() { keep if h == 0 then causal else k == q }", heads=4, groups=4)))
    assert isinstance(found, Shares)
    assert sympy.expand(sympy.sympify(found.least.pairs) - sympy.sympify("(n*(n + 1)/2 + 3*n)/4")) == 0


def test_what_is_not_counted_says_so() -> None:
    found = count(subject((q * q < k * k + q) & causal))
    assert isinstance(found, Count)
    assert found.least != found.most


ROOM = Table(name="room", dtype="int", axes=(), bounds=Bounds(low=1), sorted=False)
MORE = Table(name="more", dtype="int", axes=(), bounds=Bounds(low=0), sorted=False)
ROOMS, MORES = load("room"), load("more")


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (causal & (q - k < ROOMS), "room*(2*n - room + 1)/2"),
        (causal & ((q - k < ROOMS) | (k < MORES)), None),
        (abs(q - k) < ROOMS, None),
        ((q - k < ROOMS) & (k - q <= MORES), None),
        (causal & ~(q - k < ROOMS), None),
        (causal & (q - k < ROOMS) & (q - k >= 2), None),
    ],
)
def test_free_parameters_stay_in_the_formula(keep: Term, expected: str | None) -> None:
    each = subject(keep, tables=[ROOM, MORE])
    found = polynomial(each)
    assert found is not None
    free = shares(each)
    assert isinstance(free, Shares)
    assert expected in (None, free.least.pairs)
    tried = 0
    for room, more, length in itertools.product((1, 2, 3, 7), (0, 1, 4), (1, 2, 5, 8, 11, 20)):
        values = {"room": room, "more": more, "n": length}
        if all(eval(condition, dict(values)) for condition in found.conditions):  # noqa: S307
            tables = {"room": room, "more": more}
            total = int(mask_of(each.keep, environment("square", length), tables).sum())
            assert found.pairs.subs(values) == total, values
            tried += 1
    assert tried >= 8


@pytest.mark.parametrize("keep", [causal & load("flag", k, dtype="bool"), (q - k) % 2 < ROOMS, causal])
def test_other_sets_have_no_such_polynomial(keep: Term) -> None:
    assert polynomial(subject(keep, tables=[ROOM, MORE])) is None


# ---------------------------------------------------------------- against counting


def lengths_of(formula: Formula, chance: random.Random) -> list[int]:
    step = formula.period if formula.multiples else 1
    first = formula.first + (-formula.first % step if formula.multiples else 0)
    return [length for i in (0, 1, 2, 5, chance.randint(3, 40)) if (length := first + i * step) and length <= 300]


def kept(each: Subject, length: int, chance: random.Random) -> int:
    """The pairs of all heads that the formulas count."""
    total = 0
    tables = random_tables(chance, length)
    batch = chance.randrange(6)
    for head in range(each.pattern.heads):
        env = environment("square", length, h=head, g=head, b=batch)
        total += int(mask_of(each.keep, env, tables).sum())
    return total


def check(each: Subject, seed: int) -> str:
    found = bounded(count, {"subject": each}, seconds=5.0)  # a call of isl may hang
    if found is None or isinstance(found, str):
        return found or "late"
    assert isinstance(found.least, Formula)
    assert isinstance(found.most, Formula)
    chance = random.Random(seed)
    share = each.pattern.heads // found.units
    for length in lengths_of(found.least, chance):
        assert value_at(found.least, length) * share <= kept(each, length, chance), length
    for length in lengths_of(found.most, chance):
        pairs = kept(each, length, chance)
        assert value_at(found.most, length) * share >= pairs, length
        if found.least == found.most:
            assert value_at(found.most, length) * share == pairs, length
    return ""


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(keep=mixed(1), seed=st.integers(0, 99))
def test_random_counts(keep: Term, seed: int) -> None:
    check(subject(keep, **FACTS), seed)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    parts=st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 6), st.integers(0, 5)),
    seed=st.integers(0, 99),
)
def test_windows_strides_and_blocks(parts: tuple[int, int, int, int], seed: int) -> None:
    window, block, stride, shift = parts
    keep = causal & ((q - k < window) | ((q // block - k // block) % stride).eq(shift % stride) | (k % block).eq(shift))
    assert check(subject(keep, heads=HEADS, groups=HEADS), seed) == ""


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.n is None and case.name != "radial"], ids=lambda c: c.id
)
def test_the_library(case: object) -> None:
    each = Subject.of(library(case.name, heads=2, groups=2, **case.parameters))  # type: ignore[attr-defined]
    found = count(each)
    assert isinstance(found, Count)
    if found.least != found.most:
        assert each.pattern.tables or each.pattern.name in ("bigbird", "power", "log_sparse")
        return
    assert isinstance(found.least, Formula)
    for length in lengths_of(found.least, random.Random(0)):
        masks = [mask_of(each.keep, environment("square", length, h=h, g=h), {}) for h in range(2)]
        total = int(np.stack(masks).sum())
        assert value_at(found.least, length) * (2 // found.units) == total
