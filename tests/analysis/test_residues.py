"""Residues: the modulus that is found, and the tiles of every pair of classes against brute force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import gcd
from typing import Any

import numpy as np
import pytest

from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Problem
from spdsl.analysis.relation import tile_relation
from spdsl.analysis.residues import LARGEST, residues_of
from spdsl.analysis.tiles import ListWalk, Residues, SlotWalk, TileRelation, tiles_among
from spdsl.semantics.nodes import Const
from tests.analysis.brute import check_walk, environment, mask_of
from tests.analysis.build import Term, b, causal, h, k, load, n, nq, q
from tests.analysis.evaluate import By
from tests.library.bound import library, program

HEADS, GROUPS = 8, 2
d = q - k

PATTERNS: dict[str, tuple[Term, int, int]] = {
    "dilated": (causal & (d < 100) & (d % 4).eq(0), 4, 0),
    "shifted": (causal & (d < 100) & (d % 4).eq(3), 4, 3),
    "both sides": ((q % 3).eq(k % 3) & (abs(d) <= 64), 3, 0),
    "shifted both ways": (((k - q) % 5).eq(1) & (abs(d) <= 90), 5, 4),
    "blocks": (causal & (d % 2).eq(0) & (q // 48).eq(k // 48), 2, 0),
    "by head": (causal & (q % 4).eq(h % 4) & (k % 4).eq(h % 4) & (q // 64).eq(k // 64), 4, 0),
    "two strides": (causal & (d % 4).eq(1) & (d % 6).eq(3), 12, 9),
    "stride of a union": ((causal & (d % 6).eq(0) & (d < 80)) | (d.eq(93)), 3, 0),
    "future": ((d < 0) & (d > -70) & (d % 7).eq(2), 7, 2),
    "named length": ((d % 3).eq(0) & (d < n // 2) & (k + 5 < n) & (q < nq + 1000), 3, 0),
    "whole class": ((d % 5).eq(2), 5, 2),
    "large": (causal & (d % 192).eq(5) & (d < 900), 96, 5),
    "sorted by remainder": (causal & (q % 8).eq(3) & (k % 8).eq(6), 8, 5),
}

TILES = ((16, 16), (32, 16), (16, 32))


def residues(keep: Term, shape: str) -> Residues | None:
    return residues_of(keep.expr, shape=shape, heads=HEADS, groups=GROUPS)  # type: ignore[arg-type]


@cache
def relation(name: str, block_q: int, block_k: int, shape: str) -> TileRelation:
    keep, _, _ = PATTERNS[name]
    return tile_relation(
        keep.expr,
        block_q=block_q,
        block_k=block_k,
        shape=shape,  # type: ignore[arg-type]
        heads=HEADS,
        groups=GROUPS,
        residues=residues(keep, shape),
    )


def tiles_of_class(mask: np.ndarray, exists: np.ndarray, blocks: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(touched, full) tiles of a mask of rows of one class; what does not exist hinders no tile from being full."""
    counts = [-(-size // block) for size, block in zip(mask.shape, blocks, strict=True)]
    padding = [(0, count * block - size) for count, block, size in zip(counts, blocks, mask.shape, strict=True)]
    kept, there = np.pad(mask & exists, padding), np.pad(exists, padding)
    shape = (counts[0], blocks[0], counts[1], blocks[1])
    return kept.reshape(shape).any((1, 3)), (kept | ~there).reshape(shape).all((1, 3))


def check(found: TileRelation, keep: Term, env: Mapping[str, int], tables: Mapping[str, Any] | None = None) -> int:
    """Every pair of classes by both walks; returns how many tiles were walked as full."""
    assert found.residues is not None
    modulus, shift, blocks = found.residues.modulus, found.residues.shift, (found.block_q, found.block_k)
    mask = mask_of(keep.expr, env, tables)
    left = mask_of(found.residues.keep, env, tables)
    exists = np.broadcast_to((env["q_start"] + np.arange(env["nq"]) >= 0)[:, None], mask.shape)
    rows = [-(-size // modulus) for size in mask.shape]
    sizes = [-(-size // (modulus * block)) for size, block in zip(mask.shape, blocks, strict=True)]
    seen = np.zeros_like(mask)
    full_tiles = 0
    for q_class in range(modulus):
        k_class = (env["q_start"] + q_class - shift) % modulus
        part = np.ix_(range(q_class, env["nq"], modulus), range(k_class, env["n"], modulus))
        seen[part] = True
        assert (left[part] == mask[part]).all()
        padding = [(0, most - size) for most, size in zip(rows, mask[part].shape, strict=True)]
        touched, full = tiles_of_class(np.pad(mask[part], padding), np.pad(exists[part], padding), blocks)
        assert list(touched.shape) == sizes
        here = {**env, "q_class": q_class, "k_class": k_class}
        for by, walk, t, f in (("query", found.by_query, touched, full), ("key", found.by_key, touched.T, full.T)):
            side: By = by  # type: ignore[assignment]
            full_tiles += check_walk(walk, side, t, f, here, tables, tight=_whole(env, modulus, blocks, found))
    assert not (mask & ~seen).any()
    return full_tiles


def _whole(env: Mapping[str, int], modulus: int, blocks: tuple[int, int], found: TileRelation) -> bool:
    whole = env["nq"] % (modulus * blocks[0]) == 0 and env["n"] % (modulus * blocks[1]) == 0
    return whole and not found.notes


def environments(shape: str, modulus: int) -> Sequence[dict[str, int]]:
    heads = [{"h": 0, "g": 0, "b": 0}, {"h": 5, "g": 1, "b": 2}, {"h": 3, "g": 0, "b": 3}]
    if shape == "square":
        lengths = (1, modulus - 1, modulus + 1, 70, 131, 192, 32 * modulus, 64 * modulus + 5)
        return [environment("square", length, **heads[i % 3]) for i, length in enumerate(lengths)]
    cases = [(1, 1, None), (70, 1, None), (129, 40, None), (200, 100, 13), (50, 90, -40), (160, 160, 5), (0, 20, 0)]
    cases += [(20, 33, -40), (32 * modulus, 32 * modulus, 32)]
    return [environment("offset", *case, **heads[i % 3]) for i, case in enumerate(cases)]


@pytest.mark.parametrize("shape", ["square", "offset"])
@pytest.mark.parametrize("name", PATTERNS)
def test_named_patterns(name: str, shape: str) -> None:
    keep, modulus, shift = PATTERNS[name]
    found = residues(keep, shape)
    assert found is not None
    assert (found.modulus, found.shift) == (modulus, shift)
    for block_q, block_k in TILES:
        tiles = relation(name, block_q, block_k, shape)
        assert isinstance(tiles.by_query, SlotWalk)
        assert isinstance(tiles.by_key, SlotWalk)
        for env in environments(shape, modulus):
            check(tiles, keep, env)


@pytest.mark.parametrize("seed", range(24))
def test_random_windows(seed: int) -> None:
    """Windows, blocks and shifts drawn at random, for both shapes."""
    random = np.random.default_rng(seed)
    modulus, span = int(random.integers(2, 17)), int(random.integers(1, 300))
    shift, ahead = int(random.integers(0, modulus)), int(random.integers(-50, 50))
    keep = (d % modulus).eq(shift) & (d < span) & (d > -ahead)
    if random.random() < 0.4:
        size = int(random.integers(2, 90))
        keep = keep & ((q // size) > (k // size) - 1)
    blocks = tuple(int(size) for size in random.choice([16, 32], 2))
    for shape in ("square", "offset"):
        found = residues(keep, shape)
        if found is None:
            continue  # nothing or one distance is kept
        assert found.modulus % modulus == 0 or found.modulus > 64 // modulus
        tiles = tile_relation(
            keep.expr,
            block_q=blocks[0],
            block_k=blocks[1],
            shape=shape,
            heads=1,
            groups=1,
            residues=found,  # type: ignore[arg-type]
        )
        if not (isinstance(tiles.by_query, SlotWalk) and isinstance(tiles.by_key, SlotWalk)):
            continue
        length = int(random.integers(1, 400))
        start = int(random.integers(-30, 60))
        for env in (
            environment(shape, length, *(() if shape == "square" else (int(random.integers(1, 200)), start))),
            environment(shape, found.modulus * 32, *(() if shape == "square" else (found.modulus * 32, start))),
        ):
            check(tiles, keep, env)


def test_full_tiles_are_found() -> None:
    wide = causal & (d < 400) & (d % 4).eq(0)
    found = tile_relation(
        wide.expr, block_q=16, block_k=16, shape="square", heads=1, groups=1, residues=residues(wide, "square")
    )
    assert check(found, wide, environment("square", 1024)) > 0


@pytest.mark.parametrize(
    "keep",
    [
        causal,
        causal & (d < 64),
        causal & ((k < 4) | (d % 4).eq(0)),
        (d % 4).eq(0) | (d % 6).eq(1),
        d.eq(8),
        Term(Const(value=False)),
        (q % 4).eq(0),
        causal & (d % 131).eq(0),
    ],
)
def test_no_modulus(keep: Term) -> None:
    assert residues(keep, "square") is None


def test_what_is_left_to_test() -> None:
    keep = causal & (d % 4).eq(1) & (d < 9)
    found = residues(keep, "square")
    assert found is not None
    assert found.keep == (causal & (d < 9)).expr
    only = residues((d % 4).eq(1), "square")
    assert only is not None
    assert only.keep == Const(value=True)


def test_clauses_read_from_inputs_do_not_hide_a_modulus() -> None:
    keep = causal & (d % 4).eq(0) & load("doc", q).eq(load("doc", k))
    found = residues(keep, "square")
    assert found is not None
    assert found.modulus == 4


def test_bounds_by_batch() -> None:
    keep = (d % 4).eq(0) & (causal | (k < load("prefix", b)))
    found = residues(keep, "square")
    assert found is not None
    tiles = tile_relation(keep.expr, block_q=16, block_k=16, shape="square", heads=1, groups=1, residues=found)
    for batch in range(3):
        check(tiles, keep, environment("square", 300, b=batch, h=0, g=0), {"prefix": [0, 37, 300]})


# ---------------------------------------------------------------- plans


def planned(pattern: Any, target: str, shape: str = "square") -> Any:
    return plan(Problem(pattern=pattern, dtype="bf16", value_dim=64, shape=shape), target)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", ["square", "offset", "batched"])
def test_kernels_of_a_gpu_gather_classes(shape: str) -> None:
    made = planned(library("dilated", head_dim=64), "sm_90", shape)
    for kernel in (made.forward, made.dq, made.dkdv):
        assert kernel.classes == 4
        assert kernel.spans == (4 * kernel.block_q, 4 * kernel.block_k)


def test_the_cpu_keeps_consecutive_rows() -> None:
    assert planned(library("dilated", head_dim=64), "cpu").forward.residues is None


def test_lists_keep_consecutive_rows() -> None:
    text = "pattern p() { input doc: int[token]\n  keep causal and (q - k) % 4 == 0 and doc[q] == doc[k] }"
    made = planned(replace(program(text, head_dim=64)), "sm_90")
    assert isinstance(made.forward.walk, ListWalk)
    assert made.forward.residues is None


def test_divisors_of_large_strides() -> None:
    for stride in (65, 96, 130, 256, 1000, 4096):
        found = residues(causal & (d % stride).eq(3), "square")
        assert found is not None
        assert stride % found.modulus == 0
        assert found.modulus == max(each for each in range(1, LARGEST + 1) if gcd(each, stride) == each)
        assert found.shift == 3 % found.modulus


@pytest.mark.parametrize("classes", [1, 2, 3, 8])
@pytest.mark.parametrize("block", [1, 4, 16])
def test_tiles_among(block: int, classes: int) -> None:
    for rows in range(0, 150, 7):
        tiles = {row // classes // block * classes + row % classes for row in range(rows)}
        assert tiles == set(range(tiles_among(rows, block, classes)))
