"""What the kernels of a plan share: scopes, positions, the predicate with the bounds of the tensors, arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from spdsl.analysis.plans import KernelPlan, Plan
from spdsl.analysis.tiles import DistanceWalk, ListWalk, PickWalk
from spdsl.codegen.arith import add, both, compare, index, mod, number, sub
from spdsl.codegen.blocks import (
    Argument,
    Block,
    BoxPositions,
    By,
    Define,
    EachItem,
    FetchedTiles,
    Gather,
    GatheredKeys,
    If,
    ListedPositions,
    LoadTile,
    Loop,
    Mask,
    PackedPositions,
    PageOf,
    Part,
    Pointers,
    Positions,
    Program,
    RowBase,
    RowBits,
    StoreTile,
    Stream,
    ToldTiles,
    WorkItem,
)
from spdsl.codegen.boxes import flag_of, own_box, programs
from spdsl.codegen.edges import with_edges
from spdsl.codegen.expressions import truncated
from spdsl.codegen.hoist import Hoist
from spdsl.codegen.picks import PICKED, has_bits, packed_keep, packed_program
from spdsl.codegen.selected import GROUP, by_tiles
from spdsl.codegen.tables import Tables
from spdsl.codegen.walks import MASKED, Mode
from spdsl.semantics.nodes import Const, Expr, Extent, Load, Node, Side
from spdsl.semantics.rewrite import free_indices, walk

LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453

WIDE = 64
"""The least head dim at which the copy engine loads rows of several heads as one tile: 128 bytes of 16-bit types."""

COLUMNS = 64
"""The fewest columns of tiles of the fused backward kernel, and those of dQ that a group of its warps sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One kernel under construction."""

    plan: Plan
    kernel: KernelPlan
    by: By
    tables: Tables = field(init=False)
    hoist: Hoist = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tables", Tables(self.plan, self.kernel.cuts))
        object.__setattr__(self, "hoist", Hoist(self._scopes(), self.tables.gather))
        self.hoist.known(GROUP.name, 0)

    @property
    def ratio(self) -> int:
        """Query heads for each key head."""
        return self.plan.problem.pattern.heads // self.plan.problem.pattern.groups

    @property
    def own_side(self) -> Side:
        """The side whose tiles programs own."""
        return "q" if self.by == "query" else "k"

    @property
    def own_block(self) -> int:
        """Rows of a tile of that side."""
        return self.kernel.block_q if self.by == "query" else self.kernel.block_k

    @property
    def own_heads(self) -> int:
        """Heads of the side that programs own."""
        pattern = self.plan.problem.pattern
        return pattern.groups if self.by == "key" or self.packed else pattern.heads

    @property
    def packed(self) -> int | None:
        """How many rows of a tile of queries belong to one query, where heads of a group share it."""
        return self.kernel.packed if self.kernel.packed > 1 else None

    @property
    def listed(self) -> bool:
        """Whether tiles come from lists."""
        return isinstance(self.kernel.walk, ListWalk)

    @property
    def heads_first(self) -> bool:
        """Whether the first tiles of all heads start first: where programs take a whole SM for themselves."""
        return self.kernel.kind == "fused"

    @property
    def loops_over_heads(self) -> bool:
        """Whether a program loops over the query heads of its group."""
        return self.by == "key" and self.ratio > 1 and self.kernel.picks is None

    @property
    def classes(self) -> int | None:
        """How many residue classes part the rows, if they are."""
        return None if self.kernel.residues is None else self.kernel.residues.modulus

    @property
    def boxes(self) -> int | None:
        """How many boxes of its own side there are, if tiles are boxes of a grid."""
        return None if self.kernel.boxes is None else programs(self.kernel.boxes, self.by)

    def is_whole(self, side: Side) -> bool:
        """Whether every row of every tile of a side is known to exist."""
        boxes = self.kernel.boxes
        return boxes is not None and not boxes.ragged(side) and not boxes.tail

    @property
    def has_tail(self) -> bool:
        """Whether there may be rows after those of a grid."""
        return self.kernel.boxes is not None and self.kernel.boxes.tail

    def is_scattered(self, side: Side) -> bool:
        """Whether every row of a tile has an address of its own."""
        fine = side == "k" and self.gathers_keys
        return self.has_tail or self.kernel.gathers(side) or self.is_packed(side) or fine

    @property
    def gathers_keys(self) -> bool:
        """Whether a tile holds keys of several blocks that queries have picked."""
        return self.by == "query" and self.kernel.picks is not None and self.kernel.picks.fine

    def is_copied(self, side: Side) -> bool:
        """Whether the copy engine loads the tiles of a side: not where their rows are gathered, nor those of several
        heads where they are narrow, which came out wrong on an H200 (rows of 32 bytes)."""
        picks = self.kernel.picks
        scattered = picks is not None and (picks.order == "gathered" if side == "q" else self.gathers_keys)
        dims = self.plan.problem.pattern.head_dim, self.plan.problem.value_dim
        narrow = picks is not None and side == "q" and min(padded(dim) for dim in dims) < WIDE
        return self.kernel.descriptors and not scattered and not narrow

    def is_packed(self, side: Side) -> bool:
        """Whether the rows of a tile are those of several heads."""
        return side == "q" and (self.kernel.picks is not None or self.packed is not None)

    @property
    def after(self) -> int | None:
        """How many rows the grid has, if rows may follow."""
        return self.kernel.boxes.places if self.kernel.boxes is not None and self.has_tail else None

    def _scopes(self) -> tuple[frozenset[str], ...]:
        """Program, own tile, head of the group (by key, where heads share keys), walked tile."""
        tile, other = ("i", "j") if self.by == "query" else ("j", "i")
        own, walked = ({"q"}, {"k", other}) if self.by == "query" else ({"k"}, {"q", other})
        program = {"b", "g", tile} | (set() if self.loops_over_heads or self.packed else {"h"})
        own |= {"h"} if self.packed else set()
        for axis in range(0 if self.kernel.boxes is None else len(self.kernel.boxes.extents)):
            program |= {f"{tile}{axis}", f"class{axis}"}
            own |= {f"{side}{axis}" for side in own if len(side) == 1}
            walked |= {f"{name}{axis}" for name in walked if len(name) == 1}
        program |= {"q_class", "k_class"} if self.classes else set()
        if self.kernel.picks is not None:
            # Heads are those of rows of queries, on whichever side these are.
            program -= {"h"}
            own, walked = (own | {"h"}, walked) if self.by == "query" else (own, walked | {"h"})
        scopes = [program, program | own]
        if self.loops_over_heads:
            scopes.append(scopes[-1] | {"h"})
        return tuple(frozenset(scope) for scope in (*scopes, scopes[-1] | walked))

    def keep(self, exist: Expr | None = None) -> Expr:
        """The predicate in which pairs that do not exist are left out, and those for which ``exist`` does not hold.

        Query rows past the end need no test: their results are not stored, or their LSE is +inf.
        """
        gathered = self.kernel.residues or self.kernel.boxes or self.kernel.marked
        keep = by_tiles(self.plan, self.kernel) if gathered is None else gathered.keep
        found = both(None, truncated(keep))
        if self.kernel.picks is not None:
            found = packed_keep(self.kernel.picks, self.by)
            self.hoist.known(PICKED.name, len(self._scopes()) - 1)
        if self.by == "query" and not self.is_whole("k"):
            found = both(found, compare("lt", index("k"), Extent(name="n")))
        if self.plan.problem.shape != "square":
            found = both(found, compare("ge", index("q"), number(0)))
        found = both(found, exist)
        return Const(value=True) if found is None else with_edges(found, "k" if self.by == "query" else "q")

    @property
    def bias(self) -> Expr | None:
        """The bias with truncating divisions."""
        return None if self.plan.bias is None else truncated(self.plan.bias)

    @property
    def folded(self) -> bool:
        """Whether the scale is left to the exponent of the softmax."""
        return self.plan.softcap is None and self.plan.bias is None and self.plan.scale > 0

    @property
    def factor(self) -> float:
        """The factor from products, or from finished logits, to exponents of two."""
        return self.plan.scale * LOG2E if self.folded else 1.0

    def place_keep(self, keep: Expr) -> tuple[tuple[Block, ...], Expr]:
        """As `place_tile`, for the predicate, with what it needs besides."""
        picks = self.kernel.picks
        has = picks is not None and has_bits(picks, self.by)
        bits: tuple[Block, ...] = (RowBits(each=picks.fine, by=self.by),) if picks is not None and has else ()
        blocks, placed = self.place_tile(keep)
        return (*bits, *blocks), placed

    def place_tile(self, expr: Expr) -> tuple[tuple[Block, ...], Expr]:
        """An expression inside the innermost loop, with the definitions it needs there."""
        placed = self.hoist.place(expr)
        return self.hoist.take(-1), placed

    def constants(self) -> tuple[tuple[str, int], ...]:
        """Compile-time sizes: tiles, dims rounded up to powers of two, and the real dims where they differ."""
        dim, value_dim = self.plan.problem.pattern.head_dim, self.plan.problem.value_dim
        widths = [("HEAD_DIM", self.width(dim)), ("VALUE_DIM", self.width(value_dim))]
        widths += [("HEAD_WIDTH", dim)] if self.width(dim) != dim else []
        widths += [("VALUE_WIDTH", value_dim)] if self.width(value_dim) != value_dim else []
        return (
            ("BLOCK_Q", self.kernel.block_q * self.kernel.packed),
            ("BLOCK_K", self.kernel.block_k),
            *widths,
            ("HEADS", self.plan.problem.pattern.heads),
        )

    def is_padded(self, columns: str) -> bool:
        """Whether ``HEAD_DIM`` or ``VALUE_DIM`` is larger than the tensor's dimension."""
        problem = self.plan.problem
        dim = problem.pattern.head_dim if columns == "HEAD_DIM" else problem.value_dim
        return self.width(dim) != dim

    def width(self, dim: int) -> int:
        """The columns of tiles of tensors with so many; the fused kernel has tiles of 64 or 128, all alike."""
        if self.kernel.kind == "fused":
            dim = max(COLUMNS, self.plan.problem.pattern.head_dim, self.plan.problem.value_dim)
        return padded(dim)

    def tensor(self, name: str, side: str, width: int, element: str | None = None) -> tuple[Argument, ...]:
        """A tensor of four dimensions with its strides."""
        heads, rows = ("heads", "nq") if side == "q" else ("groups", "n")
        prefix = prefix_of(name)
        return (
            Argument(
                name=name, type=f"*{element or self.plan.problem.dtype}", note=f"[batch, {heads}, {rows}, {width}]"
            ),
            *(Argument(name=f"{prefix}_stride_{axis}", type="i32", fixed=True) for axis in ("b", "h", "n")),
        )

    def source(self, name: str, side: Side, columns: str) -> tuple[Argument, ...]:
        """A tensor whose tiles are loaded: its descriptor, or its address with strides."""
        problem = self.plan.problem
        width = problem.pattern.head_dim if columns == "HEAD_DIM" else problem.value_dim
        plain = self.tensor(name, side, width)
        if not self.is_copied(side):
            return plain
        boxes = self.kernel.boxes
        if boxes is None:
            picks = self.kernel.picks
            rows = self.kernel.block_q if side == "q" else self.kernel.block_k
            heads, rows = (picks.lanes, picks.positions) if picks is not None and side == "q" else (1, rows)
            block = (1, heads, rows, padded(width))
            return (replace(plain[0], block=block),)
        lead = (1,) if self.joined_heads(side) else (1, 1)
        return (replace(plain[0], block=(*lead, *boxes.box(side), padded(width)), extents=boxes.extents),)

    def joined_heads(self, side: Side) -> int | None:
        """How many heads are joined with the batch, so that descriptors of a grid have five dimensions at most."""
        pattern, boxes = self.plan.problem.pattern, self.kernel.boxes
        if boxes is None or len(boxes.extents) <= 2:
            return None
        return pattern.heads if side == "q" else pattern.groups

    def separate(self, most: int) -> int:
        """How many loops may stand side by side: one flat loop is as fast where the copy engine loads the tiles, and
        takes fewer registers, unless the mask reads a table for every pair; where rows are parted among programs, it
        fills the pipeline once."""
        if self.kernel.few:
            return 0
        return 0 if self.kernel.descriptors and not self._looks_up_pairs else most

    @property
    def _looks_up_pairs(self) -> bool:
        loads = (node for node in walk(self.plan.keep) if isinstance(node, Load))
        return any({"q", "k"} <= set().union(*(free_indices(index) for index in load.indices)) for load in loads)

    def row_base(self) -> RowBase:
        """Where numbers of the rows of queries begin."""
        return RowBase(packed=self.is_packed("q"))

    def addresses(self, tensor: str, side: Side, columns: str) -> tuple[Block, ...]:
        """What has to be named before tiles of ``tensor`` are loaded."""
        return () if self.is_copied(side) else (pointers(self, tensor, side, columns),)

    def load(self, tensor: str, side: Side, columns: str, *, guarded: bool) -> LoadTile:
        """Load the tile of ``tensor`` that the kernel's ``i`` or ``j`` names."""
        prefix = prefix_of(tensor)
        return LoadTile(
            name=f"{prefix}_tile",
            tensor=tensor,
            prefix=prefix,
            side=side,
            columns=columns,
            head=head_of(side),
            guarded=guarded and not self.is_whole(side),
            padded=self.is_padded(columns),
            descriptor=self.is_copied(side),
            box=() if self.kernel.boxes is None else self.kernel.boxes.box(side),
            heads=self.joined_heads(side) if self.is_copied(side) else None,
            scattered=self.is_scattered(side),
            packed=self.kernel.picks.positions if self.kernel.picks is not None and side == "q" else None,
            paged=side == "k" and self.plan.problem.page > 0,
        )

    def page_of(self) -> tuple[Block, ...]:
        """Where the keys of a tile lie, if they lie in pages."""
        page = self.plan.problem.page
        return (PageOf(page=page, block=self.kernel.block_k, classes=self.classes),) if page else ()

    def store(
        self, value: str, tensor: str, side: Side, columns: str, factor: float | None = None, *, added: bool = False
    ) -> StoreTile:
        """Store ``value`` as the tile of ``tensor`` that the kernel's ``i`` or ``j`` names; ``added`` where it is a
        sum over pairs, to which every part of a union adds."""
        return StoreTile(
            value=value,
            prefix=prefix_of(tensor),
            side=side,
            columns=columns,
            padded=self.is_padded(columns),
            dtype=self.plan.problem.dtype,
            factor=factor,
            boxes=self.boxes is not None,
            scattered=self.is_scattered(side),
            packed=self.is_packed(side),
            added=added and self.plan.place > 0,
        )

    def lengths(self) -> tuple[Argument, ...]:
        """Run-time lengths and positions, and which rows are marked."""
        return (*self._lengths(), *(() if self.kernel.marked is None else MARKS))

    def _lengths(self) -> tuple[Argument, ...]:
        count = Argument(name="nq", type="i32", note="query rows")
        match self.plan.problem.shape:
            case "square":
                return count, Argument(name="n", type="i32", note="keys")
            case "origin" | "offset":
                return (
                    count,
                    Argument(name="n", type="i32", note="keys"),
                    Argument(name="q_start", type="i32", note="position of the first query row"),
                )
            case "batched":
                paged = self.plan.problem.page > 0
                note = f"[batch, places_stride]: q_start, k_start, k_len{', pages' if paged else ''}"
                return count, Argument(name="places", type="*i32", note=note), *PLACES, *(PAGES if paged else ())

    def lists(self) -> tuple[Argument, ...]:
        """Tile lists, where the walk is one, or lists of distances."""
        if isinstance(self.kernel.walk, PickWalk):
            return self._picked_lists()
        if not isinstance(self.kernel.walk, ListWalk | DistanceWalk):
            return ()
        rows = "rows" if isinstance(self.kernel.walk, ListWalk) else "kinds of rows"
        batched = self.plan.problem.shape == "batched"
        reach = Argument(name="list_reach", type="i32", note="distances further back are not listed")
        names = ("list_begin", "list_middle", "list_end")
        bounds = (Argument(name=name, type="*i32", note=f"[batch or 1, heads or 1, {rows}]") for name in names)
        return (
            *bounds,
            Argument(name="list_tiles", type="*i32"),
            Argument(name="list_stride_b", type="i32"),
            Argument(name="list_stride_h", type="i32"),
            *(() if isinstance(self.kernel.walk, ListWalk) or not batched else (reach,)),
        )

    def _picked_lists(self) -> tuple[Argument, ...]:
        """The blocks that queries have picked; a kernel by key is given its lists by `spdsl.codegen.picked_parts`."""
        picks = self.kernel.picks
        assert picks is not None
        if self.by == "key":
            return ()
        if picks.order == "gathered":
            return GATHERED
        bounds = ("list_begin", "list_end")
        return (
            *(Argument(name=name, type="*i32", note="[batch or 1, lists of heads or 1, rows]") for name in bounds),
            Argument(name="list_tiles", type="*i32"),
            *(
                (Argument(name="list_bits", type="*i32", note="queries of each block"),)
                if picks.order == "union"
                else ()
            ),
            Argument(name="list_stride_b", type="i32"),
            Argument(name="list_stride_h", type="i32"),
        )

    def parameters(self, body: Iterable[Block]) -> tuple[Argument, ...]:
        """The free parameters of the pattern that ``body`` reads."""
        read = {node for block in every(body) for expr in expressions_in(block) for node in walk(expr)}
        return tuple(
            Argument(name=each.variable, type="i32", note=f"parameter {each.name}")
            for each in self.plan.problem.pattern.free
            if each in read
        )

    def table_arguments(self, body: Iterable[Block]) -> tuple[Argument, ...]:
        """The arguments of the tables that ``body`` reads."""
        return self.tables.arguments(block for block in every(body) if isinstance(block, Gather))


