"""The block graph: what every kernel does, in terms of tiles; one small language for all kernels and back ends.

A kernel is a list of blocks; loops and conditions hold blocks.  Values have names.  In a kernel that walks *by query* a
program owns one tile of queries (`q` is a column vector, `k` a row vector) and loops over tiles of keys; *by key* it
owns a tile of keys (`k` is the column) and loops over tiles of queries.  Sides are called ``own`` and ``walked``.

Expressions are those of `spdsl.semantics.nodes` without loads; ``Param`` stands for a value named earlier in the
kernel, and ``quotient`` and ``remainder`` are divisions that truncate.  Tile shapes are written in names: BLOCK_Q,
BLOCK_K, HEAD_DIM, VALUE_DIM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from spdsl.analysis.plans import Precision
from spdsl.analysis.tiles import Pairs, Reach, Shape, tiles_among
from spdsl.diagnostics import Span
from spdsl.semantics.nodes import Dtype, Expr, Side

By: TypeAlias = Literal["query", "key"]
Part: TypeAlias = Literal["own", "walked"]

# ---------------------------------------------------------------- naming values


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Which tile, head and sequence this program works on; names ``i`` or ``j``, ``h``, ``g``, ``b``.

    ``ratio`` query heads share a key head.  A kernel by key starts from ``g`` and loops over the heads of the group.
    ``reverse`` starts with the last tile, which under causal patterns has the longest row.  With ``classes`` a program
    owns a tile of one residue class of the rows, ``q_class`` or ``k_class``.  With ``counted`` the tiles of all heads
    and sequences are counted through, and ``item`` is the number of this one.
    """

    by: By
    ratio: int
    reverse: bool
    shape: Shape
    classes: int | None = None
    counted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """What a program works on where long rows are split: as `Program`, and ``part`` of ``shares`` of the row's turns.

    Programs count over ``heads`` (of queries, or of keys in a kernel by key) and sequences: first ``items``, ``parts``
    for each of the ``long_rows`` of every head, then the other rows, one each.  Long rows are neighbours from
    ``first_long`` on, or with ``listed`` those that ``row_order`` names first.  Rows of a head are
    neighbours, or with ``heads_first`` the same rows of all heads.  With ``packed`` heads of queries share a tile, and
    programs count over those of keys.
    """

    by: By
    ratio: int
    heads: int
    reverse: bool
    shape: Shape
    listed: bool
    heads_first: bool
    classes: int | None = None
    packed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRow:
    """What a program works on that adds up the parts of a long row: `WorkItem`'s names, and ``first_item`` of the row.

    A tile is cut into ``pieces`` of its rows, of which each program takes one, and from then on counts in such tiles.
    """

    by: By
    ratio: int
    heads: int
    shape: Shape
    listed: bool
    heads_first: bool
    pieces: int
    classes: int | None = None
    packed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """Rows of the tensors and absolute positions of one side: ``q_rows`` and ``q``, or ``k_rows`` and ``k``.

    With ``classes`` every so many-th row, from the first of the class on; with ``marked`` those that are listed.  With
    ``packed`` a tile has so many rows of each query, of which the first ``ratio`` are the heads ``h`` of the group; the
    others are no rows of the tensors.
    """

    side: Side
    part: Part
    shape: Shape
    classes: int | None = None
    marked: bool = False
    packed: int | None = None
    ratio: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxLanes:
    """Where the rows of a tile lie inside a box of ``sizes``: ``q_lane0``, ``q_lane1``, … along the axes with more than
    one place, and ``q_within``, how many rows after its first.  Neighbours along an axis are ``strides`` rows apart."""

    side: Side
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxPositions:
    """As `Positions`, for the box ``i0 i1 …`` (or ``j0 …``), with the coordinates ``q0``, ``q1``, … (or ``k0`` …).

    With ``flag``, where the named value holds, they are those of consecutive rows from the first on.
    Places are ``steps`` apart, from ``class0``, ``class1``, … on where these are not 1.  Those past the end of the axes
    ``ragged`` count as rows past the end.
    """

    side: Side
    part: Part
    sizes: tuple[int, ...]
    extents: tuple[int, ...]
    steps: tuple[int, ...]
    ragged: tuple[int, ...]
    flag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Define:
    """A named value of an expression; ``note`` becomes a comment."""

    name: str
    value: Expr
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableIndex:
    """One index of a gather: its value, the name of the stride, and of the size when bounds have to be checked.

    ``rows``: the axis counts query rows, so that ``q_start`` is subtracted.
    """

    value: Expr
    stride: str
    size: str | None
    rows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gather:
    """Elements of a table at the given indices; 0 where an index is out of bounds.

    ``batch_stride`` names the stride of the leading batch axis, None if the table's own axes name ``b``.  ``wide``
    computes offsets in 64 bits; ``long`` keeps ints of 64 bits as they are.  With ``wanted`` the indices name a list of
    ``most`` ascending ints, and the result is whether it holds that number.
    """

    name: str
    pointer: str
    batch_stride: str | None
    indices: tuple[TableIndex, ...]
    dtype: Dtype
    wide: bool
    long: bool = False
    wanted: Expr | None = None
    most: str = ""


