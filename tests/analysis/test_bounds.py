"""The bounds as text: short, in the order of their meaning, the same in every process; and the budget's ladder."""

from __future__ import annotations

import os
import subprocess
import sys

import islpy as isl
import pytest

from spdsl.analysis import relation as relation_module
from spdsl.analysis import slots
from spdsl.analysis.budget import BudgetSpentError, limited
from spdsl.analysis.pieces import TooComplexError
from spdsl.analysis.relation import tile_relation
from spdsl.analysis.tiles import ListWalk, Shape, Slot, SlotWalk, TileRelation, Walk
from spdsl.analysis.wording import describe
from spdsl.semantics.ops import OPS
from tests.analysis.brute import check, environment
from tests.analysis.build import Term, b, causal, g, k, load, q
from tests.analysis.evaluate_rows import NUMPY_OPS
from tests.analysis.test_relation import PATTERNS, TABLES, VALUES


def text(slot: Slot) -> str:
    """``lo .. hi``, the full interval after ``full``, lattice and filter."""
    parts = [f"{describe(slot.touched.lo, 999)} .. {describe(slot.touched.hi, 999)}"]
    if slot.full is not None:
        parts.append(f"full {describe(slot.full.lo, 999)} .. {describe(slot.full.hi, 999)}")
    if slot.step > 1:
        assert slot.phase is not None
        parts.append(f"(t - {describe(slot.phase)}) % {slot.step} < {slot.run}")
    if slot.filter is not None:
        parts.append(f"if {describe(slot.filter, 999)}")
    return ", ".join(parts)


def texts(walk: Walk) -> list[str]:
    assert isinstance(walk, SlotWalk)
    return [text(slot) for slot in walk.slots]


