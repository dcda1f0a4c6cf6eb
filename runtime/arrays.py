"""The values of a graph of stages, some rows of queries at a time.

From: a bound pattern with stages, and the tensors of a call.  To: arrays ``[batch or 1, axis, …]`` of stages, in fp32,
for the rows that are asked for.  What belongs to keys alone is made once; what belongs to queries is never held whole,
unless asked for whole.  Rows are entries of the stage's axis of queries: numbers of queries, or of blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import assert_never

from spdsl.diagnostics import error
from spdsl.runtime.block_means import block_means
from spdsl.runtime.evaluate import Value, apply
from spdsl.runtime.lines import Lines
from spdsl.runtime.memo import Memo
from spdsl.runtime.philox import uniform
from spdsl.runtime.pooled import pooled, rows_in_blocks
from spdsl.runtime.prefixes import prefix, smoothed
from spdsl.runtime.ranking import best, heaviest, in_order
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """All arrays of a call.

    ``tensors`` holds Q, K, V and the inputs, each with a leading batch axis of size 1 or batch; ``budget`` is how many
    numbers a chunk of rows may have.  ``kernels``: selections are made by generated kernels where these can.  ``known``
    keeps arrays that are made once, ``sums`` those up to each key,
    ``listed`` sets of pairs as lists of keys, ``attended`` what softmaxes have returned, in the type of the call;
    ``tried`` are those whose rows kernels need not be asked for again.
    """

    lines: Lines
    stages: Mapping[str, Stage]
    tensors: Mapping[str, Tensor]
    budget: int
    kernels: bool = False
    known: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    listed: dict[str, Tensor] = field(default_factory=dict)
    attended: dict[str, Tensor] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)

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
            return found if own is None or rows is None else found.index_select(1 + stage.axes.index(own), rows)
        assert own is not None
        rows = self.lines.points_of_rows(own) if rows is None else rows
        key = name, id(rows)
        if key not in memo.arrays:
            memo.arrays[key] = self._make(stage, rows, memo)
        return memo.arrays[key]

    def keep_rows(self, name: str) -> None:
        """Make what kernels leave for each row of queries whole: means of blocks, and reductions over all keys."""
        if not self.kernels or name in self.known or name in self.tried:
            return
        self.tried.add(name)
        found = block_means(self, self.stages[name])
        if found is None and not any(each.requires_grad for each in self.tensors.values()):
            from spdsl.runtime.chains import reduced_rows

            found = reduced_rows(self, name)
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
                return self._score(stage, rows, memo)
            case Pool():
                return pooled(self, stage, rows, memo)
            case Softmax():
                return self._softmax(stage, rows, memo)
            case Select():
                return self._select(stage, rows, memo)
            case Smooth():
                return smoothed(self, stage, rows, memo)
            case Prefix():
                return prefix(self, stage, rows, memo)
            case Descend():
                from spdsl.runtime.graphs import lists
                from spdsl.runtime.narrowed import NotNarrowedError, descended

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
        value = torch.as_tensor(self.evaluate(expr, axes, rows, memo), device=self.lines.device)
        sizes = [self._length(axis, rows) for axis in axes]
        value = value.expand(torch.broadcast_shapes(value.shape, (1, *(1 for _ in axes))))
        batch = value.shape[0]
        pairs = zip(value.shape[1:], sizes, strict=True)
        return value.expand(batch, *(have if want is None else want for have, want in pairs))

    def _length(self, axis: str, rows: Tensor | None) -> int | None:
        if side_of(axis) == "q" and rows is not None:
            return len(rows)
        return None if is_free(axis) else self.lines.size(axis)

    # ------------------------------------------------------------ each kind of stage

    def _score(self, stage: Score, rows: Tensor | None, memo: Memo) -> Tensor:
        left, right = (self._vectors(stage, part, rows, memo) for part in (stage.left, stage.right))
        names = dict.fromkeys((*left[0], *right[0]))
        letters = {axis: chr(ord("a") + place) for place, axis in enumerate(names)}
        wanted = [each for axis in stage.axes for each in (("g", "r") if axis == "h" and "r" in names else (axis,))]
        spelled = ["".join(letters[axis] for axis in axes) for axes in (left[0], right[0], ("b", *wanted))]
        batch = max(left[1].shape[0], right[1].shape[0])
        one, two = (x.expand(batch, *x.shape[1:]) if x.shape[0] != batch else x for x in (left[1], right[1]))
        size, other = one.shape[left[0].index(stage.over)], two.shape[right[0].index(stage.over)]
        refuse_unequal(stage, size, other)
        scale = 1 / math.sqrt(size) if stage.scale is None else float(self.evaluate(stage.scale, (), None, memo))
        product = torch.einsum(f"{spelled[0]},{spelled[1]}->{spelled[2]}", one, two)
        if scale != 1:
            product = product * scale
        if "r" in names and "h" in stage.axes:
            place = 1 + wanted.index("g")
            product = product.flatten(place, place + 1)
        return product

    def _vectors(self, stage: Score, expr: Expr, rows: Tensor | None, memo: Memo) -> tuple[tuple[str, ...], Tensor]:
        """One side of a score, and its axes; heads that share keys are ``g`` and ``r``."""
        read = free_axes(expr)
        sides = {side_of(axis) for axis in read} - {None}
        axes = tuple(axis for axis in stage.axes if axis in read or side_of(axis) in sides)
        by_group = "h" in stage.axes and "h" not in read and "g" in read
        axes = (("g",) if by_group else ()) + tuple(axis for axis in axes if axis != "g" or not by_group)
        space = (*axes, stage.over)
        value = self.full(expr, space, rows if "q" in sides else None, memo)
        if "h" in stage.axes and "h" in axes:
            place = space.index("h")
            value = value.unflatten(1 + place, (self.lines.groups, -1))
            return ("b", *space[:place], "g", "r", *space[place + 1 :]), value
        return ("b", *space), value

    def _softmax(self, stage: Softmax, rows: Tensor | None, memo: Memo) -> Tensor:
        dim = 1 + stage.axes.index(stage.over)
        value = self.full(stage.value, stage.axes, rows, memo)
        only = self.filter(stage.only, stage.axes, rows, memo)
        value = value.masked_fill(~only, -torch.inf)
        if not value.shape[dim]:
            return value
        largest = value.amax(dim, keepdim=True).detach()
        if bool(torch.isfinite(torch.where(largest == -torch.inf, 0.0, largest)).all()):
            return torch.softmax(value, dim).masked_fill(largest == -torch.inf, 0.0)
        # A NaN is absent, and infinite scores share all of the mass.
        value = value.masked_fill(value.isnan(), -torch.inf)
        largest = value.amax(dim, keepdim=True).detach()
        value = torch.where(largest == torch.inf, torch.where(value == torch.inf, 0.0, -torch.inf), value)
        empty = largest == -torch.inf
        found = torch.softmax(torch.where(empty, 0.0, value), dim)
        return torch.where(empty, 0.0, found)

    def _select(self, stage: Select, rows: Tensor | None, memo: Memo) -> Tensor:
        axes = tuple(axis for axis in stage.axes if axis != stage.rank)
        # What is ranked together stands last, as one dimension.
        ranked = [1 + axes.index(axis) for axis in (*stage.also, stage.over)]
        last = list(range(-len(ranked), 0))
        value = self.full(stage.value, axes, rows, memo)
        only = self.filter(stage.only, axes, rows, memo)
        forced = None if stage.forced == Const(value=False) else self.filter(stage.forced, axes, rows, memo)
        shape = torch.broadcast_shapes(*(part.shape for part in (value, only, forced) if part is not None))
        sizes = [shape[dim] for dim in ranked]
        value, only = (part.expand(shape).movedim(ranked, last).flatten(last[0]) for part in (value, only))
        if forced is not None:
            forced = forced.expand(shape).movedim(ranked, last).flatten(last[0])
        amount = self.evaluate(stage.amount, axes, rows, memo)
        if isinstance(amount, Tensor):
            amount = amount.movedim(ranked, last).flatten(last[0])
        if stage.by == "mass":
            share = amount if isinstance(amount, Tensor) else float(amount)
            chosen = heaviest(value, only, forced, share)
            if stage.least is not None:
                chosen = chosen | best(value, only, forced, max(0, int(self.evaluate(stage.least, (), None, memo))))
        else:
            number = amount.clamp(min=0) if isinstance(amount, Tensor) else max(0, int(amount))
            if stage.rank is not None:
                found = in_order(value, only, forced, int(number))
                return found.movedim(-1, 2 + axes.index(stage.over)).movedim(0, 1 + stage.axes.index(stage.rank))
            chosen = best(value, only, forced, number)
        whole: Tensor = chosen.unflatten(-1, sizes)
        return whole.movedim(last, ranked)

    def filter(self, expr: Expr, axes: tuple[str, ...], rows: Tensor | None, memo: Memo) -> Tensor:
        """A condition as a tensor that broadcasts to ``[batch, *axes]``."""
        found = torch.as_tensor(self.evaluate(expr, axes, rows, memo), device=self.lines.device)
        return found if found.dim() else found.view(*[1] * (len(axes) + 1))

    # ------------------------------------------------------------ pointwise

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
                return self._array_at(node, axes, rows, memo)
            case Load(table=name):
                return self._gathered(node, parts)
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
            index == index_of(_position(label, index)) for label, index in zip(labels, node.indices, strict=True)
        )

    def _array_at(self, node: Load, axes: tuple[str, ...], rows: Tensor | None, memo: Memo) -> Tensor:
        """An array as it is seen at the points of ``axes``."""
        name = node.table
        if name in self.stages:
            own = self.stages[name].axes
            side = on_side(own, "q")
            there: Tensor | None = None
            back: Tensor | None = None
            if side is not None:
                there, back = self._rows_for(side, axes, rows, memo)
            value = self.array(name, there, memo)
            if side is not None and back is not None:
                value = value.index_select(1 + own.index(side), back)
            labels = tuple(_at(axes, label) if side_of(label) == "q" else label for label in own)
        else:
            value = self.tensors[name]
            declared = TENSOR_AXES[name] if name in TENSORS else self.lines.labels(name)
            if declared[:1] == ("b",):
                declared = declared[1:]
            indices = node.indices[-len(declared) :] if declared else ()
            labels = tuple(_position(label, index) for label, index in zip(declared, indices, strict=True))
            value = self._real(value)
            for place, (label, position) in enumerate(zip(declared, labels, strict=True)):
                if side_of(position) == "q":
                    points = self.points(_at(axes, position), rows)
                    if position == "q" and label == "q":
                        if rows is not None:
                            value = value.index_select(1 + place, rows)
                    elif position == _at(axes, position):
                        value = value.index_select(1 + place, points.clamp(0, value.shape[1 + place] - 1))
                    else:
                        line = self.lines.coordinate(position.partition(".")[2], _at(axes, position), points)
                        value = value.index_select(1 + place, line)
            labels = tuple(_at(axes, label) if side_of(label) == "q" else label for label in labels)
        return self._fitted(value, labels, axes, rows)

    def _real(self, value: Tensor) -> Tensor:
        if value.is_floating_point():
            return value.float()
        return value if value.dtype == torch.bool else value.long()

    def _fitted(self, value: Tensor, labels: tuple[str, ...], axes: tuple[str, ...], rows: Tensor | None) -> Tensor:
        """Keys, heads and distances as the space has them, and an axis of size 1 for each that is lacking."""
        for place, label in enumerate(labels):
            if label == "g" and "g" not in axes and "h" in axes:
                value = value.repeat_interleave(self.lines.heads // self.lines.groups, dim=1 + place)
                labels = (*labels[:place], "h", *labels[place + 1 :])
            elif side_of(label) == "k" and label not in axes:
                own = _at(axes, label)
                line = self.lines.coordinate(label.partition(".")[2], own, self.lines.points(own))
                value = value.index_select(1 + place, line)
                labels = (*labels[:place], own, *labels[place + 1 :])
            elif label == DISTANCE and DISTANCE not in axes:
                q, k = self.points("q", rows), self.lines.points("k")
                index = q[:, None] - k - self.lines.first_distance
                value = value.movedim(1 + place, -1)[..., index]
                labels = (*labels[:place], *labels[place + 1 :], "q", "k")
        order = sorted(range(len(labels)), key=lambda place: axes.index(labels[place]))
        value = value.permute(0, *(1 + place for place in order))
        sizes = dict(zip((labels[place] for place in order), value.shape[1:], strict=True))
        return value.reshape(value.shape[0], *(sizes.get(axis, 1) for axis in axes))

    def _rows_for(
        self, side: str, axes: tuple[str, ...], rows: Tensor | None, memo: Memo
    ) -> tuple[Tensor | None, Tensor | None]:
        """The rows of an axis of queries that are seen from the points of a space, and the way back to these."""
        own = _at(axes, side)
        if own == side:
            return rows, None
        key = f"{side} seen from {own}", id(rows)
        if key not in memo.rows:
            line = self.lines.coordinate(side.partition(".")[2], own, self.points(own, rows))
            memo.rows[key] = torch.unique(line, return_inverse=True)
        return memo.rows[key]

    def _gathered(self, node: Load, parts: list[Value]) -> Tensor:
        """An element of an input at indices of any kind; outside of it, one inside."""
        table = self._real(self.tensors[node.table])
        labels = self.lines.labels(node.table)
        places: list[Value] = list(parts)
        if "q" in labels:
            place = labels.index("q")
            places[place] = places[place] - self.lines.q_start
        if table.dim() == len(parts) + 1:
            batch: Value = 0
            if table.shape[0] > 1:
                most = max((part.dim() for part in parts if isinstance(part, Tensor)), default=1)
                batch = torch.arange(table.shape[0], device=table.device).view(-1, *[1] * (most - 1))
            places.insert(0, batch)
        inside = [
            place.clamp(0, size - 1) if isinstance(place, Tensor) else min(max(int(place), 0), size - 1)
            for place, size in zip(places, table.shape, strict=True)
        ]
        found: Tensor = table[tuple(inside)]
        return found


TENSOR_AXES = {"Q": ("h", "q", "d"), "K": ("g", "k", "d"), "V": ("g", "k", "d")}


def refuse_unequal(stage: Score, one: int, other: int) -> None:
    """Refuse a product of vectors of ``one`` and of ``other`` numbers."""
    if one != other:
        raise error(
            "SP346",
            f"vectors of {one} and of {other} numbers cannot be multiplied",
            stage.span,
            help=f"give both the same number of features along `{stage.over}`",
        )


def _is_feature(axis: str) -> bool:
    return axis in ("d", "e")


def _position(label: str, index: Expr) -> str:
    """The axis of a space along which an axis of a table lies: positions are those of the side that reads them."""
    if label == "token":
        return index.name if isinstance(index, Index) else "?"
    return label


def _at(axes: tuple[str, ...], label: str) -> str:
    """The axis of the space on the side of ``label``."""
    return next(axis for axis in axes if side_of(axis) == side_of(label))