GATHERED = (
    Argument(name="item_rows", type="*i32", note="[items], blocks of keys over heads and sequences"),
    Argument(name="item_first", type="*i32", note="[items], where its queries begin"),
    Argument(name="item_last", type="*i32", note="[items], and end"),
    Argument(name="list_tiles", type="*i32", note="queries by the blocks that they have picked"),
    Argument(name="blocks", type="i32", note="blocks of keys of a head"),
)

PLACES = (
    Argument(name="places_stride", type="i32"),
    Argument(name="cache_rows", type="i32", note="rows of keys of a sequence, with those that are not in use"),
)

PAGES = (Argument(name="page_count", type="i32", note="pages of all sequences"),)

MARKS = (
    Argument(name="marks", type="*i32", note="[batch or 1, marked rows], ascending"),
    Argument(name="marks_stride_b", type="i32"),
    Argument(name="marked_rows", type="i32", note="how many there are"),
)


def every(body: Iterable[Block]) -> Iterator[Block]:
    """All blocks, those inside loops and conditions included."""
    for block in body:
        yield block
        if isinstance(block, EachItem | FetchedTiles | ToldTiles | Loop | If | Stream):
            yield from every(block.body)
        if isinstance(block, If):
            yield from every(block.otherwise)


def expressions_in(block: Block) -> list[Expr]:
    """The expressions that a block holds, not those of the blocks inside it."""
    found: list[Expr] = []
    for each in fields(block):
        value: Any = getattr(block, each.name)
        if isinstance(value, Node):
            found.append(value)  # type: ignore[arg-type]  # the only nodes in blocks are expressions
        elif each.name == "indices":
            found += [index.value for index in value]
        elif each.name == "searches":
            found += [expr for search in value for expr in (search.low, search.high, search.least)]
    return found


