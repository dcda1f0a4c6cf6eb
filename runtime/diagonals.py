"""Sets of distances seen from pairs of blocks, without looking at pairs.

Of a block of queries and a block of keys, neighbours each, every distance from the smallest to the largest occurs: some
pair is in the set where the set has a distance in that interval.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spdsl.runtime.memo import Memo
from spdsl.runtime.ranking import counted
from spdsl.semantics.build import TRUE
from spdsl.semantics.graph import DISTANCE, Pool, Stage
from spdsl.semantics.joined_sets import of_distances
from spdsl.semantics.nodes import Expr, Load

if TYPE_CHECKING:
    from spdsl.runtime.arrays import Arrays


def distances_of(stages: dict[str, Stage], stage: Pool) -> Expr | None:
    """The set of distances of which a stage is ``any`` per pair of blocks; None if it is something else.

    It is made of sets of distances, and of what belongs to heads.
    """
    match stage:
        case Pool(kind="any", over="k", per=str(), windows=None, only=only, value=Load(table=name)) if only == TRUE:
            inner = stages.get(name)
        case _:
            return None
    match inner:
        case Pool(kind="any", over="q", per=str(), windows=None, only=only, value=value) if only == TRUE:
            return value if of_distances(stages, value) else None
        case _:
            return None


def seen_from_blocks(arrays: Arrays, stage: Pool, source: Expr, rows: Tensor) -> Tensor | None:
    """The set of pairs of blocks, ``[batch or 1, …, rows, blocks of keys]``; None if blocks are not neighbours."""
    lines = arrays.lines
    names = [axis.partition(".")[2] for axis in stage.axes if "." in axis]
    if len(names) != 2 or not all(lines.is_even(name) for name in names):
        return None
    row, column = rows[:, None], lines.points(f"k.{names[1]}")[None]
    q0, q1 = (lines.edge(names[0], row, last=last) for last in (False, True))
    k0, k1 = (lines.edge(names[1], column, last=last) for last in (False, True))
    q0, q1 = q0.clamp(min=max(lines.q_start, 0)), q1.clamp(max=lines.q_start + lines.nq - 1)
    k1 = k1.clamp(max=lines.n - 1)
    before = distances_before(arrays, stage, source)
    last = before.shape[-1] - 1
    low = (q0 - k1 - lines.first_distance).clamp(0, last)
    high = (q1 - k0 - lines.first_distance + 1).clamp(0, last)
    return (before[..., high] > before[..., low]) & (q0 <= q1) & (k0 <= k1)


def distances_before(arrays: Arrays, stage: Pool, source: Expr) -> Tensor:
    """How many distances of a set are smaller than each, and then all, int32 ``[batch or 1, …, distances + 1]``."""
    heads = tuple(axis for axis in stage.axes if "." not in axis)
    chosen = arrays.full(source, (*heads, DISTANCE), None, Memo())
    if not arrays.kernels:
        return torch.nn.functional.pad(counted(chosen), (1, 0))
    from spdsl.runtime.shared_keys import numbers_before

    return numbers_before(chosen)
