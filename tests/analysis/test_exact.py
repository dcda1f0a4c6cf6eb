"""Random affine programs, unequal tiles of 16 to 256: touched and full tiles are those of the mask, exactly.

``SPDSL_EXAMPLES=5000 pytest tests/analysis/test_exact.py`` is the long run.  What a walk gives up it says in its notes;
then it may mask more tiles, and miss none.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spdsl.analysis.tiles import SlotWalk, TileRelation, Walk
from spdsl.analysis.worker import derive
from spdsl.semantics.nodes import Expr
from tests.analysis.brute import environment
from tests.analysis.build import Term
from tests.analysis.evaluate import By
from tests.analysis.evaluate_rows import evaluate_many, tiles_of_rows
from tests.analysis.programs import HEADS, LARGE, SHAPES, WINDOW, parameters, predicates

EXAMPLES = int(os.environ.get("SPDSL_EXAMPLES", "150"))
SIZES = (16, 24, 32, 48, 64, 80, 96, 128, 192, 256)
VALUES = {"w": list(LARGE.values)}
LONGEST = 1200

ended: Counter[str] = Counter()
"""How walks ended: exact slots, slots that mask more, lists."""


def rounded(env: dict[str, int], tiles: tuple[int, int], shape: str) -> tuple[int, int]:
    """Rows and keys that walks count with: whole tiles, for square shapes a common multiple of both."""
    if shape == "offset":
        return -(-env["nq"] // tiles[0]) * tiles[0], -(-env["n"] // tiles[1]) * tiles[1]
    unit = int(np.lcm(*tiles))
    return (-(-env["n"] // unit) * unit,) * 2


def exact_tiles(keep: Expr, env: dict[str, int], tiles: tuple[int, int], shape: str) -> tuple[np.ndarray, np.ndarray]:
    """(touched, full) of the tiles that exist, pairs beyond the ragged ends included; rows at negative positions are no
    pairs."""
    rows, keys = rounded(env, tiles, shape)
    q = env["q_start"] + np.arange(rows)[:, None]
    kept = np.broadcast_to(evaluate_many(keep, {**env, "q": q, "k": np.arange(keys)[None, :]}, VALUES), (rows, keys))
    grid = (rows // tiles[0], tiles[0], keys // tiles[1], tiles[1])
    touched = (kept & (q >= 0)).reshape(grid).any((1, 3))
    full = (kept | (q < 0)).reshape(grid).all((1, 3))
    exist = np.s_[: -(-env["nq"] // tiles[0]), : -(-env["n"] // tiles[1])]
    return touched[exist], (touched & full)[exist]


def walked_tiles(walk: SlotWalk, by: By, shape: tuple[int, ...], env: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """(walked, of them unmasked) as kernels walk, each at most once and in range."""
    found = tiles_of_rows(walk, shape[0], env, VALUES, by=by)
    owner = np.repeat(np.arange(shape[0]), found.end - found.begin)
    assert ((found.tiles >= 0) & (found.tiles < shape[1])).all(), "out of range"
    count = np.zeros(shape, int)
    np.add.at(count, (owner, found.tiles), 1)
    assert count.max(initial=0) <= 1, "twice"
    unmasked = np.zeros(shape, bool)
    is_full = np.arange(found.tiles.size) < found.middle[owner]
    unmasked[owner[is_full], found.tiles[is_full]] = True
    return count > 0, unmasked


def check_direction(walk: Walk, by: By, touched: np.ndarray, full: np.ndarray, env: dict[str, int], noted: bool) -> str:
    if not isinstance(walk, SlotWalk):
        return "list"
    walked, unmasked = walked_tiles(walk, by, touched.shape, env)
    assert not (touched & ~walked).any(), "missing"
    assert not (unmasked & ~full).any(), "not full"
    assert not (walked & ~touched).any(), "in vain"
    if not noted:
        assert (unmasked == full).all(), "masked without a note"
        return "exact"
    return "masks more" if (unmasked != full).any() else "exact all the same"


def environments(tiles: tuple[int, int], shape: str, seed: int) -> list[dict[str, int]]:
    """Lengths of few tiles, whole and ragged, with a head and a sequence."""
    chance = random.Random(seed)
    found = []
    for whole in (True, False):
        more = {"h": chance.randrange(HEADS), "b": chance.randrange(6), **parameters(chance, LARGE)}
        if shape == "square":
            unit = int(np.lcm(*tiles))
            length = unit * chance.randint(1, max(1, LONGEST // unit)) if whole else chance.randint(1, LONGEST)
            found.append(environment("square", length, **more))
            continue
        nq, n = (chance.randint(1, max(1, LONGEST // size)) * size for size in tiles)
        nq, n = (nq, n) if whole else (nq - chance.randrange(tiles[0]), n - chance.randrange(tiles[1]))
        found.append(environment("offset", n, nq, chance.randint(-300, 900), **more))
    return found


def check_program(keep: Expr, tiles: tuple[int, int], shape: str, seed: int) -> TileRelation:
    relation = derive(
        keep,
        block_q=tiles[0],
        block_k=tiles[1],
        shape=shape,  # type: ignore[arg-type]
        heads=HEADS,
        groups=HEADS,
        tables=(WINDOW,),
    )
    for env in environments(tiles, shape, seed):
        touched, full = exact_tiles(keep, env, tiles, shape)
        ways = (("query", relation.by_query, touched, full), ("key", relation.by_key, touched.T, full.T))
        for by, walk, t, f in ways:
            noted = any(note.startswith(f"by {by}") for note in relation.notes)
            ended[check_direction(walk, by, t, f, env, noted)] += 1  # type: ignore[arg-type]
    return relation


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    keep=predicates(3, LARGE),
    tiles=st.tuples(st.sampled_from(SIZES), st.sampled_from(SIZES)),
    shape=SHAPES,
    seed=st.integers(0, 9999),
)
def test_random_programs(keep: Term, tiles: tuple[int, int], shape: str, seed: int) -> None:
    check_program(keep.expr, tiles, shape, seed)


def test_most_walks_are_exact(capsys: pytest.CaptureFixture[str]) -> None:
    """After `test_random_programs`: what the ladder gave up is rare."""
    with capsys.disabled():
        print(f"\nwalks of random programs: {dict(ended)}", end=" ")
    total = sum(ended.values())
    assert ended["exact"] >= 0.8 * total
