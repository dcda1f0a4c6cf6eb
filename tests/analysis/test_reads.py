"""Conditions for reads outside a table, on known cases and against brute force."""

from __future__ import annotations

import itertools

import pytest

from spdsl.analysis.reads import violations
from spdsl.semantics.nodes import Bounds, Const, Expr, Table
from tests.analysis.build import Term, b, causal, h, k, load, maximum, n, nq, q, q_start
from tests.analysis.evaluate import evaluate

YES = Term(Const(value=True))
ROOT = Table(name="root", dtype="int", axes=(), bounds=Bounds(low=0), sorted=False)


def test_a_known_length_rules_cases_out() -> None:
    assert violations((k // 4).expr, YES.expr, Const(value=4), length=16) == "never"
    assert violations((k // 4).expr, YES.expr, Const(value=4), length=17) != "never"


def test_reads_that_are_never_outside() -> None:
    assert violations(q.expr, YES.expr, n.expr, shape="square") == "never"
    assert violations(k.expr, YES.expr, n.expr) == "never"
    assert violations((k // 16).expr, YES.expr, ((n + 15) // 16).expr) == "never"
    assert violations((q - k).expr, (causal & (q - k < 64)).expr, Const(value=64)) == "never"
    assert violations(h.expr, YES.expr, Const(value=8), heads=8) == "never"
    assert violations(q.expr, (load("seen", q, dtype="bool") & (q < 8)).expr, Const(value=8)) == "never"


def test_reads_of_which_nothing_is_known() -> None:
    assert violations(load("next", q).expr, YES.expr, n.expr) == "unknown"
    assert violations(q.expr, load("seen", q, dtype="bool").expr, Const(value=8)) == "unknown"


READS: list[tuple[Term, Term, Term]] = [
    (q, causal, n),
    (q - k, causal, Term(Const(value=12))),
    (q - k, YES, n),
    (q - load("root"), q >= load("root"), Term(Const(value=9))),
    (q - load("root"), YES, n),
    (abs(q - k), abs(q - k) < 20, Term(Const(value=16))),
    (q // 4, YES, (n + 3) // 4),
    (maximum(q, k) - q_start, YES, nq),
    (q * 2 + h, q < 5, Term(Const(value=10))),
]


@pytest.mark.parametrize("case", range(len(READS)))
def test_conditions_of_reads_outside(case: int) -> None:
    index, guard, extent = READS[case]
    condition = violations(index.expr, guard.expr, extent.expr, heads=3, tables=[ROOT])
    assert not isinstance(condition, str)
    seen = set()
    for length, queries, start, root in itertools.product((1, 2, 9, 14), (1, 3, 14), (-5, 0, 4), (0, 1, 6)):
        env = {"n": length, "nq": queries, "q_start": start}
        told = bool(evaluate(condition, env, {"root": root}))
        assert told == is_outside(index.expr, guard.expr, extent.expr, env, {"root": root}), env
        seen.add(told)
    assert seen == {True, False}


def is_outside(index: Expr, guard: Expr, extent: Expr, env: dict[str, int], tables: dict[str, int]) -> bool:
    queries = range(max(0, env["q_start"]), env["q_start"] + env["nq"])
    for at_q, at_k, head in itertools.product(queries, range(env["n"]), range(3)):
        here = {**env, "q": at_q, "k": at_k, "h": head, "g": head}
        if evaluate(guard, here, tables):
            place = evaluate(index, here, tables)
            if not 0 <= place < evaluate(extent, here, tables):
                return True
    return False


def test_conditions_keep_heads_that_loads_mention() -> None:
    condition = violations((q - load("root", h)).expr, YES.expr, n.expr, heads=3)
    assert not isinstance(condition, str)
    env = {"n": 4, "nq": 4, "q_start": 0}
    assert [bool(evaluate(condition, {**env, "h": head}, {"root": [0, 1, 0]})) for head in range(3)] == [
        False,
        True,
        False,
    ]
    condition = violations((q - load("root", b)).expr, YES.expr, n.expr)
    assert not isinstance(condition, str)
    assert evaluate(condition, {**env, "b": 1}, {"root": [0, 2]})