# ---------------------------------------------------------------- tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointers:
    """The address of a tensor's part for this head, offsets inside a tile, and the stride from tile to tile.

    With ``classes`` of the part that is a residue class of the rows; with ``boxes`` the stride is that from row to row;
    with ``scattered`` every row has an address of its own, with ``packed`` that of a query and a head; with ``paged``
    every page has one.
    """

    tensor: str
    prefix: str
    side: Side
    columns: str
    head: Literal["h", "g"]
    shape: Shape
    classes: int | None = None
    boxes: bool = False
    scattered: bool = False
    packed: bool = False
    paged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PageOf:
    """Name ``k_page`` and ``k_within``: the pages of the rows of key tile ``j``, and the rows inside of them.

    A page has ``page`` rows; the tile lies in one page where ``block`` divides it and it has no ``classes``.
    """

    page: int
    block: int
    classes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTile:
    """A tile ``[block, columns]``; zeros for rows that do not exist (``guarded``) and for padded columns.

    With ``descriptor`` the copy engine loads it and puts the zeros, so that no `Pointers` are needed.  With ``box``
    the rows of a box of these sizes; ``heads`` is how many heads a descriptor joins with the batch, if it does.
    With ``packed`` the rows are those of so many queries, head by head.
    """

    name: str
    tensor: str
    prefix: str
    side: Side
    columns: str
    head: Literal["h", "g"]
    guarded: bool
    padded: bool
    descriptor: bool
    box: tuple[int, ...] = ()
    heads: int | None = None
    scattered: bool = False
    packed: int | None = None
    paged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreTile:
    """Write ``value`` (times ``factor``) to the rows that exist, or with ``added`` add it to what is there."""

    value: str
    prefix: str
    side: Side
    columns: str
    padded: bool
    dtype: Precision
    factor: float | None = None
    boxes: bool = False
    scattered: bool = False
    packed: bool = False
    added: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """``lse`` (in powers of two, +inf for rows that keep nothing or do not exist, so that weights vanish) and
    ``delta``."""

    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBase:
    """Name ``row_base``: where the rows of this sequence and head begin in ``[batch, heads, nq]``.

    With ``copied`` the copy engine loads them, and each head's, or of ``classes`` each residue class's, begin at a
    multiple of 16 bytes; those of ``boxes`` are together.  With ``packed`` every row has its own.
    """

    copied: bool = False
    classes: int | None = None
    packed: bool = False
    boxes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRows:
    """Write one number for each row of ``side`` into ``pointer`` ``[batch, heads, rows]`` (contiguous, fp32)."""

    value: str
    pointer: str
    side: Side


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePairs:
    """Write a tile of numbers into ``pointer`` ``[batch, heads, nq, n]`` (contiguous, fp32)."""

    value: str
    pointer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePart:
    """Write the accumulator ``name`` of ``item`` into its own memory, ``[items, *shape]`` in fp32."""

    name: str
    shape: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPart:
    """Read what `StorePart` wrote for ``item``; names it ``{name}_part``."""

    name: str
    shape: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddPart:
    """Add ``{name}_part`` to the accumulator ``name``."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSoftmax:
    """Join ``m_part``, ``l_part`` and ``acc_part`` with the softmax so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Zeros:
    """An fp32 accumulator."""

    name: str
    shape: tuple[str, ...]