def padded(dim: int) -> int:
    """The least power of two, at least 16, that holds ``dim``."""
    return max(16, 1 << (dim - 1).bit_length())


def prefix_of(tensor: str) -> str:
    """The prefix of names that belong to a tensor: ``Q`` → ``q``, ``dQ`` → ``dq``."""
    return tensor.lower()


def head_of(side: Side) -> Literal["h", "g"]:
    """The name of the head that a side's tensors are indexed by."""
    return "h" if side == "q" else "g"


def masked(mode: Mode, definitions: tuple[Block, ...], mask: Mask) -> tuple[Block, ...]:
    """The mask of a tile: none for full ones, behind the flag where a loop has both kinds."""
    match mode:
        case _ if mask.keep == Const(value=True):
            return ()
        case "full":
            return ()
        case "masked":
            return (*definitions, mask)
        case _:
            return (If(condition=MASKED, body=(*definitions, mask)),)


def program(frame: Frame, *, reverse: bool) -> tuple[Block, ...]:
    """What a program works on."""
    shape = frame.plan.problem.shape
    if frame.kernel.picks is not None:
        return packed_program(frame.kernel, frame.plan.problem.pattern, reverse=reverse, shape=shape)
    begin: Block = Program(
        by=frame.by,
        ratio=frame.ratio,
        reverse=reverse,
        shape=shape,
        classes=frame.classes,
        counted=frame.kernel.persistent,
    )
    if frame.kernel.splits:
        begin = WorkItem(
            by=frame.by,
            ratio=frame.ratio,
            heads=frame.own_heads,
            reverse=reverse,
            shape=shape,
            listed=frame.listed,
            heads_first=frame.heads_first,
            classes=frame.classes,
            packed=frame.packed,
        )
    if frame.kernel.boxes is not None:
        return (begin, *own_box(frame.kernel.boxes, frame.kernel, frame.by))
    return (begin, *_other_class(frame))


