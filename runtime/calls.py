"""What back ends are given and give back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from spdsl.analysis.plans import Plan
from spdsl.runtime.recorder import Recorder


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOrder:
    """Rows of lists in the order of their programs, int32 ``[batch or 1, heads or 1, rows]``.

    The first ``long`` of every head are long rows, the longest of them with ``most`` tiles.
    """

    rows: Tensor
    long: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TileList:
    """Tiles of every row, for rows ``[batch or 1, heads or 1, rows]``.

    ``begin``, ``middle`` and ``end`` are int32 of that shape and index ``tiles`` (int32, flat): tiles from ``begin`` to
    ``middle`` are full, from ``middle`` to ``end`` masked, ascending in each part.  ``order`` is there
    for kernels that split long rows.  Lists of distances hold none further back than ``reach`` tiles.  ``bits`` has for
    each of the tiles a bit of every query that has picked it, where queries pick (`spdsl.runtime.picks`).  ``turns``
    (int32, flat) are the places of a row in another order, for kernels whose sums have one (`spdsl.runtime.turns`).
    """

    begin: Tensor
    middle: Tensor
    end: Tensor
    tiles: Tensor
    order: RowOrder | None = None
    reach: int = 0
    bits: Tensor | None = None
    turns: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """The size of the tensors."""
        more = (each for each in (self.bits, self.turns) if each is not None)
        return sum(each.nbytes for each in (self.begin, self.middle, self.end, self.tiles, *more))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that kernels read."""
        order = None if self.order is None else self.order.rows
        more = (each for each in (order, self.bits, self.turns) if each is not None)
        return self.begin, self.middle, self.end, self.tiles, *more


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedItems:
    """What the programs of a kernel by key do whose queries have picked blocks of keys; all int32.

    ``queries`` are runs of queries by the block that they have picked, ascending for each; blocks count over sequences
    and heads.  Item ``i`` are those from ``first[i]`` to ``last[i]`` of the block ``rows[i]``.  ``slots[i]`` says where
    its sums are kept, -1 if the block has no other item, -2 if there is no such item.  ``row_slots`` and ``row_parts``
    tell for each block where its sums begin and how many items it has.  Every head of a sequence has ``blocks``, and
    there is room for ``kept`` sums.  ``bits``, in int64, are those of the keys that each of the ``queries`` has picked,
    where a block is a tile of keys that are picked one by one.  With ``ends`` the
    ``queries`` are the first ones of pieces of runs of uneven length, and this says which are the first after these.
    """

    rows: Tensor
    first: Tensor
    last: Tensor
    slots: Tensor
    row_slots: Tensor
    row_parts: Tensor
    queries: Tensor
    blocks: int
    kept: int
    bits: Tensor | None = None
    ends: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that kernels read."""
        more = (each for each in (self.bits, self.ends) if each is not None)
        return self.rows, self.first, self.last, self.slots, self.row_slots, self.row_parts, self.queries, *more

    @property
    def nbytes(self) -> int:
        """The size of the tensors."""
        return sum(each.nbytes for each in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredItems:
    """What the programs of a kernel by query do that own queries which have picked one block; all int32.

    Item ``i`` are the ``queries`` from ``first[i]`` to ``last[i]``, which have picked the block ``rows[i]``; there are
    none where there is no such item.  ``entries`` ``[batch, lists of heads, queries, most]`` says where in ``queries``
    each pick of a query stands, -1 for none.  Every head of a sequence has ``blocks``.
    """

    rows: Tensor
    first: Tensor
    last: Tensor
    queries: Tensor
    entries: Tensor
    blocks: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that kernels read."""
        return self.rows, self.first, self.last, self.queries, self.entries

    @property
    def nbytes(self) -> int:
        """The size of the tensors."""
        return sum(each.nbytes for each in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpannedKeys:
    """All keys tile by tile, int32 ``[batch or 1, groups or 1, rows of tiles]``, those of a tile alike in the intervals
    of queries that they keep, and `n` for none; and what the walks of tiles are clamped by, int32 ``[batch or 1, groups
    or 1, tiles, 4]`` (see `Cuts`)."""

    rows: Tensor
    intervals: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that kernels read."""
        return self.rows, self.intervals

    @property
    def nbytes(self) -> int:
        """The size of the tensors."""
        return self.rows.nbytes + self.intervals.nbytes


Lists: TypeAlias = TileList | PickedItems | GatheredItems | SpannedKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Rows of one side, int32 ``[batch or 1, groups or 1, rows]``, ascending, the last ones past the end; and how many
    tiles of 64 consecutive rows they lie in."""

    rows: Tensor
    tiles: int

    @property
    def spread(self) -> int:
        """How many more tiles they lie in than they would fill."""
        return self.tiles - -(-self.rows.shape[-1] // BLOCK)


BLOCK = 64
"""Rows of a tile, where it matters how far apart marked rows stand."""


PLACES = 3
"""Numbers that say where a sequence stands: q_start, k_start, k_len."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """What a recorded call leaves open: how many keys there are, and the strides of ``K`` and ``V`` by the names that
    kernels give them."""

    keys: int
    strides: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The tensors and run-time numbers of one call.

    ``q`` is ``[batch, heads, nq, d]``, ``k`` ``[batch, groups, n, d]``, ``v`` ``[batch, groups, n, dv]``, any strides
    with the last dimension contiguous.  ``tables`` holds inputs and stage results by name, each with a leading batch
    axis of size 1 or batch unless its declaration names ``b``.  ``places`` is int32 ``[batch, 3]`` (q_start, k_start,
    k_len) for the shape ``batched``, else None.  ``lists`` maps the kind of a kernel (``forward``, ``dq``, ``dkdv``,
    ``fused``) to its lists, where its walk is a `ListWalk`, or to those of distances of a `DistanceWalk`, or to
    what is picked, of a `PickWalk`, or to keys in the order of what they keep.
    ``marks`` are the rows that the plan's kernels gather.
    ``parameters`` are the values of the pattern's free parameters by the names of their variables.  ``deterministic``
    asks for gradients that repeat bitwise.  What the call does on the device goes through its ``recorder``; with
    ``open`` it does so for other lengths, too (`spdsl.runtime.growing`).

    Where keys lie in pages, ``k`` and ``v`` are ``[pages, groups, page, d]``, and the rest of each row of ``places``
    are the numbers of a sequence's pages.
    """

    plan: Plan
    q: Tensor
    k: Tensor
    v: Tensor
    q_start: int = 0
    places: Tensor | None = None
    tables: dict[str, Tensor] = field(default_factory=dict)
    lists: dict[str, Lists] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    marks: Marks | None = None
    deterministic: bool = False
    recorder: Recorder = field(default_factory=Recorder, compare=False)
    open: Open | None = None

    @property
    def keys(self) -> int:
        """How many rows of keys a sequence has, with those that are not in use."""
        if self.open is not None:
            return self.open.keys
        if not self.plan.problem.page:
            return self.k.shape[2]
        assert self.places is not None
        return (self.places.shape[1] - PLACES) * self.k.shape[2]

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory on the device of the call that a kernel fills."""
        return self.recorder.empty(shape, dtype, self.q.device)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory that kernels add to, or do not fill."""
        return self.recorder.zeros(shape, dtype, self.q.device)

    def hold(self) -> None:
        """Tell the recorder which tensors are made of values: tables of stages, lists of tiles and of marked rows."""
        marks = () if self.marks is None else (self.marks.rows,)
        lists = (each for lists in self.lists.values() for each in lists.tensors)
        self.recorder.hold(*self.tables.values(), *lists, *marks)

    def fuses(self, wanted: frozenset[str]) -> bool:
        """Whether one kernel computes all gradients that are wanted: it is only on a GPU, and for all three tensors."""
        fused = self.plan.fused
        all_three = frozenset({"q", "k", "v"}) <= wanted
        return fused is not None and all_three and self.q.device.type != "cpu"

    @property
    def repeats(self) -> bool:
        """Whether sums must have one order."""
        return self.deterministic or torch.are_deterministic_algorithms_enabled()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """Gradients of a call; None for those not asked for.  ``tables`` by name, in the shape of the table."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    tables: dict[str, Tensor]


class Engine(Protocol):
    """A back end."""

    @property
    def name(self) -> str:
        """The name by which a user asks for it."""
        ...

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        """Output ``[batch, heads, nq, dv]`` in the type of ``q``, and LSE ``[batch, heads, nq]`` in fp32, natural
        log."""
        ...

    def backward(
        self, call: Call, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor | None, wanted: frozenset[str]
    ) -> Gradients:
        """Gradients of those among ``q k v`` and the names of tables that are in ``wanted``."""
        ...


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Element types by the names that plans use."""