# ---------------------------------------------------------------- arithmetic on tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """``name = left @ right`` (``right`` transposed if asked), added to ``name`` if ``accumulate``; fp32 result.

    ``cast`` converts the left side to the element type of the inputs first.
    """

    name: str
    left: str
    right: str
    transpose: bool = False
    accumulate: bool = False
    cast: Precision | None = None
    exact: bool = False
    shape: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Logits:
    """From products to logits in powers of two: scale, softcap, bias.  Without softcap and bias nothing is done here:
    the softmax folds the scale into its exponent.  ``keep_slope`` names the derivative of the cap for the backward."""

    scale: float
    softcap: float | None
    bias: Expr | None
    folded: bool
    keep_slope: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """Give the pairs outside the set no weight: -inf for ``scores`` in the forward, 0 for ``p`` in the backward."""

    target: Literal["scores", "p"]
    keep: Expr
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxState:
    """Running maximum ``m``, sum ``l`` and output ``acc``; a sink starts them instead of nothing."""

    sink: Expr | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxResumed:
    """As `SoftmaxState`, from the output and LSE of other pairs of these rows: ``o_tile`` and memory.

    Where a row is computed in parts, only the first goes on from there (``first`` holds for it).
    """

    first: Expr | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineSoftmax:
    """Update ``m`` and ``l``, rescale ``acc``, and name the weights ``p``.

    ``factor`` is the scale folded into the exponent (1 when logits are scaled already); ``guarded`` when a whole row
    may be -inf.
    """

    factor: float
    guarded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxEnd:
    """Divide ``acc`` by ``l``; zeros for empty rows.  Names ``lse`` (natural logarithm)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probabilities:
    """``p`` from logits and the row's LSE; ``factor`` as in `OnlineSoftmax`."""

    factor: float
    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreGradient:
    """``ds = p * (dp - delta)``, the gradient of the logit; ``dsc`` is ``ds`` through the softcap."""

    part: Part
    capped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SumRows:
    """Add the row sums of ``ds * factor`` to the accumulator ``name``."""

    name: str
    factor: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """``name = ds * factor`` as a tile of its own."""

    name: str
    factor: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class RowProducts:
    """``lse`` as it is stored, and for the kernels that follow ``lse2``, in powers of two and +inf for rows that keep
    nothing, and ``delta``: row sums of ``dO * O`` minus ``dLSE``, 0 for rows that keep nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkGradient:
    """``ds``, the gradient of the sink's logit as a column: its weight times minus ``delta``."""

    sink: Expr


# ---------------------------------------------------------------- sums by distance


@dataclass(frozen=True, slots=True, kw_only=True)
class DistanceProgram:
    """A program that owns the distances from ``first`` on, of rows minus keys, for one query head.

    Slots count from 0 at the least distance, ``1 - key_rows``.  Names ``first``, and ``lo`` and ``hi``: the query tiles
    with such pairs.
    """

    ratio: int
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class DistancePositions:
    """Rows and positions of query tile ``i`` and of the 2 * BLOCK_D keys that reach all its pairs at the owned
    distances."""

    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRows:
    """A tile of ``k_rows`` or ``q_rows``, wherever they begin; zeros for rows that do not exist."""

    name: str
    prefix: str
    side: Side
    columns: str
    padded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SumDiagonals:
    """Add the diagonals of ``ds * factor`` to ``name``, one number for each owned distance."""

    name: str
    factor: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDistances:
    """Write one number for each owned distance into ``pointer`` ``[batch, heads, nq + key_rows - 1]``."""

    value: str
    pointer: str