def _other_class(frame: Frame) -> tuple[Block, ...]:
    """The residue class of the walked rows, which follows from that of the program's own."""
    residues = frame.kernel.residues
    if residues is None:
        return ()
    start = number(0) if frame.plan.problem.shape == "square" else Extent(name="q_start")
    shift, modulus = residues.shift, number(residues.modulus)
    if frame.by == "query":
        other = mod(add(add(index("q_class"), start), number(-shift % residues.modulus)), modulus)
    else:
        other = mod(sub(add(index("k_class"), number(shift)), start), modulus)
    if start == number(0) and shift == 0:
        other = index("q_class" if frame.by == "query" else "k_class")
    name, note = ("k_class", "keys") if frame.by == "query" else ("q_class", "queries")
    return (Define(name=name, value=truncated(other), note=f"residue class of the {note} that these rows meet"),)


def positions(
    frame: Frame, side: Side, part: Part
) -> Positions | BoxPositions | PackedPositions | ListedPositions | GatheredKeys:
    """The positions of a side."""
    picks = frame.kernel.picks
    if picks is not None and side == "q":
        if picks.order == "gathered":
            return ListedPositions(shape=frame.plan.problem.shape, part=part)
        return PackedPositions(
            shape=frame.plan.problem.shape,
            positions=picks.positions,
            heads=picks.heads,
            padded=picks.lanes != picks.heads,
        )
    if frame.gathers_keys:
        return GatheredKeys()
    boxes = frame.kernel.boxes
    if boxes is not None:
        return BoxPositions(
            side=side,
            part=part,
            sizes=boxes.box(side),
            extents=boxes.extents,
            steps=boxes.steps,
            ragged=boxes.ragged(side),
            flag=flag_of(part) if boxes.tail else None,
        )
    shape, marked = frame.plan.problem.shape, frame.kernel.gathers(side)
    packed = frame.packed if side == "q" else None
    ratio = frame.ratio if packed else 0
    return Positions(
        side=side, part=part, shape=shape, classes=frame.classes, marked=marked, packed=packed, ratio=ratio
    )


def pointers(frame: Frame, tensor: str, side: Side, columns: str) -> Pointers:
    """The addresses of a tensor's tiles."""
    return Pointers(
        tensor=tensor,
        prefix=prefix_of(tensor),
        side=side,
        columns=columns,
        head=head_of(side),
        shape=frame.plan.problem.shape,
        classes=frame.classes,
        boxes=frame.boxes is not None,
        scattered=frame.is_scattered(side),
        packed=frame.is_packed(side),
        paged=side == "k" and frame.plan.problem.page > 0,
    )
