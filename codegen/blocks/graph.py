"""Blocks that hold blocks, kernels, and the graph of all kernels of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from spdsl.analysis.plans import Precision
from spdsl.analysis.tiles import Pairs, tiles_among
from spdsl.codegen.blocks.arithmetic import (
    Dot,
    Logits,
    Mask,
    OnlineSoftmax,
    Probabilities,
    RowProducts,
    Scale,
    ScoreGradient,
    SinkGradient,
    SoftmaxEnd,
    SoftmaxResumed,
    SoftmaxState,
    SumRows,
)
from spdsl.codegen.blocks.distances import DistancePositions, DistanceProgram, LoadRows, StoreDistances, SumDiagonals
from spdsl.codegen.blocks.fused import (
    AddBegin,
    AddInTurn,
    BlockBits,
    FetchEnd,
    FetchOwn,
    FetchTile,
    FusedBegin,
    FusedEnd,
    FusedGradients,
    FusedScores,
    RowNumber,
    ScaleSums,
    Touch,
)
from spdsl.codegen.blocks.intervals import (
    IntervalProgram,
    SearchBegin,
    SearchEnd,
    SearchMiddle,
    SearchStep,
    StoreIntervals,
)
from spdsl.codegen.blocks.lists import ListBounds, ListedTile, Searches
from spdsl.codegen.blocks.naming import BoxLanes, BoxPositions, Define, Gather, Positions, Program, WholeRow, WorkItem
from spdsl.codegen.blocks.picks import (
    EntryAt,
    GatheredItem,
    GatheredKeys,
    GatheredRows,
    GatheredTurns,
    ListedPositions,
    LoadEntries,
    PackedPositions,
    PackedProgram,
    PackedRows,
    PickedBounds,
    PickedItem,
    PickedKeys,
    PickedQueries,
    PickedRow,
    PickedTile,
    RowBits,
    StoreEntries,
)
from spdsl.codegen.blocks.sent import (
    FetchPicks,
    PicksBegin,
    PicksEnd,
    PicksGradients,
    PicksScores,
    SentRows,
    ToldQueries,
)
from spdsl.codegen.blocks.streamed import (
    CopyOut,
    FetchQueries,
    ListedBlocks,
    SendBlocks,
    SendEnd,
    SendTile,
    Speaks,
    StreamBegin,
    StreamEnd,
    WriteOut,
)
from spdsl.codegen.blocks.tiles import (
    AddPart,
    LoadPart,
    LoadTile,
    MergeSoftmax,
    PageOf,
    Pointers,
    RowBase,
    Statistics,
    StorePairs,
    StorePart,
    StoreRows,
    StoreTile,
    Zeros,
)
from spdsl.semantics.nodes import Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """All tiles that the copying warp sends: ``names`` of each are read, and ``body`` gets from products to logits.

    The products of a tile with the queries run while the weights of the one before meet their values.  With ``flagged``
    ``masked`` is read too, with ``kinds`` as the ``kind`` of the tile.  ``factor`` as in `OnlineSoftmax`.  With
    ``again`` the last place of the ring is given back, and with ``queries_back`` the queries; with ``resumed`` there is
    a sum before the first tile, which is scaled as any other.  With ``listed`` keys are those of `SendBlocks`: their
    numbers ``k_listed`` are read where the tile is masked, or in ``every`` tile.
    """

    names: tuple[str, ...]
    flagged: bool
    kinds: bool = False
    factor: float
    dtype: Precision
    body: tuple[Block, ...]
    again: bool = False
    queries_back: bool = False
    resumed: bool = False
    listed: Literal["masked", "every"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedTiles:
    """All tiles of a head that the copying warp loads, one after the other, for a computing group; with ``flagged``
    ``masked`` is read too."""

    flagged: bool
    body: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldTiles:
    """All tiles of a head that the copying warp loads, one after the other, for a warp that needs but their numbers."""

    body: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EachItem:
    """Each ``item`` that the copying warp takes, until there are no more; that is told when the program's own memory,
    of which ``filled`` and ``freed`` tell, is free."""

    filled: str
    freed: str
    body: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EachTold:
    """Each ``item`` that the copying warp has taken; ``rounds`` counts them.  With ``gives_back`` the program's own
    memory is given back when an item is done, else ``body`` does that before."""

    filled: str
    freed: str
    body: tuple[Block, ...]
    gives_back: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """``variable`` from ``low`` to ``high``, half open, one by one or by ``step``."""

    variable: str
    low: Expr
    high: Expr
    body: tuple[Block, ...]
    note: str = ""
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class If:
    """Do ``body`` where ``condition``, a scalar, holds, and ``otherwise`` where it does not."""

    condition: Expr
    body: tuple[Block, ...]
    otherwise: tuple[Block, ...] = ()


Block: TypeAlias = (
    Program
    | WorkItem
    | WholeRow
    | Positions
    | BoxLanes
    | BoxPositions
    | Define
    | Gather
    | Pointers
    | PageOf
    | LoadTile
    | StoreTile
    | Statistics
    | RowBase
    | StoreRows
    | StorePairs
    | StorePart
    | LoadPart
    | AddPart
    | MergeSoftmax
    | Zeros
    | Dot
    | Logits
    | Mask
    | SoftmaxState
    | SoftmaxResumed
    | OnlineSoftmax
    | SoftmaxEnd
    | Probabilities
    | ScoreGradient
    | SumRows
    | Scale
    | RowProducts
    | SinkGradient
    | DistanceProgram
    | DistancePositions
    | LoadRows
    | SumDiagonals
    | StoreDistances
    | IntervalProgram
    | SearchBegin
    | SearchMiddle
    | SearchStep
    | SearchEnd
    | StoreIntervals
    | FetchQueries
    | Speaks
    | SendTile
    | ListedBlocks
    | SendBlocks
    | SendEnd
    | StreamBegin
    | Stream
    | StreamEnd
    | CopyOut
    | WriteOut
    | FetchOwn
    | FetchTile
    | BlockBits
    | FetchEnd
    | FetchedTiles
    | ToldTiles
    | FusedBegin
    | FusedScores
    | FusedGradients
    | RowNumber
    | Touch
    | AddBegin
    | AddInTurn
    | ScaleSums
    | FusedEnd
    | EachItem
    | EachTold
    | Loop
    | If
    | ListBounds
    | Searches
    | ListedTile
    | PackedProgram
    | PickedItem
    | PickedRow
    | PackedRows
    | PackedPositions
    | PickedBounds
    | PickedTile
    | RowBits
    | PickedKeys
    | GatheredKeys
    | PickedQueries
    | ListedPositions
    | GatheredItem
    | GatheredRows
    | GatheredTurns
    | StoreEntries
    | EntryAt
    | FetchPicks
    | PicksBegin
    | PicksEnd
    | PicksGradients
    | PicksScores
    | SentRows
    | ToldQueries
    | LoadEntries
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """An argument of a kernel; ``type`` as Triton's signatures write it (``*bf16``, ``i32``), ``note`` its shape.

    ``fixed`` integers take part in Triton's specialisation (strides); others never do, so that no length recompiles.
    A tensor with a ``block`` is passed as a descriptor by which the copy engine loads blocks of this shape.  With
    ``extents`` its rows are split into those of a grid, and if that leaves the block one dimension too few, batch and
    heads are joined; with ``classes`` into those of residue classes, padded with zeros if these differ in length.
    """

    name: str
    type: str
    note: str = ""
    fixed: bool = False
    block: tuple[int, ...] | None = None
    extents: tuple[int, ...] = ()
    classes: int | None = None

    @property
    def signature(self) -> str:
        """The type in Triton's signatures."""
        return self.type if self.block is None else f"tensordesc<{self.type.removeprefix('*')}{list(self.block)}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kernel: a grid of programs ``(tiles, heads or groups, batch)`` that all run ``body``.

    A program owns ``block`` rows; with ``classes`` there are tiles of each residue class, and classes change fastest;
    with ``boxes`` there are that many boxes, and tiles of the rows ``after`` the first so many if that is given.
    Where ``parts`` names accumulators, with the numbers each holds for a program, long rows are split: the grid is flat
    (`WorkItem`), and the kernel ``{name}_combine`` adds up their parts.
    With ``fetch`` a kernel of specialised warps: one runs these blocks, and loads what the others compute on; with
    ``add`` another adds what they compute to memory.
    ``registers`` of a thread, before warps share them out, are fewer than there are where several programs are to share
    an SM.  With ``heads_first`` the first tiles of all heads start first.  With ``counted`` the grid is flat, and
    with ``persistent`` there may be fewer programs than tiles.  With ``shares_output`` the output
    lies where the queries do.  With ``pairs`` a program owns two tiles.
    """

    name: str
    doc: str
    arguments: tuple[Argument, ...]
    constants: tuple[tuple[str, int], ...]
    body: tuple[Block, ...]
    block: int
    warps: int
    stages: int
    classes: int | None = None
    boxes: int | None = None
    after: int | None = None
    parts: tuple[tuple[str, int], ...] = ()
    fetch: tuple[Block, ...] | None = None
    add: tuple[Block, ...] | None = None
    registers: int | None = None
    heads_first: bool = False
    persistent: bool = False
    shares_output: bool = False
    counted: bool = False
    pairs: Pairs | None = None

    def programs(self, rows: int) -> int:
        """How many tiles, or pairs of them, there are among ``rows`` rows."""
        if self.pairs is not None:
            return self.pairs.programs(-(-rows // self.block))
        if self.boxes is not None:
            return self.boxes + (0 if self.after is None else -(-max(0, rows - self.after) // self.block))
        return tiles_among(rows, self.block, self.classes or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGraph:
    """All kernels of a plan."""

    name: str
    dtype: Precision
    notes: tuple[str, ...]
    kernels: tuple[Kernel, ...]

    @property
    def gluon(self) -> tuple[Kernel, ...]:
        """The kernels with specialised warps."""
        return tuple(kernel for kernel in self.kernels if kernel.fetch is not None)

    @property
    def triton(self) -> tuple[Kernel, ...]:
        """The kernels without specialised warps."""
        return tuple(kernel for kernel in self.kernels if kernel.fetch is None)