# ---------------------------------------------------------------- intervals


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalProgram:
    """A program that owns TILES tiles of ``side`` and finds the interval of walked rows of each.

    Names ``tiles``, the positions of their rows, ``exist``, which of these there are, ``first`` and ``end`` of the
    positions of the other side, ``columns`` 0 to 3 and ``found``, the ends of all positions, both ``[TILES, 4]``.
    """

    side: Side
    ratio: int
    heads: Literal["h", "g"] | None
    shape: Shape
    far: int
    classes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchBegin:
    """Name ``wanted``, the least, greatest, least and greatest ``value`` of each tile, and ``lo`` and ``hi``, between
    which the first positions that reach them lie; ``steps`` halvings find these.  ``long`` compares in 64 bits."""

    value: Expr
    long: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchMiddle:
    """Name the positions of ``side`` half way between ``lo`` and ``hi``, ``[TILES, 4]``."""

    side: Side


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchStep:
    """Go on below the middle where its ``mark`` reaches what is wanted, else above it."""

    side: Side
    mark: Expr
    start: Reach | None
    end: Reach | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchEnd:
    """Narrow ``found`` to what begins, and ends, where the search did; rows count from the first of the tensor."""

    side: Side
    shape: Shape
    far: int
    start: Reach | None
    end: Reach | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreIntervals:
    """Write ``found`` into ``pointer`` ``[batch or 1, heads or 1, interval_rows, 4]`` (contiguous, int32)."""

    pointer: str
    heads: Literal["h", "g"] | None


# ---------------------------------------------------------------- the forward with specialised warps


@dataclass(frozen=True, slots=True, kw_only=True)
class Corner:
    """Where a tile begins in a tensor that the copy engine reads or writes.

    With ``classes`` rows are split into those of residue classes; with ``box`` they are those of a grid, of which a
    tile takes a box of these sizes, and ``heads`` is how many heads a descriptor joins with the batch, if it does.
    Where groups of warps have ``shared`` a tile, each has its part of the rows, or of the box along the axis ``split``;
    with ``by_columns`` its part of the columns.  ``tile`` is the number of the tile, in text, where it is not ``i`` or
    ``j``.
    """

    tensor: str
    side: Side
    head: Literal["h", "g"]
    classes: int | None = None
    box: tuple[int, ...] = ()
    heads: int | None = None
    split: int | None = None
    shared: bool
    by_columns: bool = False
    tile: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchQueries:
    """The copying warp loads the program's queries, each group's by itself; with ``again`` when those before have been
    read."""

    corner: Corner
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SendTile:
    """The copying warp waits for a place in the ring, writes the values of ``names`` there, and loads keys and values.

    The first name is that of a coordinate, never negative; ``masked`` is a value of its own if it differs from tile to
    tile.
    """

    names: tuple[str, ...]
    masked: Expr | None
    keys: Corner
    values: Corner


@dataclass(frozen=True, slots=True, kw_only=True)
class SendEnd:
    """The copying warp says that there are no more tiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamBegin:
    """A computing group's state of the softmax, as `SoftmaxState` or with ``resumed`` as `SoftmaxResumed`; waits for
    its queries."""

    sink: Expr | None
    resumed: bool = False
    first: Expr | None = None
    padded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """All tiles that the copying warp sends: ``names`` of each are read, and ``body`` gets from products to logits.

    The products of a tile with the queries run while the weights of the one before meet their values.  With ``flagged``
    ``masked`` is read too.  ``factor`` as in `OnlineSoftmax`.  With ``again`` queries and the last place of the ring
    are given back; with ``resumed`` there is a sum before the first tile, which is scaled as any other.
    """

    names: tuple[str, ...]
    flagged: bool
    factor: float
    dtype: Precision
    body: tuple[Block, ...]
    again: bool = False
    resumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEnd:
    """Divide ``acc`` by ``l``; zeros for empty rows.  Names ``lse`` (natural logarithm)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOut:
    """A group writes its rows of ``acc`` by the copy engine, which leaves out what does not exist."""

    corner: Corner
    dtype: Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOut:
    """A group writes its rows of ``acc`` that exist, by their addresses."""

    dtype: Precision
    padded: bool


