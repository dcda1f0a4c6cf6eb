"""Claims on known cases, and random ones against brute force: what is proven holds, what is refuted is refuted."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spdsl.analysis.claims import Answer, Claim, decide
from spdsl.analysis.pairs import Subject
from spdsl.analysis.worker import bounded
from spdsl.semantics.nodes import Bounds, Const, Table, TableAxis
from tests.analysis.brute import environment, mask_of
from tests.analysis.build import Term, apply, b, causal, g, h, k, load, n, nq, q, q_start, where
from tests.analysis.programs import HEADS, WINDOW, parameters, predicates
from tests.analysis.subjects import masks_of, subject
from tests.analysis.test_random import VALUES

YES = Term(Const(value=True))
TOKEN = TableAxis(kind="token", size=n.expr, label="token")
ROOT = Table(name="root", dtype="int", axes=(), bounds=Bounds(low=0), sorted=False)
DOC = Table(name="doc", dtype="int", axes=(TOKEN,), bounds=None, sorted=True)
FLAG = Table(name="flag", dtype="bool", axes=(TOKEN,), bounds=None, sorted=False)
REACH = Table(name="reach", dtype="int", axes=(TOKEN,), bounds=Bounds(low=1, high=3), sorted=False)
SEEN = Table(name="seen", dtype="bool", axes=(TOKEN, TOKEN), bounds=None, sorted=False)
TABLES = (ROOT, DOC, FLAG, REACH, SEEN)
same_doc = load("doc", q).eq(load("doc", k))
is_pow2 = lambda x: apply("is_pow2", x, dtype="bool")  # noqa: E731


def ask(claim: Claim, *keeps: Term, heads: int = 1, groups: int = 1) -> Answer:
    return decide(claim, [subject(keep, heads=heads, groups=groups, tables=TABLES) for keep in keeps])


def verdict(claim: Claim, *keeps: Term, heads: int = 1, groups: int = 1) -> str:
    answer = ask(claim, *keeps, heads=heads, groups=groups)
    return str(answer.example) if answer.verdict == "refuted" else answer.verdict


# ---------------------------------------------------------------- known cases


def test_rows() -> None:
    assert verdict("nonempty", causal) == "proven"
    assert verdict("nonempty", causal & (q - k < 7)) == "proven"
    assert verdict("nonempty", causal & (q - k >= 1)) == "q = 0, n = 1: keeps nothing"
    assert verdict("nonempty", k < load("root")) == "q = 0, n = 1, root = 0: keeps nothing"
    assert verdict("nonempty", causal & same_doc) == "proven"
    assert verdict("nonempty", causal & load("flag", k, dtype="bool")) == (
        "q = 0, n = 1, where flag is false everywhere: keeps nothing"
    )
    assert verdict("nonempty", causal & (k >= 5) & same_doc) == "q = 0, n = 1: keeps nothing"
    assert verdict("nonempty", k.eq(q) | is_pow2(q - k)) == "proven"


def test_ranges_of_tables_count() -> None:
    assert verdict("nonempty", causal & (q - k < load("reach", q))) == "proven"
    assert verdict("within", causal & (q - k < load("reach", q)), causal & (q - k < 3)) == "proven"
    assert verdict("equals", causal & (q - k < load("reach", q)), causal & (q - k < 3)) == (
        "q = 1, k = 0, n = 2, where reach is 1 everywhere: kept by the second, `p`, alone"
    )


def test_causality() -> None:
    assert verdict("causal", causal & (q - k < 7)) == "proven"
    assert verdict("causal", causal & same_doc) == "proven"
    assert verdict("causal", (q // 16 > k // 16) | q.eq(k)) == "proven"
    assert verdict("causal", is_pow2(q - k)) == "proven"
    assert verdict("causal", load("doc", k) < load("doc", q)) == "proven"
    assert verdict("causal", same_doc) == "q = 0, k = 1, n = 2, where doc is 0 everywhere: a later key is kept"
    assert verdict("causal", (q // 16).eq(k // 16)) == "q = 0, k = 1, n = 2: a later key is kept"
    assert verdict("causal", load("seen", q, k, dtype="bool")) == (
        "q = 0, k = 1, n = 2, where seen is true everywhere: a later key is kept"
    )


def test_what_cannot_be_decided_says_why() -> None:
    answer = ask("causal", load("doc", q) * load("doc", q) < load("doc", k) - 2)
    assert answer == Answer(verdict="undecided", reason="it depends on the input `doc`")
    drawn = apply("lt", (q - k) * (q - k), n, dtype="bool")
    assert ask("within", drawn, causal & drawn).reason.startswith("it needs `(q - k) * (q - k)`, which")


def test_equality() -> None:
    assert verdict("equals", causal, ~(k > q)) == "proven"
    assert verdict("equals", causal & (q // 64).eq(k // 64), causal & (k >= q - q % 64)) == "proven"
    assert verdict("equals", causal, k < q) == "q = 0, k = 0, n = 1: kept by the first, `p`, alone"
    assert verdict("equals", k < h, k < g, heads=8, groups=8) == "proven"
    assert verdict("equals", k < h // 4, k < g, heads=8, groups=2) == "proven"
    assert verdict("equals", causal & same_doc, ~(~same_doc | (k > q))) == "proven"
    assert verdict("equals", causal, causal & same_doc) == (
        "q = 1, k = 0, n = 2, where doc[i] is i: kept by the first, `p`, alone"
    )


def test_within_and_disjoint() -> None:
    assert verdict("within", causal & (q - k < 7) & same_doc, causal & same_doc) == "proven"
    assert verdict("within", causal & (q - k < 9), causal & (q - k < 7)).startswith("q = 7, k = 0, n = 8")
    assert verdict("disjoint", q - k < 7, q - k >= 7) == "proven"
    assert verdict("disjoint", same_doc, ~same_doc) == "proven"
    assert verdict("disjoint", q - k < 9, q - k >= 7) == "q = 7, k = 0, n = 8: both keep the pair"


def test_decoding_counts_from_the_last_query() -> None:
    assert verdict("nonempty", k.eq(q - q_start)) == "proven"
    assert verdict("equals", k < nq, k < n - q_start) == "proven"
    assert verdict("nonempty", k.eq(nq)).startswith("q = 0, n = 1, nq = 1")


def test_two_reads_of_one_element_agree() -> None:
    first, second = load("w", b), load("w", b + 0)
    pair = decide("within", [subject(k < first, tables=[WINDOW]), subject(k < second, tables=[WINDOW])])
    assert pair.verdict in ("proven", "undecided")


# ---------------------------------------------------------------- random cases


def atoms() -> st.SearchStrategy[Term]:
    doc, flag, reach = load("doc", k), load("flag", k, dtype="bool"), load("reach", q)
    return st.sampled_from(
        (
            *(same_doc, flag, load("flag", q, dtype="bool"), q - k < reach, load("doc", q) <= doc, is_pow2(q - k)),
            *(doc < 3, where(flag, q - k, k) < 4, abs(q - k) <= load("reach", k) * 2, ~(doc > load("doc", q)), k < q),
        )
    )


def mixed(depth: int) -> st.SearchStrategy[Term]:
    inner = atoms() | predicates(0)
    if not depth:
        return inner
    pairs = st.tuples(mixed(depth - 1), mixed(depth - 1))
    return st.one_of(inner, pairs.map(lambda p: p[0] & p[1]), pairs.map(lambda p: p[0] | p[1]), inner.map(lambda p: ~p))


MET: Counter[str] = Counter()


def random_tables(chance: random.Random, length: int) -> dict[str, Any]:
    doc = np.cumsum([chance.random() < 0.3 for _ in range(4 * length + 4)]) + chance.randint(-2, 3)
    return {
        **VALUES,
        "doc": doc,
        "flag": np.array([chance.random() < 0.4 for _ in range(4 * length + 4)]),
        "reach": np.array([chance.randint(1, 3) for _ in range(4 * length + 4)]),
    }


def holds(claim: Claim, masks: list[np.ndarray]) -> bool:
    match claim:
        case "nonempty":
            return bool(masks[0].any(1).all())
        case "causal":
            return not np.triu(masks[0], 1).any()
        case "within":
            return not (masks[0] & ~masks[1]).any()
        case "equals":
            return bool((masks[0] == masks[1]).all())
        case "disjoint":
            return not (masks[0] & masks[1]).any()


def check(claim: Claim, subjects: list[Subject], seed: int) -> None:
    answer = bounded(decide, {"claim": claim, "subjects": subjects}, seconds=5.0)  # a call of isl may hang
    if answer is None:
        return
    MET[answer.verdict] += 1
    chance = random.Random(seed)
    if answer.verdict == "refuted":
        assert answer.example is not None
        length = dict(answer.example.values)["n"]
        if length > 500:
            return
        masks = masks_of(answer.example, subjects, random_tables(chance, length))
        row = [mask[answer.example.query : answer.example.query + 1] for mask in masks]
        if answer.example.key is None:
            assert not row[0].any(), (answer, claim)
            return
        pair = [bool(mask[0, answer.example.key]) for mask in row]
        wrong = {
            "causal": answer.example.key > answer.example.query and pair[0],
            "within": pair[0] and not pair[-1],
            "equals": pair[0] != pair[-1],
            "disjoint": pair[0] and pair[-1],
        }
        assert wrong[claim], (answer, claim)
        return
    if answer.verdict == "proven":
        for _ in range(6):
            length = chance.choice([1, 2, 5, 9, 17, 33])
            more = {"h": chance.randrange(HEADS), "b": chance.randrange(6), **parameters(chance)}
            env = environment("square", length, **more)
            tables = random_tables(chance, length)
            assert holds(claim, [mask_of(each.keep, env, tables) for each in subjects]), (claim, env, tables)


RANDOM = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
FACTS = {"heads": HEADS, "groups": HEADS, "tables": (*TABLES, WINDOW)}


@RANDOM
@given(keep=mixed(2), claim=st.sampled_from(["nonempty", "causal"]), seed=st.integers(0, 999))
def test_random_claims_about_one(keep: Term, claim: Claim, seed: int) -> None:
    check(claim, [subject(keep, **FACTS)], seed)  # type: ignore[arg-type]


@RANDOM
@given(
    keeps=st.tuples(mixed(1), mixed(1)),
    joined=st.sampled_from(["", "and", "or"]),
    claim=st.sampled_from(["within", "equals", "disjoint"]),
    seed=st.integers(0, 999),
)
def test_random_claims_about_two(keeps: tuple[Term, Term], joined: str, claim: Claim, seed: int) -> None:
    one, other = keeps
    second = one & other if joined == "and" else one | other if joined == "or" else other
    check(claim, [subject(each, **FACTS) for each in (one, second)], seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("claim", ["nonempty", "causal"])
def test_most_random_claims_are_decided(claim: Claim) -> None:
    """Counted over what the tests above met in this process; alone it asks nothing."""
    if sum(MET.values()) >= 200:
        assert MET["undecided"] <= sum(MET.values()) / 4, MET
