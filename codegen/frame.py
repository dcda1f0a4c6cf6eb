"""What the kernels of a plan share: scopes, the predicate with the bounds of the tensors, sizes of tiles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from spdsl.analysis.plans import KernelPlan, Plan
from spdsl.analysis.tiles import ListWalk
from spdsl.codegen.arith import both, compare, index, number
from spdsl.codegen.blocks import (
    Block,
    By,
    RowBase,
    RowBits,
)
from spdsl.codegen.boxes import programs
from spdsl.codegen.edges import with_edges
from spdsl.codegen.expressions import truncated
from spdsl.codegen.hoist import Hoist
from spdsl.codegen.picks import PICKED, has_bits, packed_keep
from spdsl.codegen.selected import GROUP, by_tiles
from spdsl.codegen.tables import Tables
from spdsl.semantics.nodes import Const, Expr, Extent, Load, Side
from spdsl.semantics.rewrite import free_indices, walk

LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453

WIDE = 128
"""The least head dim at which the copy engine loads rows of several heads as one tile.

Triton keeps such a tile in registers, as the first operand of a product.  Where it has as many columns as the tile of
weights, ptxas 12.8 and 12.9 give both the same registers, so that from the second tile of keys on weights stand in the
place of queries (`tests/aot/test_picked_registers.py`).  Tiles that are loaded by address go to shared memory.
"""

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
    def held(self) -> int:
        """How many blocks that queries have picked a tile of keys holds, of which lists tell one by one."""
        return 1 if self.kernel.turned is None else self.kernel.turned.held

    @property
    def heads_first(self) -> bool:
        """Whether the first tiles of all heads start first: where programs take a whole SM for themselves.

        Not where rows are lists of what has been picked: as these differ, programs that start together do not stay
        together, and what they read and add to is in the cache only if it is that of few heads.
        """
        return self.kernel.kind == "fused" and self.kernel.turned is None

    @property
    def spans(self) -> bool:
        """Whether keys are gathered by the intervals that they keep, those that keep most first."""
        return self.kernel.marked is not None and self.kernel.marked.alike

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
        """Whether the copy engine loads the tiles of a side: not where their rows are gathered, nor those of picks
        where they are narrow, or as wide as the tiles of keys: see `WIDE`."""
        picks = self.kernel.picks
        scattered = picks is not None and (picks.order == "gathered" if side == "q" else self.gathers_keys)
        scattered = scattered or self.kernel.gathers(side)
        dims = [padded(dim) for dim in (self.plan.problem.pattern.head_dim, self.plan.problem.value_dim)]
        several = picks is not None and picks.lanes > 1
        unfit = min(dims) < (WIDE if several else WIDE // 2) or (several and self.kernel.block_k in dims)
        return self.kernel.descriptors and not scattered and not (picks is not None and side == "q" and unfit)

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
        keep = by_tiles(self.kernel, self.tested, self.plan.problem.shape) if gathered is None else gathered.keep
        found = both(None, truncated(keep))
        if self.kernel.picks is not None:
            found = packed_keep(self.kernel.picks, self.by)
        if self.held > 1:
            found = both(PICKED, found)
        if self.kernel.picks is not None or self.held > 1:
            self.hoist.known(PICKED.name, len(self._scopes()) - 1)
        if self.by == "query" and not self.is_whole("k"):
            found = both(found, compare("lt", index("k"), Extent(name="n")))
        if self.plan.problem.shape != "square":
            found = both(found, compare("ge", index("q"), number(0)))
        found = both(found, exist)
        return Const(value=True) if found is None else with_edges(found, "k" if self.by == "query" else "q")

    @property
    def tested(self) -> Expr:
        """What is asked of the pairs of tiles that are walked, where rows are not gathered."""
        return self.plan.keep if self.kernel.turned is None else self.kernel.turned.keep

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

    def separate(self, most: int) -> int:
        """How many loops may stand side by side: one flat loop is as fast where the copy engine loads the tiles, and
        takes fewer registers, unless the mask reads a table for every pair; where rows are parted among programs, it
        fills the pipeline once."""
        if self.kernel.few:
            return 0
        return 0 if self.kernel.descriptors and not self._looks_up_pairs else most

    @property
    def _looks_up_pairs(self) -> bool:
        loads = (node for node in walk(self.tested) if isinstance(node, Load))
        return any({"q", "k"} <= set().union(*(free_indices(index) for index in load.indices)) for load in loads)

    def row_base(self) -> RowBase:
        """Where numbers of the rows of queries begin."""
        return RowBase(packed=self.is_packed("q"))


def padded(dim: int) -> int:
    """The least power of two, at least 16, that holds ``dim``."""
    return max(16, 1 << (dim - 1).bit_length())


def prefix_of(tensor: str) -> str:
    """The prefix of names that belong to a tensor: ``Q`` → ``q``, ``dQ`` → ``dq``."""
    return tensor.lower()


def head_of(side: Side) -> Literal["h", "g"]:
    """The name of the head that a side's tensors are indexed by."""
    return "h" if side == "q" else "g"
