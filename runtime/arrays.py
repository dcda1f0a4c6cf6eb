"""The values of a graph of stages, some rows of queries at a time.

From: a bound pattern with stages, and the tensors of a call.  To: arrays ``[batch or 1, axis, …]`` of stages, in fp32,
for the rows that are asked for.  What belongs to keys alone is made once; what belongs to queries is never held whole,
unless asked for whole.  Rows are entries of the stage's axis of queries: numbers of queries, or of blocks.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from typing_extensions import assert_never

from spdsl.diagnostics import error
from spdsl.runtime.block_means import block_means
from spdsl.runtime.evaluate import Value, apply
from spdsl.runtime.lines import Lines
from spdsl.runtime.memo import Memo
from spdsl.runtime.philox import uniform
from spdsl.runtime.points import TENSOR_AXES, array_at, gathered, position_of
from spdsl.runtime.pooled import pooled, rows_in_blocks
from spdsl.runtime.prefixes import prefix, smoothed
from spdsl.runtime.stage_values import score, select, softmax
from spdsl.semantics.graph import (
    DISTANCE,
    TENSORS,
    Attention,
    Descend,
    Mark,
    Merge,
    Pool,
    Prefix,
    Score,
    Select,
    Smooth,
    Softmax,
    Stage,
    index_of,
    is_free,
    loads,
    on_side,
    parts,
    ranks_queries,
    side_of,
)
from spdsl.semantics.nodes import Apply, Const, Coord, Expr, Extent, Index, Load, Noise, Reduce
from spdsl.semantics.rewrite import children, free_axes

if TYPE_CHECKING:
    from spdsl.runtime.entries import Ranked
    from spdsl.runtime.stripes import Placed


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """All arrays of a call.

    ``tensors`` holds Q, K, V and the inputs, each with a leading batch axis of size 1 or batch; ``budget`` is how many
    numbers a chunk of rows may have.  ``kernels``: selections are made by generated kernels where these can.  ``known``
    keeps arrays that are made once, ``sums`` those up to each key, ``divisors`` what kernels divide the rows of
    softmaxes by, ``listed`` sets of pairs as lists of keys, ``placed`` selections by rank, ``attended`` what softmaxes
    have returned, in the type of the call; ``tried`` are those that kernels need not be asked for again, ``ranked``
    keys of long rows, in an order.
    """

    lines: Lines
    stages: Mapping[str, Stage]
    tensors: Mapping[str, Tensor]
    budget: int
    kernels: bool = False
    known: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    divisors: dict[str, Tensor] = field(default_factory=dict)
    listed: dict[str, Tensor] = field(default_factory=dict)
    attended: dict[str, Tensor] = field(default_factory=dict)
    placed: dict[str, Placed] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    ranked: dict[Hashable, Ranked] = field(default_factory=dict)

    # ------------------------------------------------------------ arrays of stages

    def array(self, name: str, rows: Tensor | None, memo: Memo) -> Tensor:
        """The array of a stage for some rows, by default for all; of a stage without queries, whole."""
        stage = self.stages[name]
        own = on_side(stage.axes, "q")
        if name in self.attended and name not in self.known:
            self.known[name] = self.attended[name].float()
        self.keep_rows(name)
        if (own is None or ranks_queries(stage)) and name not in self.known:
            everything = None if own is None else self.lines.points_of_rows(own)
            self.known[name] = self._make(stage, everything, Memo())
        if name in self.known:
            found = self.known[name]
            if own is None or rows is None or rows is self.lines.points_of_rows(own):
                return found
            return found.index_select(1 + stage.axes.index(own), rows)
        assert own is not None
        rows = self.lines.points_of_rows(own) if rows is None else rows
        key = name, id(rows)
        if key not in memo.arrays:
            memo.arrays[key] = self._make(stage, rows, memo)
        return memo.arrays[key]

    def keep_rows(self, name: str) -> None:
        """Make what kernels leave whole: means of blocks, reductions over keys or queries, selections among keys."""
        if not self.kernels or name in self.known or name in self.tried:
            return
        self.tried.add(name)
        found = block_means(self, self.stages[name])
        if found is None:
            from spdsl.runtime.placed import at_places

            found = at_places(self, self.stages[name])
        if found is None and not any(each.requires_grad for each in self.tensors.values()):
            from spdsl.runtime.chains import made_whole

            found = made_whole(self, name)
            found = rows_in_blocks(self, self.stages[name]) if found is None else found
        if found is not None:
            self.known[name] = found

    def whole(self, name: str) -> Tensor:
        """The array of a stage for all rows, made chunk by chunk."""
        stage = self.stages[name]
        axis = on_side(stage.axes, "q")
        self.keep_rows(name)
        if axis is None or name in self.known:
            return self.array(name, None, Memo())
        parts = [self.array(name, rows, Memo()) for rows in self.chunks(name)]
        return torch.cat(parts, dim=1 + stage.axes.index(axis))

    def chunks(self, name: str) -> tuple[Tensor, ...]:
        """The rows of a stage, in chunks that fit the budget."""
        axis = on_side(self.stages[name].axes, "q")
        assert axis is not None
        rows = torch.arange(self.lines.size(axis), device=self.lines.device)
        return rows.split(max(1, self.budget // max(1, self.row_width(self.stages[name])))) if len(rows) else (rows,)

    def row_width(self, stage: Stage) -> int:
        """About how many numbers one row of a stage takes, with those that it is made of."""
        if isinstance(stage, Descend):
            return self._searched(stage)
        inner = [axis for axis in stage.axes if side_of(axis) != "q"]
        widest = self.lines.batch * math.prod(self.lines.size(axis) for axis in inner if not _is_feature(axis))
        members = 1
        if isinstance(stage, Pool) and stage.per is not None and side_of(stage.per) == "q":
            members = self.lines.shares(stage.over, stage.per, stage.windows).entries.shape[1]
        if isinstance(stage, Pool) and side_of(stage.over) == "k":
            widest = max(widest, self.lines.batch * self.lines.size(stage.over))
        for other in self._reads(stage):
            if on_side(self.stages[other].axes, "q") is not None:
                widest = max(widest, members * self.row_width(self.stages[other]))
        return widest

    def _searched(self, stage: Descend) -> int:
        """About how many numbers a search reads for one row: a vector for each query, block of keys and head."""
        pairs = math.prod(self.lines.size(axis) for axis in stage.axes if side_of(axis) != "q")
        return self.lines.batch * pairs * self.queries_of(stage) * self.lines.pattern.head_dim

    def queries_of(self, stage: Stage) -> int:
        """How many queries the rows of a stage stand for, as far as it looks at them one by one."""
        found = 1
        for name in self._reads(stage):
            below = self.stages[name]
            if isinstance(below, Pool) and below.over == "q" and below.per is not None:
                found = max(found, self.lines.shares(below.over, below.per, below.windows).entries.shape[1])
            elif isinstance(below, Descend):
                found = max(found, self.queries_of(below))
        return found

    def _reads(self, stage: Stage) -> frozenset[str]:
        return frozenset(name for part in parts(stage) for name in loads(part) if name in self.stages)

    def _make(self, stage: Stage, rows: Tensor | None, memo: Memo) -> Tensor:
        match stage:
            case Score():
                return score(self, stage, rows, memo)
            case Pool():
                return pooled(self, stage, rows, memo)
            case Softmax():
                return softmax(self, stage, rows, memo)
            case Select():
                return select(self, stage, rows, memo)
            case Smooth():
                return smoothed(self, stage, rows, memo)
            case Prefix():
                return prefix(self, stage, rows, memo)
            case Descend():
                from spdsl.runtime.narrowed import NotNarrowedError, descended
                from spdsl.runtime.sets import lists

                try:
                    return descended(self, stage, rows, lists)
                except NotNarrowedError as reason:
                    raise error(
                        "SP405",
                        f"`descend` of {reason} is not worked out yet",
                        stage.span,
                        help="descend the score of each query itself",
                    ) from None
            case Mark(value=value):
                return self.full(value, stage.axes, rows, memo)
            case Attention() | Merge():
                raise error(
                    "SP405",
                    "a selection by the result of attention is not worked out yet",
                    stage.span,
                    help="select by scores, or by a softmax of scores",
                )
            case _:
                assert_never(stage)

    def full(self, expr: Expr, axes: tuple[str, ...], rows: Tensor | None, memo: Memo) -> Tensor:
        """A value with every axis at its full size but the batch."""
        value = self.tensor(expr, axes, rows, memo)
        sizes = [self._length(axis, rows) for axis in axes]
        value = value.expand(torch.broadcast_shapes(value.shape, (1, *(1 for _ in axes))))
        batch = value.shape[0]
        pairs = zip(value.shape[1:], sizes, strict=True)
        return value.expand(batch, *(have if want is None else want for have, want in pairs))

    def _length(self, axis: str, rows: Tensor | None) -> int | None:
        if side_of(axis) == "q" and rows is not None:
            return len(rows)
        return None if is_free(axis) else self.lines.size(axis)

    def filter(self, expr: Expr, axes: tuple[str, ...], rows: Tensor | None, memo: Memo) -> Tensor:
        """A condition as a tensor that broadcasts to ``[batch, *axes]``."""
        found = self.tensor(expr, axes, rows, memo)
        return found if found.dim() else found.view(*[1] * (len(axes) + 1))

    # ------------------------------------------------------------ pointwise

    def tensor(self, expr: Expr, axes: tuple[str, ...], rows: Tensor | None, memo: Memo) -> Tensor:
        """The value of an expression on the device."""
        value = self.evaluate(expr, axes, rows, memo)
        if isinstance(value, Tensor):
            return value.to(self.lines.device)
        # Made there: a copy of a number of the host would wait, and cannot be captured.
        return torch.full((), value, device=self.lines.device)

    def evaluate(self, expr: Expr, axes: tuple[str, ...], rows: Tensor | None, memo: Memo) -> Value:
        """The value of an expression, a number or a tensor that broadcasts to ``[batch, *axes]``."""
        return self._value(expr, axes, rows, memo, {})

    def _value(
        self, node: Expr, axes: tuple[str, ...], rows: Tensor | None, memo: Memo, done: dict[int, Value]
    ) -> Value:
        if id(node) not in done:
            opaque = isinstance(node, Reduce) or (isinstance(node, Load) and self._is_array(node))
            inside = () if opaque else children(node)
            parts = [self._value(part, axes, rows, memo, done) for part in inside]
            done[id(node)] = self._node(node, parts, axes, rows, memo)
        return done[id(node)]

    def _node(self, node: Expr, parts: list[Value], axes: tuple[str, ...], rows: Tensor | None, memo: Memo) -> Value:
        match node:
            case Const(value=value):
                return value
            case Index(name="b"):
                return torch.arange(self.lines.batch, device=self.lines.device).view(-1, *[1] * len(axes))
            case Index(name="g") if "g" not in axes:
                return self._spread(self.lines.points("h"), axes, "h") // (self.lines.heads // self.lines.groups)
            case Index(name="q" | "k" as name) if DISTANCE in axes and name not in axes:
                return self._spread(self.lines.points(DISTANCE), axes, DISTANCE) if name == "q" else 0
            case Index(name=name):
                return self._spread(self.points(name, rows), axes, name)
            case Extent(name=name):
                return self.lines.extents[name]
            case Coord(side=side, axis=axis):
                own = next((each for each in axes if side_of(each) == side), None)
                assert own is not None
                return self._spread(self.lines.coordinate(axis, own, self.points(own, rows)), axes, own)
            case Load() if self._is_array(node):
                return array_at(self, node, axes, rows, memo)
            case Load(table=name):
                return gathered(self, node, parts)
            case Apply(op=op, dtype=dtype):
                return apply(op, parts, dtype, torch.float32)
            case Reduce(side=side, axis=axis, body=body) if free_axes(body) <= {side}:
                found = self.lines.reduced(node)
                if axis is None:
                    return found
                coordinate = self._node(Coord(side=side, axis=axis), [], axes, rows, memo)
                return found[torch.as_tensor(coordinate)]
            case Noise(seed=seed):
                number = seed.value if isinstance(seed, Const) else parts[0]
                return uniform(int(number), [torch.as_tensor(part) for part in parts[1:]]).float()
            case _:
                raise error(
                    "SP405",
                    "a reduction or random selection inside of a stage is not worked out yet",
                    node.span,
                    help="use it in `keep`, beside the selection",
                )

    def points(self, axis: str, rows: Tensor | None) -> Tensor:
        """The index along an axis at each entry that is computed."""
        if side_of(axis) != "q" or rows is None:
            return self.lines.points(axis)
        return rows + self.lines.q_start if axis == "q" else rows

    def _spread(self, line: Tensor, axes: tuple[str, ...], axis: str) -> Tensor:
        shape = [1] * (len(axes) + 1)
        shape[1 + axes.index(axis)] = -1
        return line.view(shape)

    def reads_whole(self, node: Load) -> bool:
        """Whether a tensor, stage or input is read along its own axes, in order."""
        declared: tuple[str, ...] | None = TENSOR_AXES.get(node.table)
        if declared is None and node.table in self.stages:
            declared = self.stages[node.table].axes
        if declared is None:
            return self._is_array(node)
        return node.indices[-len(declared) :] == tuple(map(index_of, declared))

    def _is_array(self, node: Load) -> bool:
        """Whether a table is read along its own axes, in order."""
        if node.table in TENSORS or node.table in self.stages:
            return True
        labels = self.lines.labels(node.table)
        return len(set(labels)) == len(labels) and all(
            index == index_of(position_of(label, index)) for label, index in zip(labels, node.indices, strict=True)
        )


def _is_feature(axis: str) -> bool:
    return axis in ("d", "e")
