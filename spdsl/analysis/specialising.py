"""Which kernels are written with specialised warps, and why others are not: the one rule, for the plan and for people.

From a problem to a reason, or None where warps are specialised.  Tiles and walks are chosen elsewhere.
"""

from __future__ import annotations

from typing import Literal

from spdsl.analysis.plans import KernelPlan, Problem
from spdsl.semantics.nodes import BoundPattern, Coord, Load
from spdsl.semantics.rewrite import walk

WIDEST = 256
"""The largest head dim whose output a group of four warps holds in registers."""


def copies_tiles(problem: Problem, target: str) -> bool:
    """Whether the GPU's copy engine can load the tiles: its rows are multiples of 16 bytes, one tensor holds all
    rows, and products of the type run on tensor cores, which take their operands from shared memory."""
    rows_fit = problem.pattern.head_dim % 8 == 0 and problem.value_dim % 8 == 0
    return target in ("sm_90", "sm_100") and problem.dtype != "fp32" and problem.shape != "batched" and rows_fit


def looks_up(pattern: BoundPattern) -> bool:
    """Whether the set looks pairs up in lists: a static part of a union does not."""
    return bool(_looked_up(pattern))


def is_of_runs(pattern: BoundPattern) -> bool:
    """Whether all that a set looks up in lists is said of runs of queries and of keys, which tables of tokens tell:
    most tiles lie in one run of each side, and lists of tiles say all of them."""
    runs = {axis.name for axis in pattern.axes if axis.table is not None}
    loads = _looked_up(pattern)
    ends = (index for load in loads for index in load.indices[-2:])
    return bool(loads) and all(isinstance(index, Coord) and index.axis in runs for index in ends)


def _looked_up(pattern: BoundPattern) -> list[Load]:
    listed = {table.name for table in pattern.tables if table.listed}
    return [node for node in walk(pattern.attend.keep) if isinstance(node, Load) and node.table in listed]


def may_persist(kernel: KernelPlan, problem: Problem) -> bool:
    """Whether programs may do several tiles one after the other, so that each begins while the one before ends: where
    the output and the next queries fit the memory of an SM."""
    fits = kernel.kind == "forward" and max(problem.pattern.head_dim, problem.value_dim) <= 128
    return kernel.specialised and fits


def why_plain(
    kind: Literal["forward", "dq", "dkdv", "fused"],
    problem: Problem,
    target: str,
    *,
    boxes_copied: bool = True,
    marked: bool = False,
    turned: bool = False,
) -> str | None:
    """Why the warps of a kernel are all alike; None where one copies tiles for the others, and empty where there is no
    such kernel at all.

    ``boxes_copied`` says that the copy engine can load the kernel's boxes, if its tiles are boxes of a grid, ``marked``
    that tiles are gathered from marked rows, ``turned`` that lists of tiles say all that is looked up in lists.
    """
    if target != "sm_90" or kind in ("dq", "dkdv"):
        return ""
    if looks_up(problem.pattern) and not (turned or (kind == "forward" and is_of_runs(problem.pattern))):
        return "rows look their keys up in lists"
    given = dict(problem.tiles).get(kind)
    if given is not None and not given.specialised:
        return "tiles for warps that are all alike were chosen"
    if problem.dtype == "fp32":
        return "products of fp32 run without tensor cores"
    if problem.shape == "batched":
        return "the keys of a sequence begin and end inside the tensor, where copies of whole tiles would read others"
    if not copies_tiles(problem, target):
        return "rows of tensors are not multiples of 16 bytes, which the copy engine needs"
    if max(problem.pattern.head_dim, problem.value_dim) > WIDEST:
        return f"a head dim above {WIDEST} does not fit the registers"
    if marked:
        return "marked rows lie anywhere, and the copy engine takes neighbours"
    if not boxes_copied:
        return (
            "the copy engine cannot load the boxes: rows follow the grid, their places are apart, or it has many axes"
        )
    return None