CASES: list[tuple[Term, Shape, tuple[int, int], str, str]] = [
    (
        causal,
        "square",
        (128, 128),
        "0 .. i + 1, full 0 .. i",
        "j .. (n + 127) // 128, full j + 1 .. (n + 127) // 128",
    ),
    (
        causal,
        "square",
        (128, 64),
        "0 .. min(2 * i + 2, (n + 63) // 64), full 0 .. 2 * i",
        "j // 2 .. (n + 127) // 128, full (j + 2) // 2 .. (n + 127) // 128",
    ),
    (
        causal & (q - k < 1024),
        "square",
        (128, 128),
        "max(0, i - 8) .. i + 1, full i - 7 .. i",
        "j .. min(j + 9, (n + 127) // 128), full j + 1 .. j + 8",
    ),
    (
        causal & ((q - k < 1024) | (k < 4)),
        "square",
        (128, 128),
        "max(0, i - 8) .. i + 1, full i - 7 .. i\n0 .. min(1, i - 8)",
        ("j .. (if j <= 0 then (n + 127) // 128 else min(j + 9, (n + 127) // 128)), full j + 1 .. j + 8"),
    ),
    (
        causal,
        "offset",
        (128, 128),
        "0 .. min((n + 127) // 128, i + (q_start + 255) // 128), full 0 .. i + (q_start + 1) // 128",
        "max(0, j - (q_start + 127) // 128) .. (nq + 127) // 128, full j - (q_start - 127) // 128 .. (nq + 127) // 128",
    ),
    (
        causal & ((q // 128).eq(k // 128) | ((k // 128 + g) % 16).eq(0)),
        "square",
        (128, 128),
        "i .. i + 1\n0 .. i, full 0 .. i, (t - -g) % 16 < 1",
        (
            "j .. max(j + 1, (if (g + j) % 16 == 0 then (n + 127) // 128 else -268435456)), "
            "full j + 1 .. max(j + 1, (if (g + j) % 16 == 0 then (n + 127) // 128 else -268435456))"
        ),
    ),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_text(case: int) -> None:
    keep, shape, (block_q, block_k), by_query, by_key = CASES[case]
    relation = tile_relation(keep.expr, block_q=block_q, block_k=block_k, shape=shape, heads=32, groups=32)
    assert texts(relation.by_query) == by_query.splitlines()
    assert texts(relation.by_key) == by_key.splitlines()
    assert relation.notes == ()


def test_declared_ranges_are_not_trusted_with_memory() -> None:
    keep = causal & (q - k < load("window", b))
    for tables in ((), TABLES):
        relation = tile_relation(keep.expr, block_q=16, block_k=16, shape="square", heads=1, groups=1, tables=tables)
        # -40 breaks the promise that windows are at least 1
        for window in (-40, 10**6):
            check(relation, keep.expr, environment("square", 100, b=0), {"window": [window]}, tight=False)


def test_batched_walks_as_offset() -> None:
    keep = PATTERNS["streaming"].expr
    batched = tile_relation(keep, block_q=64, block_k=64, shape="batched", heads=1, groups=1)
    offset = tile_relation(keep, block_q=64, block_k=64, shape="offset", heads=1, groups=1)
    assert (batched.by_query, batched.by_key) == (offset.by_query, offset.by_key)


def test_output_is_the_same_in_every_process() -> None:
    code = (
        "from tests.analysis.test_bounds import *\n"
        "for name in ('composed', 's2', 'clamped', 'longformer', 'block diffusion'):\n"
        "    for shape in ('square', 'offset'):\n"
        "        r = tile_relation(PATTERNS[name].expr, block_q=32, block_k=16, shape=shape, heads=8, groups=2)\n"
        "        print(name, texts(r.by_query), texts(r.by_key))\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]


# ---------------------------------------------------------------- the ladder


def test_limits_are_lifted_after_they_are_hit() -> None:
    with pytest.raises(BudgetSpentError), limited(operations=1):
        isl.Set("[n] -> { [i] : 0 <= i < n and i mod 7 = 3 }").complement().coalesce().complement().coalesce()
    assert isl.DEFAULT_CONTEXT.get_max_operations() == 0
    assert not isl.Set("{ [i] : 0 <= i < 3 }").is_empty()


def test_a_spent_deadline_and_spent_proofs_end_as_spent() -> None:
    with limited(seconds=-1.0) as budget, pytest.raises(BudgetSpentError):
        budget.step()
    with limited(proofs=1) as budget:
        assert budget.prove(lambda: True)
        with pytest.raises(BudgetSpentError):
            budget.prove(lambda: True)


LADDER = ("streaming", "composed", "s2", "block diffusion", "longformer", "not window")


@pytest.mark.parametrize("name", LADDER)
def test_few_proofs_only_mask_more(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With any number of proofs the walk stays correct; with few it ends in a test of each tile, or a list."""
    keep = PATTERNS[name]
    for proofs in (0, 1, 2, 4, 8, 16):
        relation = _with_proofs(keep, proofs, monkeypatch)
        if isinstance(relation.by_query, ListWalk) or isinstance(relation.by_key, ListWalk):
            continue
        for length in (7, 64, 130, 257):
            env = environment("square", length, h=1, g=0, b=1)
            check(relation, keep.expr, env, VALUES, tight=False)


def _with_proofs(keep: Term, proofs: int, monkeypatch: pytest.MonkeyPatch) -> TileRelation:
    with monkeypatch.context() as patch:
        patch.setattr(relation_module, "limited", lambda: limited(proofs=proofs))
        return relation_module._tile_relation.__wrapped__(keep.expr, 32, 16, "square", 8, 2, TABLES, None)


def test_a_tested_hull_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_complex(*_: object) -> None:
        raise TooComplexError("told so")

    monkeypatch.setattr(slots, "_best_plan", too_complex)
    keep = PATTERNS["composed"]
    found = relation_module._tile_relation.__wrapped__(keep.expr, 32, 16, "square", 8, 2, (), None)
    assert isinstance(found.by_query, SlotWalk)
    assert found.by_query.slots[0].filter is not None
    assert "told so" in found.notes[0]
    for length in (7, 64, 130, 257):
        check(found, keep.expr, environment("square", length), tight=False)


def test_operations_have_a_meaning_on_arrays() -> None:
    assert NUMPY_OPS.keys() == OPS.keys()
