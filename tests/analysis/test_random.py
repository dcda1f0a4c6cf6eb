"""Random affine predicates: walks and evaluation against brute force."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spdsl.analysis.relation import tile_relation
from spdsl.analysis.tiles import SlotWalk
from spdsl.semantics.nodes import Expr
from tests.analysis.brute import check_walk, environment, mask_of, tiles_of_mask
from tests.analysis.build import Term
from tests.analysis.evaluate import evaluate
from tests.analysis.programs import HEADS, SHAPES, SMALL, WINDOW, parameters, predicates

VALUES = {"w": list(SMALL.values)}
TILES = ((16, 16), (16, 8), (8, 16), (32, 16), (16, 24), (4, 16), (8, 8))


def check_predicate(keep: Expr, tiles: tuple[int, int], shape: str, seed: int) -> str:
    """Check both walks at random lengths; says how each ended."""
    relation = tile_relation(
        keep,
        block_q=tiles[0],
        block_k=tiles[1],
        shape=shape,
        heads=HEADS,
        groups=HEADS,
        tables=[WINDOW],  # type: ignore[arg-type]
    )
    chance = random.Random(seed)
    ends = ["slots" if isinstance(walk, SlotWalk) else "list" for walk in (relation.by_query, relation.by_key)]
    for _ in range(4):
        length = chance.choice([1, 5, 16, 17, 40, 64, 96, 130])
        more = {"h": chance.randrange(HEADS), "b": chance.randrange(6), **parameters(chance)}
        if shape == "offset":
            env = environment("offset", length, chance.randint(1, 100), chance.randint(-30, 140), **more)
        else:
            env = environment("square", length, **more)
        mask = mask_of(keep, env, VALUES)
        touched, full = tiles_of_mask(mask, env["q_start"], *tiles)
        rows = [("query", relation.by_query, touched, full), ("key", relation.by_key, touched.T, full.T)]
        for by, walk, touched_rows, full_rows in rows:
            if isinstance(walk, SlotWalk):
                whole = not relation.notes and env["nq"] % tiles[0] == 0 and env["n"] % tiles[1] == 0
                check_walk(walk, by, touched_rows, full_rows, env, VALUES, tight=whole)  # type: ignore[arg-type]
    return "+".join(ends) + ("!" if relation.notes else "")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    keep=predicates(),
    tiles=st.sampled_from(TILES),
    shape=SHAPES,
    seed=st.integers(0, 99),
)
def test_random_predicates(keep: Term, tiles: tuple[int, int], shape: str, seed: int) -> None:
    check_predicate(keep.expr, tiles, shape, seed)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(keep=predicates(), at=st.tuples(st.integers(0, 60), st.integers(0, 60)), batch=st.integers(0, 5))
def test_scalar_and_array_evaluation_agree(keep: Term, at: tuple[int, int], batch: int) -> None:
    env = environment("square", 61, h=3, b=batch)
    mask = mask_of(keep.expr, env, VALUES)
    assert mask[at] == evaluate(keep.expr, {**env, "q": at[0], "k": at[1]}, VALUES)
