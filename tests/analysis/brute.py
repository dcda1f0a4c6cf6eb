"""What walks must satisfy, checked tile by tile against the mask itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from spdsl.analysis.tiles import SlotWalk, TileRelation, Walk
from spdsl.semantics.nodes import Expr
from tests.analysis.evaluate import By, evaluate, tiles_of
from tests.analysis.evaluate_rows import evaluate_many, tiles_of_rows


def mask_of(keep: Expr, env: Mapping[str, int], tables: Mapping[str, Any] | None = None) -> np.ndarray:
    """bool[nq, n] of the positions that exist; rows at negative positions are False."""
    q = env["q_start"] + np.arange(env["nq"])[:, None]
    k = np.arange(env["n"])[None, :]
    mask = evaluate_many(keep, {**env, "q": q, "k": k}, tables)
    return np.broadcast_to(mask, (env["nq"], env["n"])) & (q >= 0)


def tiles_of_mask(mask: np.ndarray, first: int, block_q: int, block_k: int) -> tuple[np.ndarray, np.ndarray]:
    """(touched, full) per tile; rows at negative positions (``first`` is that of row 0) do not exist."""
    nq, n = mask.shape
    tiles_q, tiles_k = -(-nq // block_q), -(-n // block_k)
    exists = np.zeros((tiles_q * block_q, tiles_k * block_k), bool)
    exists[:nq, :n] = (first + np.arange(nq))[:, None] >= 0
    kept = np.zeros_like(exists)
    kept[:nq, :n] = mask
    shape = (tiles_q, block_q, tiles_k, block_k)
    touched = (kept & exists).reshape(shape).any((1, 3))
    return touched, (kept | ~exists).reshape(shape).all((1, 3))


def check(
    relation: TileRelation,
    keep: Expr,
    env: Mapping[str, int],
    tables: Mapping[str, Any] | None = None,
    *,
    tight: bool = True,
    only_whole: bool = False,
) -> tuple[int, int]:
    """Compare both walks with the mask.  Returns (full tiles walked as full, full tiles) over both directions.

    ``tight`` also wants no tile walked in vain, except where only ghosts beyond a ragged end are kept.
    """
    mask = mask_of(keep, env, tables)
    touched, full = tiles_of_mask(mask, env["q_start"], relation.block_q, relation.block_k)
    found = total = 0
    for by, walk, t, f in (("query", relation.by_query, touched, full), ("key", relation.by_key, touched.T, full.T)):
        assert isinstance(walk, SlotWalk), walk
        whole = tight and env["nq"] % relation.block_q == 0 and env["n"] % relation.block_k == 0
        found += check_walk(walk, by, t, f, env, tables, tight=whole)
        total += int((t & f).sum())
    return found, total


def check_walk(
    walk: Walk,
    by: By,
    touched: np.ndarray,
    full: np.ndarray,
    env: Mapping[str, int],
    tables: Mapping[str, Any] | None,
    *,
    tight: bool,
) -> int:
    assert isinstance(walk, SlotWalk), walk
    rows, count = touched.shape
    many = tiles_of_rows(walk, rows, env, tables, by=by)
    found = 0
    for row in range(rows):
        unmasked, masked = tiles_of(walk, row, env, tables, by=by)
        where = f"{by} row {row} of {dict(env)} {tables}: full {unmasked} masked {masked}"
        walked = unmasked + masked
        assert len(set(walked)) == len(walked), f"twice: {where}"
        assert all(0 <= tile < count for tile in walked), f"out of range: {where}"
        needed = set(np.nonzero(touched[row])[0].tolist())
        assert needed <= set(walked), f"missing {sorted(needed - set(walked))}: {where}"
        assert all(full[row, tile] for tile in unmasked), f"not full: {where}"
        if tight:
            assert needed == set(walked), f"in vain {sorted(set(walked) - needed)}: {where}"
        assert many.tiles[many.begin[row] : many.middle[row]].tolist() == unmasked, where
        assert many.tiles[many.middle[row] : many.end[row]].tolist() == masked, where
        found += len(unmasked)
    return found


def environment(
    shape: str, length: int, queries: int | None = None, start: int | None = None, **more: int
) -> dict[str, int]:
    """Lengths for ``square`` or ``offset`` shapes, and values of the parameters of random predicates."""
    more = {"p_window": 20, "p_shift": -3, **more}
    if shape == "square":
        return {"n": length, "nq": length, "q_start": 0, **more}
    queries = length if queries is None else queries
    return {"n": length, "nq": queries, "q_start": length - queries if start is None else start, **more}


__all__ = ["check", "check_walk", "environment", "evaluate", "mask_of", "tiles_of_mask"]