# ---------------------------------------------------------------- the fused backward


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOwn:
    """The copying warp loads the program's keys and values."""

    keys: Corner
    values: Corner


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchTile:
    """The copying warp loads tile ``i`` of Q and dO, with LSE and delta, into the next place of the ring, and says
    which it is; ``masked`` is told if it differs from tile to tile."""

    masked: Expr | None
    queries: Corner
    outputs: Corner


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchEnd:
    """The copying warp says that there are no more tiles of a head."""


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
class FusedBegin:
    """A computing warp's accumulators ``dk`` and ``dv``; waits for its keys and values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedScores:
    """Start both products with the tile, and name the weights ``p``; ``factor`` as in `OnlineSoftmax`."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedGradients:
    """From ``p`` to sums in ``dk`` and ``dv`` and to dQ in memory: each group sums half of its columns, or half of its
    rows where there are twice as many, which ``sums`` tells.  ``ordered`` leaves it to another warp to add them."""

    dtype: Precision
    sums: Corner
    ordered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RowNumber:
    """``number`` of the program's row among those of its head, in the order in which their programs start."""

    splits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Touch:
    """Note that row ``number`` adds to tile ``i`` of dQ."""

    classes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddBegin:
    """A warp that adds what the groups leave has none of their tiles yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddInTurn:
    """Add tile ``i`` to dQ when all rows of a lower ``number`` that touch it have done so."""

    sums: Corner
    classes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSums:
    """Write the program's share of ``Sums`` of a head, times ``scale``, to ``dQ``."""

    dtype: Precision
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedEnd:
    """Write ``dk``, times ``scale``, and ``dv``."""

    dtype: Precision
    scale: float
    keys: Corner
    values: Corner


# ---------------------------------------------------------------- control


