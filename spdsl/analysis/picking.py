"""Kernels that walk what queries have picked: when there is one, and its plan.

From the stages of a set whose pairs all belong to a selection.  Tiles are packed with the heads that share a list, so
that what is read of keys and values, which bounds such kernels, serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from spdsl.analysis.picks import FINEST, Picked, conjunction, picked
from spdsl.analysis.plans import GROUP_ROWS, KernelPlan, Kind, Problem, TableGradient, Tiles
from spdsl.analysis.specialising import copies_tiles, why_plain
from spdsl.analysis.stages import Staged
from spdsl.analysis.tiles import Interval, PickOrder, Picks, PickWalk, Slot, SlotWalk, TileRelation, Walk, lanes_of
from spdsl.analysis.tiling import BITS, FEW, KEPT, TILE, picked_tiles, positions_of
from spdsl.semantics.nodes import Apply, Const, Expr, Extent, Index, Load, Table
from spdsl.semantics.rewrite import conjuncts, free_indices
from spdsl.semantics.rewrite import walk as nodes_of


def why_unpicked(kind: Kind, staged: Staged, problem: Problem, gradients: Sequence[TableGradient]) -> str | None:
    """Why a kernel does not walk what queries have picked; None where it does, and empty where nothing is picked."""
    pattern = problem.pattern
    chosen = picked(staged.keep, staged.tables)
    if chosen is None or problem.shape == "batched" or kind == "fused":
        return ""
    heads = 1 if chosen.by_head else pattern.heads // pattern.groups
    if kind == "dkdv" and heads < pattern.heads // pattern.groups:
        return "heads that share keys have picked each for itself"
    if kind == "dkdv" and any(each.by == "key" for each in gradients):
        return "a gradient is summed by key for each head"
    if kind == "dq" and gradients and _order(kind, chosen, problem) == "gathered":
        return "a gradient is summed by query"
    return None


def _order(kind: Kind, chosen: Picked, problem: Problem) -> PickOrder:
    """Which queries make a tile: with few heads to a list, those that share a block, wherever they are."""
    pattern = problem.pattern
    heads = 1 if chosen.by_head else pattern.heads // pattern.groups
    if kind == "dkdv":
        return "gathered"
    if _alike(chosen, problem, heads):
        return "alike"
    if chosen.fine or chosen.runs:
        return "union"
    kept = chosen.rows == 1 and chosen.most is not None and chosen.most <= KEPT
    return "gathered" if lanes_of(heads) <= FEW and kept else "union"


def is_alike(chosen: Picked, problem: Problem) -> bool:
    """Whether the queries of a tile of the forward have picked alike, and a tile lies in one block of keys."""
    fills = chosen.rows % GROUP_ROWS == 0 and chosen.block % FINEST == 0
    return fills and not chosen.runs and _order("forward", chosen, problem) == "alike"


def _alike(chosen: Picked, problem: Problem, heads: int) -> int:
    """The most queries of a tile that have picked alike, where runs begin where tiles do and fill them; else 0.

    A tile of a run that is shorter than others has fewer rows: one matrix instruction takes 16.
    """
    if problem.shape not in ("square", "origin") or chosen.runs:
        return 0
    most = positions_of(problem.dtype, heads)
    if chosen.rows % most == 0:
        return most
    short = chosen.rows > 1 and most % chosen.rows == 0 and chosen.rows * lanes_of(heads) >= FINEST
    return chosen.rows if short else 0


def _positions(order: PickOrder, chosen: Picked, problem: Problem, heads: int) -> int:
    """How many queries a tile holds: each has a bit where any of them may have picked a block."""
    match order:
        case "alike":
            return _alike(chosen, problem, heads)
        case "union":
            return min(BITS, positions_of(problem.dtype, heads))
        case "gathered":
            return positions_of(problem.dtype, heads)


def picking(
    kind: Kind, staged: Staged, problem: Problem, target: str, relation: Callable[..., TileRelation]
) -> KernelPlan:
    """The kernel of a set whose pairs queries have picked: its tiles hold all heads that share a list.

    ``relation`` gives that of a set in ``tiles`` of some size.
    """
    pattern = problem.pattern
    chosen = picked(staged.keep, staged.tables)
    assert chosen is not None
    heads = 1 if chosen.by_head else pattern.heads // pattern.groups
    order = _order(kind, chosen, problem)
    alike = order == "alike"
    # A tile of keys is filled by several blocks where one is too small for it, and no query needs bits for that.
    fine = chosen.fine or (alike and chosen.block < TILE and TILE % chosen.block == 0)
    tiles = picked_tiles(
        kind,
        dtype=problem.dtype,
        head_dim=pattern.head_dim,
        value_dim=problem.value_dim,
        positions=_positions(order, chosen, problem, heads),
        heads=heads,
        block=chosen.block,
        run=chosen.rows,
        fine=fine,
        gathered=order == "gathered",
        target=target,
    )
    streamed = kind == "dkdv" and _is_streamed(chosen, problem, target, heads)
    tiles = STREAMED if streamed else tiles
    quiet = None if fine else _quiet(chosen.keep, staged.tables)
    copied = None
    if kind == "forward" and alike and heads == 1:
        copied = _copied_tiles(chosen, problem, target, looks=quiet is not None)
    if copied is not None:
        tiles, streamed, fine = copied, True, chosen.block < copied.block_k
    given = dict(problem.tiles).get(kind)
    lanes = lanes_of(heads)
    apart = given is not None and (given.block_k % chosen.block if fine else chosen.block % given.block_k) == 0
    if given is not None and not given.specialised and apart:
        # Queries of a tile have a bit each where it matters which of them has picked a block.
        fits = given.block_q % lanes == 0 and (order == "gathered" or given.block_q // lanes <= BITS)
        tiles, streamed = (given, False) if fits else (tiles, streamed)
    positions = tiles.block_q // lanes
    gathered = order == "gathered"
    grain = replace(tiles, block_q=1 if gathered else positions, block_k=1 if fine and not gathered else tiles.block_k)
    quiet = quiet if streamed and kind == "forward" else None
    rest = relation(grain, keep=chosen.keep if quiet is None else quiet)
    walked = rest.by_key if gathered else rest.by_query
    count = Extent(name="nq") if gathered else tiles_in(Extent(name="n"), grain.block_k)
    return KernelPlan(
        kind=kind,
        block_q=tiles.block_q,
        block_k=tiles.block_k,
        warps=tiles.warps,
        stages=tiles.stages,
        walk=PickWalk(bounds=one_slot(walked, count), speaks=quiet is not None),
        notes=rest.notes,
        plain="" if streamed else why_plain(kind, problem, target) or "",
        picks=Picks(
            table=chosen.table,
            rows=positions if chosen.runs else chosen.rows,
            block=chosen.block,
            heads=heads,
            positions=positions,
            order=order,
            keep=chosen.keep,
            fine=fine,
            runs=chosen.runs,
        ),
        specialised=streamed,
        # Where both sides are needed and one is gathered, it has no neighbours that the copy engine could take.
        descriptors=kind != "dkdv" and copies_tiles(problem, target),
    )


def _quiet(keep: Expr, tables: Sequence[Table]) -> Expr | None:
    """The set without its clauses that tables tell of single keys, of which most tiles have none; None where there are
    no such clauses, or others that read tables of keys."""
    listed = {table.name for table in tables if table.listed}
    clauses = conjuncts(keep)
    spoken = [clause for clause in clauses if _tells_of_keys(clause, listed)]
    rest = [clause for clause in clauses if clause not in spoken]
    read = (node for clause in rest for node in nodes_of(clause) if isinstance(node, Load))
    return conjunction(rest) if spoken and not any("k" in free_indices(node) for node in read) else None


def _tells_of_keys(clause: Expr, listed: set[str]) -> bool:
    inner = clause.args[0] if isinstance(clause, Apply) and clause.op == "not" else clause
    free = free_indices(inner)
    return isinstance(inner, Load) and inner.table not in listed and "k" in free and "q" not in free


STREAMED = Tiles(block_q=64, block_k=64, warps=4, stages=2, specialised=True)
"""Tiles of a kernel by key for which a warp copies queries: two programs of this size share an SM of Hopper."""


def _copied_tiles(chosen: Picked, problem: Problem, target: str, *, looks: bool) -> Tiles | None:
    """The tiles of a forward in which queries of a tile have picked alike, where the copy engine can take blocks from
    where they lie; None where it cannot, and where single blocks of narrow rows are as fast without it, unless nobody
    else ``looks`` at tables for the warps that compute.

    By what was fastest on an H200: two groups where both sides fill their tiles, or where long runs of queries share
    blocks that are put together; elsewhere one group, so that two programs share an SM.
    """
    wide = problem.value_dim > GROUP_ROWS
    together, long = chosen.block in _PUT_TOGETHER, chosen.rows % (2 * GROUP_ROWS) == 0
    large = chosen.block % (2 * TILE) == 0 or (chosen.block in _LARGE and not looks)
    whole = chosen.rows % GROUP_ROWS == 0 and (chosen.block % TILE == 0 or together)
    dims = {problem.pattern.head_dim, problem.value_dim}
    if target != "sm_90" or not copies_tiles(problem, target) or not whole or dims not in ({64}, {128}):
        return None
    if long and large:
        return replace(_COPIED, block_q=2 * GROUP_ROWS, block_k=2 * TILE, stages=2 if wide else 4)
    if long and wide and together:
        return replace(_COPIED, block_q=2 * GROUP_ROWS, stages=4)
    return _COPIED if wide or together or long or looks else None


_COPIED = Tiles(block_q=GROUP_ROWS, block_k=TILE, warps=4, stages=3, specialised=True)
"""One group of four warps, as in `default_tiles`."""

_PUT_TOGETHER = (8, 16, 32)
"""Blocks of which several make a tile: a swizzled tile is made of runs of 8 rows."""

_LARGE = (32, 64)
"""Blocks of which so few make a tile of twice as many keys that a warp reads where they are beside all else."""

_LEAST = 8
"""Heads of a list, at least, so that the copy engine has enough to move at once."""


def _is_streamed(chosen: Picked, problem: Problem, target: str, heads: int) -> bool:
    """Whether one warp copies the queries of a kernel by key, where its four others hold all sums: plain logits, and a
    rest of the set that reads no table and is the same for all heads."""
    pattern = problem.pattern
    dims = {pattern.head_dim, problem.value_dim}
    scale = pattern.attend.scale
    plain = scale is None or (isinstance(scale, Const) and scale.value != 0)
    plain = plain and pattern.attend.bias is None and pattern.attend.softcap is None
    reads = any(isinstance(node, Load) or node == Index(name="h") for node in nodes_of(chosen.keep))
    fits = heads == lanes_of(heads) and _LEAST <= heads <= STREAMED.block_q and chosen.block % STREAMED.block_k == 0
    fits = fits and dims == {128} and problem.shape != "batched" and not chosen.fine and not chosen.runs
    return target == "sm_90" and copies_tiles(problem, target) and plain and not reads and fits


def one_slot(walk: Walk, count: Expr) -> Slot:
    """The one run of neighbouring tiles of a walk, the same for all heads; all of so many, none of them full, where it
    has no such form."""
    match walk:
        case SlotWalk(slots=(Slot(step=1, filter=None) as slot,), cuts=None) if _is_plain(slot):
            return slot
        case _:
            return Slot(touched=Interval(lo=Const(value=0), hi=count))


def _is_plain(slot: Slot) -> bool:
    """Whether the bounds are numbers that do not differ from head to head, and are not read from tables."""
    ends = [end for each in (slot.touched, slot.full) if each is not None for end in (each.lo, each.hi)]
    return not any("h" in free_indices(end) or any(isinstance(node, Load) for node in nodes_of(end)) for end in ends)


def tiles_in(length: Expr, block: int) -> Expr:
    """How many tiles of ``block`` rows there are among ``length``."""
    more = Apply(op="add", args=(length, Const(value=block - 1)), dtype="int")
    return Apply(op="floordiv", args=(more, Const(value=block)), dtype="int")
