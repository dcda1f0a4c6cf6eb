"""Unions told apart into sets with and without residues: nothing is lost, nothing counts twice."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import spdsl
from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Plan, Problem
from spdsl.analysis.residues import residues_of
from spdsl.analysis.tiles import PickWalk, Residues, SlotWalk
from spdsl.analysis.unions import LEAST, disjoint_sets
from spdsl.analysis.wording import describe as word
from spdsl.pipeline import bound
from spdsl.semantics.nodes import Expr, Load
from spdsl.semantics.rewrite import walk
from spdsl.semantics.softmaxes import softmax_pattern
from tests.analysis.brute import environment, mask_of
from tests.analysis.build import Term, apply, k, q
from tests.analysis.programs import HEADS, SMALL, WINDOW, parameters, predicates

VALUES = {"w": list(SMALL.values)}


def residues(keep: Expr) -> Residues | None:
    return residues_of(keep, shape="square", heads=HEADS, groups=HEADS, tables=[WINDOW])


def strides() -> st.SearchStrategy[Term]:
    """Pairs at a multiple of a stride and a shift, within something."""
    made = st.tuples(st.sampled_from([2, 4, 8, 16]), st.integers(0, 5), predicates(1))
    return made.map(
        lambda given: apply("eq", apply("mod", q - k, given[0]), given[1] % given[0], dtype="bool") & given[2]
    )


def marks() -> st.SearchStrategy[Term]:
    """Rows of one side at some remainders, within something."""
    made = st.tuples(st.sampled_from([q, k]), st.sampled_from([3, 8]), st.integers(0, 4), predicates(1))
    return made.map(lambda given: apply("le", apply("mod", given[0], given[1]), given[2], dtype="bool") & given[3])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    common=predicates(1),
    stride=strides(),
    parts=st.lists(st.one_of(predicates(1), strides(), marks()), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_random_unions(common: Term, stride: Term, parts: list[Term], seed: int) -> None:
    whole = stride
    for part in parts:
        whole = whole | part
    keep = (common & whole).expr
    sets = disjoint_sets(keep, residues)
    chance = random.Random(seed)
    for length in (1, 17, 64):
        env = environment("square", length, h=chance.randrange(HEADS), b=chance.randrange(6), **parameters(chance))
        counts = sum((mask_of(each.keep, env, VALUES).astype(int) for each in sets), np.zeros((length, length), int))
        if sets:
            assert np.array_equal(counts, mask_of(keep, env, VALUES).astype(int))


def planned(body: str, target: str = "sm_90") -> Plan:
    attn = spdsl.compile(spdsl.loads(f"pattern union() {{\n  {body}\n}}"))
    pattern = bound(attn._key, 4, 4, 64)
    return plan(Problem(pattern=pattern, dtype="bf16", value_dim=64, shape="square"), target)


def test_a_stride_is_told_apart() -> None:
    found = planned("keep causal and (q - k < 128 or (q - k) % 128 == 0)")
    (other,) = found.more
    assert found.forward.residues is None
    assert [kernel.classes for kernel in other.kernels] == [128, 128, 128]
    assert (found.place, other.place) == (0, 1)
    assert other.fused is None


def test_marked_rows_are_gathered() -> None:
    found = planned("input first: bool[token]\n  keep abs(q - k) < 128 or first[q] or first[k] and k < 900")
    keys, queries = found.more
    assert all(isinstance(kernel.walk, SlotWalk) for kernel in found.kernels)
    for part, side in ((keys, "k"), (queries, "q")):
        for kernel in part.kernels:
            assert kernel.marked is not None
            assert kernel.marked.side == side
            assert "first" in word(kernel.marked.where)
    assert word(keys.forward.marked.where) == "first[k] and k < 900"
    # Programs that own the few rows which meet all others are cut into parts.
    assert [kernel.splits for kernel in keys.kernels] == [False, False, True]
    assert [kernel.splits for kernel in queries.kernels] == [True, True, False]


def test_marks_of_heads_are_gathered_by_head_and_by_key_for_their_group() -> None:
    for table, groups, tested in (("h", 4, False), ("h", 2, True), ("g", 2, False)):
        text = f"pattern some() {{ input own: bool[{table}, token]  keep causal and (q - k < 128 or own[{table}, k]) }}"
        pattern = bound(spdsl.compile(spdsl.loads(text))._key, 4, groups, 64)
        (marked,) = plan(Problem(pattern=pattern, dtype="bf16", value_dim=64, shape="square"), "sm_90").more
        for kernel in (marked.forward, marked.dq):
            assert kernel.picks is not None
            assert kernel.picks.where is not None
            assert word(kernel.picks.where) == f"own[{table}, k]"
            assert "own" not in word(kernel.picks.keep)
            # No tile is met that lies behind the queries, and few need a mask.
            assert isinstance(kernel.walk, PickWalk)
            assert word(kernel.walk.bounds.touched.hi) == "min(64 * i - 64, n)"
            assert kernel.walk.bounds.full is not None
        assert marked.dkdv.marked is not None
        assert marked.dkdv.marked.by_group
        assert word(marked.dkdv.marked.where) == f"own[{table}, k]"
        assert ("own" in word(marked.dkdv.marked.keep)) == tested
    # Queries that heads have marked are not.
    assert planned("input own: bool[h, token]\n  keep causal and (q - k < 128 or own[h, q])").more == ()


def test_what_is_picked_leaves_out_marked_keys() -> None:
    text = """axis blk = token by 64
    let most = score(Q, K) |> only(causal) |> softmax |> sum(over = q) |> top(9)
    let near = score(mean(Q, per = q.blk), mean(K, per = k.blk)) |> only(k.blk <= q.blk) |> top(4)
    keep causal and (near or most)"""
    pattern = spdsl.compile(spdsl.loads(f"pattern union() {{\n  {text}\n}}")).bind(4, 2, 64)
    part = softmax_pattern(pattern, pattern.graph.attentions[0].name)  # type: ignore[union-attr]
    found = plan(Problem(pattern=part, dtype="bf16", value_dim=64, shape="square"), "sm_90")
    # Of marked keys the run time says which are gathered, and which are met in tiles of their own.
    met, marked = found.more
    assert all(isinstance(each.forward.walk, PickWalk) for each in (found, met, marked))
    assert word(found.keep).count("not") == 1
    assert marked.forward.picks is not None
    assert marked.forward.picks.where is not None
    assert not any("not" in word(each.keep) for each in found.more)
    made = found.problem.divided
    assert made is not None
    assert word(made.where).endswith("[h, k]")
    assert word(made.touched.hi) == "i + 1"
    gathered, walked, more = (table.name for table in made.tables)
    read = [{node.table for node in walk(each.keep) if isinstance(node, Load)} for each in (found, met, marked)]
    assert read == [{made.lists, gathered}, {more, walked}, {gathered}]


def test_which_marked_keys_are_divided() -> None:
    """Those of heads, beside whole tiles that other queries of a run have picked, too."""

    def made(text: str, **more: object) -> bool:
        pattern = bound(spdsl.compile(spdsl.loads(f"pattern union() {{\n  {text}\n}}"))._key, 4, 2, 64)
        tables = tuple(replace(table, listed=table.name == "near") for table in pattern.tables)
        problem = Problem(pattern=replace(pattern, tables=tables), dtype="bf16", value_dim=64, shape="square")
        return plan(replace(problem, **more), "sm_90").problem.divided is not None  # type: ignore[arg-type]

    text = "axis blk = token by {} \n input own: bool[{}token]\n input near: bool[{}, q.blk, k.blk]\n keep {}"
    assert made(text.format(64, "h, ", "h", "causal and (near or own[h, k])"))
    assert not made(text.format(64, "h, ", "h", "causal and (near or own[h, k])"), few=16)
    assert not made(text.format(16, "h, ", "h", "causal and (near or own[h, k])"))
    assert not made(text.format(64, "", "h", "causal and (near or own[k])"))
    assert not made(text.format(64, "h, ", "g", "causal and (near or own[h, k])"))
    assert not made(text.format(64, "h, ", "h", "causal and (near or own[h, k] or q - k < 64)"))


def test_what_gains_nothing_stays_one_set() -> None:
    for body in (
        f"keep causal and (q - k < 128 or (q - k) % {LEAST - 1} == 0)",  # too few classes
        "keep causal and (q - k) % 8 == 0 and (q - k < 512 or k < 16)",  # the whole has residues
        "keep causal and ((q - k) % 8 == 0 or (q - k) % 12 == 3)",  # nothing is left without
        "keep causal and (q - k < 128 or k < 4)",
        "keep causal and (q - k < 128 or (q - k) % 4096 == 0)",  # few tiles are touched
        "input doc: int[token]\n keep causal and (doc[q] == doc[k] or (q - k) % 8 == 0)",  # lists by either way
        "input first: bool[token]\n keep causal and first[k]",
        "input first: bool[token]\n keep causal and (first[k] or first[q])",
        "axis blk = token by 64\n input first: bool[k.blk]\n keep causal and (q - k < 128 or first[k.blk])",
        "grid (y: 16, x: 16)\n keep q.y == k.y or (q.x - k.x) % 4 == 0",
    ):
        assert planned(body).more == (), body
    assert planned("keep causal and (q - k < 128 or (q - k) % 128 == 0)", "cpu").more == ()