@dataclass(frozen=True, slots=True, kw_only=True)
class EachItem:
    """Each ``item`` of this program, of all that there are; ``turn`` counts them."""

    body: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """``variable`` from ``low`` to ``high``, half open."""

    variable: str
    low: Expr
    high: Expr
    body: tuple[Block, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class If:
    """Do ``body`` where ``condition``, a scalar, holds, and ``otherwise`` where it does not."""

    condition: Expr
    body: tuple[Block, ...]
    otherwise: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListBounds:
    """Read ``begin``, ``middle`` and ``end`` of a row, by the name of its number, from the tile lists.

    Without ``row`` there is one row; without ``by_head`` heads share it.
    """

    row: str
    by_head: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Name the first place from ``low`` to ``high`` at which the ascending lists reach ``least``, else ``high``."""

    name: str
    low: Expr
    high: Expr
    least: Expr
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Searches:
    """Searches side by side, so that what they read of the lists comes at the same time."""

    searches: tuple[Search, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedTile:
    """Read the walked tile's number from the lists, at ``at``, where ``where`` holds; it counts from the tile named
    ``first``."""

    variable: str
    at: Expr
    first: str = ""
    where: Expr | None = None


# ---------------------------------------------------------------- picks


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedProgram:
    """Which tile of queries, heads and sequence this program works on; a tile holds ``heads`` that are neighbours.

    Names ``i``, ``owner``, the number of these heads, ``first_head``, ``g`` and ``b``.
    """

    heads: int
    ratio: int
    reverse: bool
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedItem:
    """Which block of keys, heads and sequence this program works on, and which of the queries that have picked it.

    Names ``j``, one of the ``parts`` tiles of the block, ``owner`` (of ``owners``), ``first_head``, ``g``, ``b``,
    ``first`` and ``last``, the place of these queries in the list, and ``slot`` and ``item``, where sums are kept.
    """

    heads: int
    ratio: int
    owners: int
    parts: int
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedRow:
    """As `PickedItem`, for a program that adds up parts: ``piece`` of ``pieces`` of a tile, in which ``j`` counts from
    then on, ``count`` parts from ``first_slot`` on."""

    heads: int
    ratio: int
    owners: int
    parts: int
    pieces: int
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """How the rows of a tile are laid out: ``positions`` queries for each of ``heads``, of which there are ``lanes``,
    the last ones only to fill the tile.  Names ``q_places`` and ``h_rows`` of each row, and ``h``."""

    part: Part
    heads: int
    lanes: int
    positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedPositions:
    """As `Positions`, of a tile of ``positions`` queries with their heads; ``padded``: rows of no head are past the
    end."""

    shape: Shape
    positions: int
    heads: int
    padded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedBounds:
    """Read ``begin`` and ``end`` of the program's list: that of its tile, or of ``runs`` tiles that are neighbours."""

    runs: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedTile:
    """Read the number ``j`` of the walked tile, one of ``parts`` of a block, and with ``many`` the ``bits`` of the
    queries that have picked it."""

    parts: int
    many: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBits:
    """Name ``picked``, whether the query of a row has picked the tile, or with ``each`` the key, from ``bits``.

    These are of queries for each block, or in a kernel by key of keys for each query.
    """

    each: bool
    by: By


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedKeys:
    """Read the keys of the walked tile ``t``, ``k_listed``, past the end where there are none: ``columns`` of those in
    the listed blocks of ``block``.

    With ``many`` the ``bits`` of the queries that have picked each, with ``ends`` the keys ``nearest`` and
    ``farthest``, between which they lie.
    """

    block: int
    columns: int
    many: bool
    ends: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredKeys:
    """As `Positions`, of the keys that `PickedKeys` has read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedQueries:
    """Read which queries the walked tile ``t`` holds: ``positions`` of those in runs of ``rows`` that are listed.

    Names ``q_listed``, their rows, past the end where there are none, and with ``ends`` the rows ``nearest`` and
    ``farthest``, between which they lie.  With ``bits`` those of the keys of the tile that each has picked.
    """

    rows: int
    positions: int
    shape: Shape
    ends: bool
    bits: bool
    padded: bool
    heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPositions:
    """As `Positions`, of the queries that `PickedQueries` or `GatheredItem` has read."""

    shape: Shape
    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredItem:
    """As `PickedItem`, for a program by query: which queries it owns, ``q_listed``, and the ``block`` that they have
    picked.  They stand in the list from ``first`` to ``last``, and between the rows ``nearest`` and ``farthest``."""

    heads: int
    ratio: int
    owners: int
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredRows:
    """Name ``q_listed``, the queries of a `GatheredItem` by the rows of its tile."""

    positions: int
    heads: int
    padded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredTurns:
    """Name ``turns``, the ``parts`` tiles of the block, or none where the program has no queries."""

    parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEntries:
    """Write ``value`` ``[BLOCK_Q, columns]``, or with ``columns`` empty one number for each row, to where what belongs
    to an entry of the list and a head is kept: ``pointer`` ``[entries, heads, columns]``."""

    value: str
    pointer: str
    columns: str
    heads: int
    positions: int
    dtype: Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryAt:
    """Name ``entry_at``, where what belongs to pick ``p`` of every row is kept, below 0 if there is none."""

    heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadEntries:
    """Read what `StoreEntries` wrote for ``entry_at``, in fp32; ``other`` where there is no entry."""

    name: str
    pointer: str
    columns: str
    other: float


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
    | SendTile
    | SendEnd
    | StreamBegin
    | Stream
    | StreamEnd
    | CopyOut
    | WriteOut
    | FetchOwn
    | FetchTile
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
    | LoadEntries
)

# ---------------------------------------------------------------- kernels


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
    an SM.  With ``heads_first`` the first tiles of all heads start first.  With ``persistent`` the grid is flat, and
    there may be fewer programs than tiles.  With ``pairs`` a program owns two tiles.
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
