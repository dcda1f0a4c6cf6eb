"""Lists of the touched tiles of every row, built on the device of the tables.

From: a predicate or a walk in closed form, tables, lengths and tile sizes.  To: a `TileList`, full tiles first.
Tiles are decided in chunks of rows of queries, so memory is that of the list and one chunk; lists by key are the
transpose of those by query.  Lists are kept for tables of the same content.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import BoxWalk, DistanceWalk, ListWalk, PickWalk, SlotWalk, Turned
from spdsl.diagnostics import placed
from spdsl.runtime.calls import Call, TileList
from spdsl.runtime.cells import joined, transposed
from spdsl.runtime.distance_lists import distance_lists, row_lists
from spdsl.runtime.evaluate import depends_on, tables_for
from spdsl.runtime.intervals import tile_bounds
from spdsl.runtime.looks import Looked
from spdsl.runtime.pairs import Pairs, pairs_by_batch
from spdsl.runtime.picks import picked_lists
from spdsl.runtime.ranges import Truth, truth_shape
from spdsl.runtime.recent import ByContent
from spdsl.runtime.slots import slot_lists
from spdsl.runtime.spans import spanned_keys
from spdsl.runtime.split import order_of
from spdsl.runtime.tile_grid import By, TileGrid
from spdsl.runtime.turned_lists import turned_lists
from spdsl.runtime.turns import with_turns
from spdsl.runtime.wide_lists import MOST, Decided
from spdsl.semantics.nodes import Load
from spdsl.semantics.rewrite import walk as parts_of

T = TypeVar("T")

Kind: TypeAlias = Literal["forward", "dq", "dkdv", "fused"]

_recent: ByContent[TileList] = ByContent(size=64)

_passing: ByContent[TileList | Decided] = ByContent(size=6)
"""Lists that are made of selections, which the next call will not have again: kept from forward to backward."""

_CHUNK = 1 << 20
"""Tiles (times heads and batches) that are bounded at once."""


class Tiles(Protocol):
    """The tiles of some pairs, ``rows`` times ``columns`` of them."""

    @property
    def rows(self) -> int:
        """Tiles of queries."""
        ...

    @property
    def columns(self) -> int:
        """Tiles of keys."""
        ...

    def of(self, rows: slice, columns: slice) -> Truth:
        """Which tiles are touched (``may``) and full (``must``), for ``[batch, heads, rows, columns]``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Touched tiles of a few rows: their numbers row by row, full ones first, and how many there are."""

    full: Tensor
    masked: Tensor
    tiles: Tensor


def lists_for(call: Call, kinds: Sequence[Kind]) -> Call:
    """The call with the lists that its kernels of these kinds need.

    Raises:
        SpatError: more than lists of 32 bits number (SP510).
    """
    with placed("SP510", call.plan.problem.pattern.span):
        return _with_lists(call, kinds)


def _with_lists(call: Call, kinds: Sequence[Kind]) -> Call:
    lists = dict(call.lists)
    for kind in kinds:
        kernel: KernelPlan = getattr(call.plan, kind)
        if kind in lists:
            continue
        match kernel.walk:
            case ListWalk(turned=Turned()):
                lists[kind] = turned_lists(call, kernel)
            case ListWalk():
                by: By = kernel.by
                heads = call.k.shape[1] if by == "key" else call.q.shape[1]
                lists[kind] = tile_lists(
                    call,
                    by=by,
                    block_q=kernel.block_q,
                    block_k=kernel.block_k,
                    split=heads if kernel.splits else None,
                    turns=kind == "fused" and call.repeats,
                )
            case DistanceWalk():
                lists[kind] = distance_lists(call, kernel)
            case PickWalk():
                lists[kind] = picked_lists(call, kernel)
            case SlotWalk() if kernel.marked is not None and kernel.marked.alike:
                lists[kind] = spanned_keys(call, kernel)
            case SlotWalk() | BoxWalk():
                pass
    return replace(call, lists=lists) if len(lists) > len(call.lists) else call


def listed(call: Call, kernel: KernelPlan) -> TileList:
    """The tiles of every row of a kernel; of a walk without lists of tiles, what it stands for.

    Boxes of a grid are no tiles of consecutive rows: there, the tiles that such a kernel would walk.
    """
    grid = TileGrid.of(kernel)
    match kernel.walk:
        case SlotWalk() as walk:
            return walk_lists(call, walk, grid)
        case DistanceWalk():
            return row_lists(call, kernel)
        case ListWalk(turned=None) if isinstance(found := call.lists.get(kernel.kind), TileList):
            return found
        case ListWalk() | BoxWalk() | PickWalk():
            return tile_lists(call, by=grid.by, block_q=grid.block_q, block_k=grid.block_k)


def tile_lists(
    call: Call,
    *,
    by: By,
    block_q: int,
    block_k: int,
    exact: bool | None = None,
    split: int | None = None,
    turns: bool = False,
) -> TileList:
    """The tiles of every query tile (or, ``by="key"``, of every key tile) for the set of a call.

    A tile is full when every existing pair of it is kept, and then never one with keys past the end or queries at
    negative positions; those are masked.  ``exact`` looks at all tiles in doubt (True) or at none (False); by default
    at few.  ``split`` is the number of heads of programs that split long rows.  With ``turns`` sums have an order.
    """
    kept = _passing if _selects(call) else _recent
    grid = TileGrid(by=by, block_q=block_q, block_k=block_k)
    rows = grid.key_tiles(call.keys) if by == "key" else grid.query_tiles(call.q.shape[2])
    wide = exact is None and _may_be_wide(call, grid)
    if wide:
        decided = _decided(call, block_q, block_k)
        lists = _derived(kept, decided, by, rows, lambda given: given.lists(by, rows))
    else:
        lists = _compact(call, block_q, block_k, exact)
        if by == "key":
            lists = _derived(kept, lists, "transposed", rows, lambda given: transposed(given, rows))
    if lists.begin.shape[1] not in (1, call.q.shape[1]):
        ratio = call.q.shape[1] // lists.begin.shape[1]
        lists = _derived(kept, lists, "for heads", ratio, partial(_for_heads, ratio=ratio))
    if split is not None:
        most = _most(call, grid, split) if wide else None
        numbers = (split, call.q.shape[0], most)
        in_order = partial(_in_order, batch=call.q.shape[0], heads=split, longest=most)
        lists = _derived(kept, lists, "in order", numbers, in_order)
    if turns:
        lists = _derived(kept, lists, "in turns", (), with_turns)
    return lists


_UNASKED = frozenset({"cuda"})
"""Kinds of devices that the host does not wait for where it can do without."""


def _may_be_wide(call: Call, grid: TileGrid) -> bool:
    """Whether rows may have room for all tiles: those of selections are made anew in each call, and few."""
    if not _selects(call) or call.places is not None or call.q.device.type not in _UNASKED:
        return False
    batch, heads, queries, _ = call.q.shape
    return batch * heads * -(-queries // grid.block_q) * -(-call.keys // grid.block_k) <= MOST


def _decided(call: Call, block_q: int, block_k: int) -> Decided:
    """What bounds say of all tiles; at those that they leave in doubt, nobody looks."""

    def made(tiles: Tiles, pairs: Pairs, grid: TileGrid, rows: int) -> Decided:
        del rows
        parts = list(_parts(tiles, pairs, grid))
        if not parts:
            nothing = torch.zeros(1, 1, tiles.rows, tiles.columns, dtype=torch.bool, device=pairs.device)
            return Decided(full=nothing, masked=nothing)
        outer = torch.broadcast_shapes(*(full.shape[:2] for full, _ in parts))
        full, masked = (torch.cat([x.expand(*outer, -1, -1) for x in each], -2) for each in zip(*parts, strict=True))
        return Decided(full=full, masked=masked)

    return _by_query(call, block_q, block_k, False, made, _only)


def _only(parts: Sequence[T]) -> T:
    """The one part that there is."""
    return parts[0]


def _compact(call: Call, block_q: int, block_k: int, exact: bool | None) -> TileList:
    """The lists by query, as long as what they hold."""
    return _by_query(call, block_q, block_k, exact, _listed, joined)


def _by_query(
    call: Call,
    block_q: int,
    block_k: int,
    exact: bool | None,
    make: Callable[[Tiles, Pairs, TileGrid, int], T],
    join: Callable[[Sequence[T]], T],
) -> T:
    """What ``make`` makes of tiles by query; of a set that the heads of a group share, once for each group."""
    keep, tables = call.plan.keep, tables_for(call.plan.tables, call.tables)
    grid = TileGrid(by="query", block_q=block_q, block_k=block_k)
    by_group = "h" not in depends_on(keep, tables)

    def made(pairs: Pairs, rows: int) -> T:
        pairs = replace(pairs, heads=pairs.groups) if by_group else pairs
        bounds = tile_bounds(keep, pairs, tables, block_q=block_q, block_k=block_k)
        return make(Looked(bounds=bounds, exact=exact), pairs, grid, rows)

    read = sorted({node.table for node in parts_of(keep) if isinstance(node, Load)})
    return _cached(call, made, join, grid, (id(keep), exact), keep, read)


def _derived(kept: ByContent[Any], given: T, how: str, numbers: Hashable, make: Callable[[T], TileList]) -> TileList:
    found: TileList = kept.get((id(given), how, numbers), (), given, lambda: make(given))
    return found


def _for_heads(lists: TileList, *, ratio: int) -> TileList:
    """Lists of groups, for each of their heads; the tiles themselves are there once."""
    begin, middle, end = (x.repeat_interleave(ratio, dim=1) for x in (lists.begin, lists.middle, lists.end))
    return replace(lists, begin=begin, middle=middle, end=end)


def _most(call: Call, grid: TileGrid, heads: int) -> int:
    """Tiles of a row at most, in all heads that a program goes through."""
    others = -(-call.q.shape[2] // grid.block_q) if grid.by == "key" else -(-call.keys // grid.block_k)
    return others * max(1, call.q.shape[1] // heads)


def _in_order(lists: TileList, *, batch: int, heads: int, longest: int | None) -> TileList:
    return replace(lists, order=order_of(lists, batch, heads, longest))


def _selects(call: Call) -> bool:
    """Whether tiles come from selections that are made anew in each call."""
    return any(table.listed for table in call.plan.tables)


def walk_lists(call: Call, walk: SlotWalk, grid: TileGrid) -> TileList:
    """The tiles of a walk in closed form, as lists; under residues the rows of the lists are programs."""
    tables = tables_for(call.plan.tables, call.tables)

    def made(pairs: Pairs, rows: int) -> TileList:
        return slot_lists(walk, grid, pairs, tables, rows)

    return _cached(call, made, joined, grid, (id(walk),), walk, tuple(call.tables))


def _cached(
    call: Call,
    made: Callable[[Pairs, int], T],
    join: Callable[[Sequence[T]], T],
    grid: TileGrid,
    parts: tuple[Hashable, ...],
    source: object,
    read: Sequence[str],
) -> T:
    """Lists made of the tables ``read``, or those that were made of tables like these."""
    rows = grid.query_tiles(call.q.shape[2]) if grid.by == "query" else grid.key_tiles(call.keys)
    numbers = (call.q_start, *call.parameters.values())
    sizes = (call.q.shape[:3], call.k.shape[1], call.keys, numbers, str(call.q.device), tuple(read))

    def make() -> T:
        return join([made(pairs, rows) for pairs in pairs_by_batch(call)])

    tensors = (call.places, *(call.tables[name] for name in read))
    selects = _selects(call)
    kept: ByContent[Any] = _passing if selects else _recent
    found: T = kept.get((join, parts, grid, sizes), tensors, source, make, compare=not selects)
    return found


def _listed(tiles: Tiles, pairs: Pairs, grid: TileGrid, rows: int) -> TileList:
    return _ordered([_part(full, masked) for full, masked in _parts(tiles, pairs, grid)], rows, pairs.device)


def _parts(tiles: Tiles, pairs: Pairs, grid: TileGrid) -> Iterator[tuple[Tensor, Tensor]]:
    """Which tiles are full and which are masked, some rows at a time."""
    # Without keys or queries there is nothing to decide.
    if tiles.rows > 0 and tiles.columns > 0:
        step = _rows_at_once(tiles)
        for start in range(0, tiles.rows, step):
            yield _decide(tiles, pairs, grid, slice(start, min(start + step, tiles.rows)))


def _rows_at_once(tiles: Tiles) -> int:
    """Rows of a chunk: heads and batches that do not differ are bounded once."""
    one = slice(0, 1)
    batches, heads, _, _ = truth_shape(tiles.of(one, one), one, one)
    return max(1, _CHUNK // (batches * heads * tiles.columns))


def _decide(tiles: Tiles, pairs: Pairs, grid: TileGrid, rows: slice) -> tuple[Tensor, Tensor]:
    columns = slice(0, tiles.columns)
    truth = tiles.of(rows, columns)
    padding, lacking = _not_whole(pairs, grid, rows, columns)
    shape = truth_shape(truth, rows, columns)
    may, must = (truth.may & ~padding).expand(shape), (truth.must & ~lacking).expand(shape)
    return may & must, may & ~must


def _part(full: Tensor, masked: Tensor) -> _Part:
    # Full tiles of a row stand before its masked ones when both are laid side by side.
    flat = torch.cat([full, masked], dim=-1).nonzero()[:, -1] % full.shape[-1]
    return _Part(full=full.sum(-1), masked=masked.sum(-1), tiles=flat.int())


def _not_whole(pairs: Pairs, grid: TileGrid, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """Tiles of padding alone, and tiles with pairs that do not exist and that a kernel computes all the same."""
    i = torch.arange(rows.start, rows.stop, device=pairs.device)[:, None]
    j = torch.arange(columns.start, columns.stop, device=pairs.device)[None, :]
    tiles = grid.within(i, j, pairs.q_start)
    first, end = pairs.q_start + tiles["i"] * grid.spans[0], (tiles["j"] + 1) * grid.spans[1]
    return first + grid.spans[0] <= 0, (first < 0) | (end > pairs.keys)


# ---------------------------------------------------------------- layout


def _ordered(parts: Sequence[_Part], rows: int, device: torch.device) -> TileList:
    """Rows index the tiles in the order in which they were made: chunk of rows, batch, head, row.

    Sequences or heads that one chunk tells apart share the tiles of a chunk that does not.  Rows past the existing ones
    have no tiles.
    """
    if not parts:
        nothing = torch.zeros(1, 1, rows, dtype=torch.int32, device=device)
        return TileList(
            begin=nothing, middle=nothing, end=nothing, tiles=torch.zeros(0, dtype=torch.int32, device=device)
        )
    outer = torch.broadcast_shapes(*(part.full.shape[:2] for part in parts))
    ends: list[tuple[Tensor, Tensor, Tensor]] = []
    done = 0
    for part in parts:
        counts = part.full + part.masked
        end = counts.flatten().cumsum(0).view(counts.shape) + done
        begin = end - counts
        ends.append((begin, begin + part.full, end))
        done += len(part.tiles)

    def joined_rows(each: Sequence[Tensor]) -> Tensor:
        whole = torch.cat([x.expand(*outer, -1) for x in each], dim=-1)
        return torch.nn.functional.pad(whole, (0, rows - whole.shape[-1])).int()

    begin, middle, end = (joined_rows(each) for each in zip(*ends, strict=True))
    return TileList(begin=begin, middle=middle, end=end, tiles=torch.cat([part.tiles for part in parts]))
