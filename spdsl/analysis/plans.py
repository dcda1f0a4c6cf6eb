"""What is computed, and how: the result of planning, complete enough to write kernels from or to execute.

All expressions here are expanded: arithmetic over ``q k h g b``, run-time extents, and loads of input or stage tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from spdsl.analysis.box_tiles import Boxes
from spdsl.analysis.tiles import (
    Cuts,
    Interval,
    ListWalk,
    Marked,
    Pairs,
    Picks,
    Residues,
    Shape,
    SlotWalk,
    Turned,
    Walk,
)
from spdsl.semantics.nodes import BoundPattern, Expr, Side, Table

Precision: TypeAlias = Literal["bf16", "fp16", "fp32"]


Kind: TypeAlias = Literal["forward", "dq", "dkdv", "fused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Queries and keys of a tile, warps of a program, and stages of its software pipeline.

    With ``specialised`` one warp copies for the others, as `KernelPlan` has it.
    """

    block_q: int
    block_k: int
    warps: int
    stages: int
    specialised: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Divided:
    """Keys for which ``where`` holds, by heads, beside blocks that queries pick, divided by the call's values.

    ``lists`` is the table of what runs of ``rows`` queries have picked of blocks of ``block`` keys; the rest of the set
    keeps pairs of run ``i`` in the blocks of ``touched`` alone.  The run time makes three ``tables``: of the marked
    keys those that are gathered, those that are met in the tiles of their blocks, and the lists of tiles of the latter
    that are not picked anyway (`spdsl.runtime.divided`).
    """

    lists: str
    where: Expr
    rows: int
    block: int
    touched: Interval
    tables: tuple[Table, Table, Table]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A bound pattern with the shape class and types of a call; everything a kernel is specialised on.

    ``tiles`` are those of kernels for which somebody has chosen them (`spdsl.analysis.cost`, `spdsl tune`); the others
    take the default ones.  ``few`` is how many rows a tile of the forward kernel has where a call has few queries
    (`spdsl.analysis.few`), else 0.  ``few_keys``: backward kernels by key have few programs, all of them long.
    ``page`` is how many rows a page of keys has where sequences' keys lie in pages, wherever their tables say; the
    shape is then ``batched``, and there are no gradients.  ``later``: the softmax goes on from what one of the same
    queries over other keys has left.  ``divided``: the set reads tables that are made of those of its pattern.
    """

    pattern: BoundPattern
    dtype: Precision
    value_dim: int
    shape: Shape
    tables: tuple[tuple[str, str], ...] = ()  # run-time element types of the inputs, as (name, torch dtype name)
    gradients: tuple[str, ...] = ()  # the tables for which a gradient is wanted
    tiles: tuple[tuple[Kind, Tiles], ...] = ()
    few: int = 0
    few_keys: bool = False
    page: int = 0
    later: bool = False
    divided: Divided | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageAxis:
    """One axis of a stage's result: ``b``, ``h``, ``g``, or a coordinate (``side`` and ``axis``; ``axis`` None is the
    position itself)."""

    name: str
    side: Side | None = None
    axis: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the set that is computed before the kernels run: a table the kernels load from.

    ``value`` is the smallest bool expression around a `Reduce` or `Top` (a `Top` itself, or a comparison of
    reductions), or the reduction itself if that expression depends on single positions, or a costly part of a bias
    that depends on keys alone; its coordinates are not expanded.  The table ``name`` is like an input: one axis for
    each of ``axes``, the type of ``value``, and a leading batch axis of size 1 or batch unless ``b`` is among the axes.
    `Plan.tables` declares it after the inputs.
    """

    name: str
    value: Expr
    axes: tuple[StageAxis, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableGradient:
    """The gradient of one load: sum over pairs of ``factor`` times the gradient of the logit, at ``indices``.

    ``by`` says on what the position of the element depends besides ``b h g``: nothing, the query, the key, their
    distance ``q - k``, or both.  ``of`` is ``bias`` or ``sink_logit``.
    """

    table: str
    of: Literal["bias", "sink_logit"]
    factor: Expr
    indices: tuple[Expr, ...]
    by: Literal["none", "query", "key", "distance", "pair"]


GROUP_ROWS = 64
"""Rows of a group of four warps: those of its matrix instructions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPlan:
    """Tile sizes, launch options and walk of one kernel; the walk is by query for ``forward`` and ``dq``, else by key.
    With ``residues`` rows are gathered by residue class, and every class has its own tiles.  With ``boxes`` tiles are
    boxes of a grid, and the walk is over those.  With ``marked`` the rows of one side are gathered from wherever they
    stand.  With ``picks`` a tile holds several heads of a few queries, and meets the keys that these have picked.  With
    ``descriptors`` the GPU's copy engine loads the tiles of Q, K, V and dO (TMA), else every thread its own part.  With
    ``splits`` rows that are much longer than the others are computed in parts, by several programs; all rows, where the
    walk has no bounds of long ones.  With ``specialised`` one warp of a program copies tiles while groups of four warps
    compute, each for `GROUP_ROWS` rows of the program's own (Gluon); ``stages`` is then the size of the ring of tiles
    in between.  With ``pairs`` a program owns two tiles that need not be neighbours, one for each group, and walks what
    either touches.  With ``persistent`` a program may do several tiles of its own one after the other.  With ``packed``
    a tile has so many rows for each of its ``block_q`` queries: those of the query heads of a group, and what is
    missing to a power of two.  With ``few`` it is the kernel for few queries, whose rows are all in parts.
    """

    kind: Kind
    block_q: int
    block_k: int
    warps: int
    stages: int
    walk: Walk
    notes: tuple[str, ...] = ()
    residues: Residues | None = None
    boxes: Boxes | None = None
    marked: Marked | None = None
    picks: Picks | None = None
    pairs: Pairs | None = None
    descriptors: bool = False
    splits: bool = False
    specialised: bool = False
    persistent: bool = False
    packed: int = 1
    few: bool = False
    plain: str = ""  # why warps are not specialised, where there are such kernels

    @property
    def tiles(self) -> Tiles:
        """Tile sizes and launch options."""
        return Tiles(
            block_q=self.block_q,
            block_k=self.block_k,
            warps=self.warps,
            stages=self.stages,
            specialised=self.specialised,
        )

    @property
    def by(self) -> Literal["query", "key"]:
        """On which side a program owns a tile."""
        return "key" if self.kind in ("dkdv", "fused") else "query"

    @property
    def groups(self) -> int:
        """How many groups of four warps compute, where warps are specialised."""
        own = self.block_k if self.by == "key" else self.block_q
        return own // GROUP_ROWS if self.pairs is None else 2

    @property
    def counted(self) -> bool:
        """Whether the tiles of all heads and sequences are counted through, so that heads may take turns."""
        return self.kind == "forward" and self.specialised and not self.splits

    @property
    def turned(self) -> Turned | None:
        """What queries have picked, where the walk is that by key."""
        return self.walk.turned if isinstance(self.walk, ListWalk) else None

    @property
    def classes(self) -> int:
        """How many residue classes the rows are parted into; 1 for tiles of consecutive rows."""
        return 1 if self.residues is None else self.residues.modulus

    def gathers(self, side: Side) -> bool:
        """Whether the rows of a side are gathered one by one."""
        return self.marked is not None and self.marked.side == side

    @property
    def cuts(self) -> Cuts | None:
        """The cuts of the walk, if it has any: its intervals have to be found before the kernel runs."""
        return self.walk.cuts if isinstance(self.walk, SlotWalk) else None

    @property
    def spans(self) -> tuple[int, int]:
        """How many rows of queries and of keys lie between the starts of neighbouring tiles of a class."""
        return self.queries * self.classes, self.block_k * self.classes

    @property
    def queries(self) -> int:
        """How many queries a tile of them holds; each has several rows where heads are packed."""
        return self.block_q if self.picks is None else self.picks.positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is decided about a problem before text is written.

    ``fused`` computes what ``dq`` and ``dkdv`` do in one walk, with sums of dQ in an order if that is asked for; None
    where there is no such kernel. ``more`` are the plans of the other parts of a union (`spdsl.analysis.unions`),
    which have no pair in common with this one nor with each other; ``place`` is where a plan stands among them.
    Kernels of a later place go on from the output and LSE that are there already, and add to the gradients.
    ``together`` is the plan of the whole union as one set, where the values of a call decide which is better: whether
    marked rows stand apart.  ``union`` is the problem of all parts, of which ``problem`` is the first.
    """

    problem: Problem
    keep: Expr
    bias: Expr | None
    scale: float
    softcap: float | None
    sink_logit: Expr | None
    tables: tuple[Table, ...]
    stages: tuple[Stage, ...]
    gradients: tuple[TableGradient, ...]
    forward: KernelPlan
    dq: KernelPlan
    dkdv: KernelPlan
    fused: KernelPlan | None = None
    more: tuple[Plan, ...] = ()
    place: int = 0
    together: Plan | None = None
    union: Problem | None = None

    @property
    def parts(self) -> tuple[Plan, ...]:
        """This plan and those of the other parts, in the order in which they run."""
        return (self, *self.more)

    @property
    def every(self) -> tuple[Plan, ...]:
        """All plans whose kernels calls may run."""
        return self.parts if self.together is None else (*self.parts, self.together)

    @property
    def name(self) -> str:
        """What its kernels are called after."""
        name = self.problem.pattern.name
        return f"{name}_part{self.place + 1}" if self.place else name

    @property
    def kernels(self) -> tuple[KernelPlan, ...]:
        """The kernels that walk tiles."""
        separate = (self.forward, self.dq, self.dkdv)
        return separate if self.fused is None else (*separate, self.fused)
