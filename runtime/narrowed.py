"""Scores of some keys alone: of those that an earlier selection has left, and of those that a search meets.

From: a stage, rows of queries, and keys for each of them.  To: its values at these pairs, and lists of what is chosen
among them.  Nothing of the size of all pairs is made: a row costs its candidates.  What is not covered here raises
`NotNarrowedError`, and is computed whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.runtime.arrays import Arrays
from spdsl.runtime.evaluate import apply
from spdsl.runtime.evaluate import listed as in_lists
from spdsl.runtime.memo import Memo
from spdsl.runtime.pooled import reduced
from spdsl.runtime.ranking import FAR, best
from spdsl.runtime.sums import rows_alone
from spdsl.semantics.build import TRUE
from spdsl.semantics.graph import Descend, Mark, Pool, Score, Select, Stage, index_of, on_side, side_of
from spdsl.semantics.nodes import Apply, Const, Coord, Expr, Extent, Index, Load
from spdsl.semantics.rewrite import children, conjuncts, free_axes, walk

Lists = Callable[[Arrays, str], Tensor]


class NotNarrowedError(Exception):
    """Something that is computed for all pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Pairs: ``rows`` ``[rows]`` on the axis ``row``, and for each of them ``keys`` on the axis ``key``.

    ``keys`` is ``[batch or 1, heads or 1, rows, keys]``; heads are those of ``head``, ``h`` or ``g``.
    """

    row: str
    rows: Tensor
    key: str
    keys: Tensor
    head: str | None


# ---------------------------------------------------------------- selections among candidates


def chosen_among(arrays: Arrays, name: str, lists: Lists) -> Tensor | None:
    """The lists of a selection among what another one has chosen, int32 ``[batch or 1, …, rows, most]``; else None."""
    stage = arrays.stages[name]
    match stage:
        case Select(by="count", amount=Const(value=int() as count), forced=Const(value=False), also=(), rank=None):
            pass
        case _:
            return None
    row, key = on_side(stage.axes, "q"), on_side(stage.axes, "k")
    heads = [axis for axis in stage.axes if axis not in (row, key)]
    if row is None or key is None or stage.over != key or len(heads) > 1 or count < 1:
        return None
    outer = outer_of(arrays.stages, stage)
    if outer is None or any(axis not in ("h", "g") for axis in heads):
        return None
    try:
        return _chosen(arrays, stage, outer, row, key, heads[0] if heads else None, count, lists)
    except NotNarrowedError:
        return None


def outer_of(stages: Mapping[str, Stage], stage: Select) -> str | None:
    """An earlier selection of members of a coarser axis, among whose keys a selection chooses."""
    conditions = conjuncts(stage.only)
    for each in walk(stage.value):
        if isinstance(each, Load) and isinstance(found := stages.get(each.table), Descend):
            conditions += conjuncts(found.only)
    for condition in conditions:
        match condition:
            case Load(table=name) if isinstance(other := stages.get(name), Select):
                coarse = on_side(other.axes, "k")
                if coarse is not None and "." in coarse and coarse != stage.over and on_side(other.axes, "q"):
                    return name
            case _:
                pass
    return None


def _chosen(
    arrays: Arrays, stage: Select, outer: str, row: str, key: str, head: str | None, count: int, lists: Lists
) -> Tensor:
    lines, above = arrays.lines, arrays.stages[outer]
    coarse, upper = on_side(above.axes, "k"), on_side(above.axes, "q")
    assert coarse is not None
    assert upper is not None
    with torch.no_grad():
        given = lists(arrays, outer)
        if len(above.axes) == 2:
            given = given.unsqueeze(1)
        elif head is None or (above.axes[0], head) == ("h", "g"):
            raise NotNarrowedError("candidates of heads that choose together")
        elif (above.axes[0], head) == ("g", "h"):
            given = given.repeat_interleave(lines.heads // lines.groups, 1)
        rows = lines.points_of_rows(row)
        if not lines.size(key):
            found = given.new_empty(*given.shape[:2], len(rows), 0)
            return found if head is not None else found[:, 0]
        members = _children(arrays, coarse, key)
        width = given.shape[-1] * members.shape[-1]
        features = arrays.queries_of(stage) * lines.pattern.head_dim
        vectors = max(1, width * features * lines.batch * given.shape[1])
        parts = []
        for some in rows.split(max(1, arrays.budget // vectors)):
            own = lines.coordinate(upper.partition(".")[2], row, arrays.points(row, some)) if upper != row else some
            chosen = given[:, :, own]
            there = chosen < members.shape[0]
            keys = members[torch.where(there, chosen, 0).long()].flatten(-2)
            present = (keys >= 0) & there.repeat_interleave(members.shape[-1], -1)
            at = Points(row=row, rows=some, key=key, keys=keys.clamp(min=0), head=head)
            value, only = _Values(arrays, at, lists).both(stage.value, stage.only)
            shape = torch.broadcast_shapes(value.shape, keys.shape)
            taken = best(value.expand(shape), (present & only).expand(shape), None, min(count, shape[-1]))
            parts.append(_as_keys(taken, keys.expand(shape), min(count, lines.size(key))))
    found = torch.cat(parts, 2)
    return found if head is not None else found[:, 0]


def _children(arrays: Arrays, coarse: str, key: str) -> Tensor:
    """The entries of the axis ``key`` in each member of a coarser axis, ``[members, most]``, filled up by −1."""
    lines = arrays.lines
    parent = lines.coordinate(coarse.partition(".")[2], key, lines.points(key))
    count = lines.size(coarse)
    sizes = torch.bincount(parent, minlength=count)[:count]
    line = torch.arange(max(1, int(sizes.max())) if count else 1, device=parent.device)
    first = sizes.cumsum(0) - sizes
    return torch.where(line < sizes[:, None], first[:, None] + line, -1)


def _as_keys(taken: Tensor, keys: Tensor, width: int) -> Tensor:
    """The keys that are taken, ascending as they are given, then `FAR`."""
    place = taken.cumsum(-1) - 1
    room = torch.full((*taken.shape[:-1], width + 1), FAR, dtype=torch.int32, device=taken.device)
    return room.scatter_(-1, torch.where(taken, place, width), keys.int())[..., :width]


def _sampled(arrays: Arrays, stage: Pool, entries: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The queries of each row without those that the set of the reduction leaves out, whatever the key."""
    there = weights > 0
    for condition in rows_alone(stage.only):
        held = arrays.tensor(condition, ("q",), entries.flatten(), Memo())
        there = there & held.expand(1, entries.numel()).view(entries.shape)
    most = max(1, int(there.sum(-1).max())) if there.numel() else 1
    order = (~there).to(torch.uint8).argsort(dim=-1, stable=True)[:, :most]
    return entries.gather(-1, order), (weights * there).gather(-1, order)


def at_points(arrays: Arrays, at: Points, expr: Expr) -> Tensor:
    """An expression at pairs, ``[batch or 1, heads or 1, rows or 1, keys or 1]``; of other sets it knows nothing."""

    def refuse(_: Arrays, __: str) -> Tensor:
        raise NotNarrowedError("sets of pairs")

    return _Values(arrays, at, refuse).of(expr)


# ---------------------------------------------------------------- searches inside of blocks


def descended(arrays: Arrays, stage: Descend, rows: Tensor | None, lists: Lists) -> Tensor:
    """The array of a search for some rows: every block of keys is halved until one key is left."""
    row = on_side(stage.axes, "q")
    heads = [axis for axis in stage.axes if axis not in (row, stage.per)]
    if row is None or len(heads) > 1 or any(axis not in ("h", "g") for axis in heads):
        raise NotNarrowedError("searches that are not of pairs, for each head")
    rows = arrays.lines.points_of_rows(row) if rows is None else rows
    keys = arrays.lines.points(stage.per).view(1, 1, 1, -1).expand(1, 1, len(rows), -1)
    head = heads[0] if heads else None
    found = _Values(arrays, Points(row=row, rows=rows, key=stage.per, keys=keys, head=head), lists).search(stage)
    batch, number = arrays.lines.batch, arrays.lines.size(head) if head is not None else 1
    found = found.expand(found.shape[0] if found.shape[0] == 1 else batch, number, len(rows), keys.shape[-1])
    return found if head is not None else found[:, 0]


@dataclass(frozen=True, slots=True)
class _Values:
    """Expressions at pairs of rows and keys."""

    arrays: Arrays
    at: Points
    lists: Lists

    def both(self, value: Expr, only: Expr) -> tuple[Tensor, Tensor]:
        """A value and a condition, each broadcasting to the keys."""
        there = self.of(only) if only != TRUE else torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        return self.of(value), there

    @property
    def device(self) -> torch.device:
        return self.arrays.lines.device

    def of(self, expr: Expr) -> Tensor:
        """The value of an expression, ``[batch or 1, heads or 1, rows or 1, keys or 1]``."""
        done: dict[int, Tensor | int | float | bool] = {}

        def visit(node: Expr) -> Tensor | int | float | bool:
            if id(node) not in done:
                parts = [] if isinstance(node, Load) else [visit(part) for part in children(node)]
                done[id(node)] = self._node(node, parts)
            return done[id(node)]

        found = torch.as_tensor(visit(expr), device=self.device)
        return found if found.dim() else found.view(1, 1, 1, 1)

    def _node(self, node: Expr, parts: list[Tensor | int | float | bool]) -> Tensor | int | float | bool:
        lines, at = self.arrays.lines, self.at
        match node:
            case Const(value=value):
                return value
            case Extent(name=name):
                return lines.extents[name]
            case Index(name="b"):
                return torch.arange(lines.batch, device=self.device).view(-1, 1, 1, 1)
            case Index(name="h" | "g" as name) if at.head is not None and (name == "g" or at.head == "h"):
                head = torch.arange(lines.size(at.head), device=self.device).view(1, -1, 1, 1)
                return head // (lines.heads // lines.groups) if (name, at.head) == ("g", "h") else head
            case Index(name="q" | "k" as name):
                return self._on(name)
            case Coord(side=side, axis=axis):
                return self._on(f"{side}.{axis}")
            case Apply(op=op, dtype=dtype):
                return apply(op, parts, dtype, torch.float32)
            case Load(table=name) if name in self.arrays.stages:
                stage = self.arrays.stages[name]
                if node.indices[-len(stage.axes) :] != tuple(map(index_of, stage.axes)):
                    raise NotNarrowedError("arrays read elsewhere")
                return self.stage(stage)
            case _:
                raise NotNarrowedError("inputs, and numbers of tensors")

    def _on(self, axis: str) -> Tensor:
        """A coordinate of the rows or keys."""
        at, lines = self.at, self.arrays.lines
        own, here = (at.row, at.rows) if side_of(axis) == "q" else (at.key, at.keys)
        if axis != own and "." not in axis:
            raise NotNarrowedError("positions inside of blocks")
        points = self.arrays.points(own, here) if side_of(axis) == "q" else here
        found = points
        if axis != own:
            found = lines.coordinate(axis.partition(".")[2], own, points.flatten()).view(points.shape)
        return found.view(1, 1, -1, 1) if side_of(axis) == "q" else found

    # ------------------------------------------------------------ stages

    def stage(self, stage: Stage) -> Tensor:
        """A stage at the pairs, read along its own axes."""
        row, key = on_side(stage.axes, "q"), on_side(stage.axes, "k")
        if row is None or key is None:
            raise NotNarrowedError("arrays of one side")
        own = self._lifted(row, key)
        match stage:
            case Score():
                return own.score(stage)
            case Descend():
                return own.search(stage)
            case Pool(over="q") if stage.per == own.at.row:
                return own.pool(stage)
            case Pool(over="h"):
                return own.shared(stage)
            case Mark(value=value):
                return own.of(value)
            case Select():
                return own.member(stage)
            case _:
                raise NotNarrowedError("stages that look at whole rows")

    def _lifted(self, row: str, key: str) -> _Values:
        """The same pairs on coarser axes."""
        at = self.at
        if (row, key) == (at.row, at.key):
            return self
        rows = self._on(row).view(-1) if row != at.row else at.rows
        if row == "q" != at.row:
            raise NotNarrowedError("queries of blocks")
        keys = self._on(key) if key != at.key else at.keys
        return _Values(self.arrays, Points(row=row, rows=rows, key=key, keys=keys, head=at.head), self.lists)

    def score(self, stage: Score) -> Tensor:
        """Products of the vectors of rows with those of their keys alone."""
        arrays, at = self.arrays, self.at
        left, right = stage.left, stage.right
        if on_side(free_axes(left), "k") is not None:
            left, right = right, left
        if on_side(free_axes(left), "k") is not None or on_side(free_axes(right), "q") is not None:
            raise NotNarrowedError("products of pairs")
        scale = stage.scale
        one = arrays.full(left, self._axes(left, at.row, stage.over), at.rows, Memo())
        two = arrays.full(right, self._axes(right, at.key, stage.over), None, Memo())
        one, two = self._by_heads(left, one), self._by_heads(right, two)
        batch = torch.arange(two.shape[0], device=self.device).view(-1, 1, 1, 1)
        heads = torch.arange(two.shape[1], device=self.device).view(1, -1, 1, 1)
        # Keys that heads have in common are read once.
        gathered = two[batch, heads, at.keys]
        found = (one[:, :, :, None] * gathered).sum(-1)
        factor = one.shape[-1] ** -0.5 if scale is None else float(arrays.evaluate(scale, (), None, Memo()))
        return found * factor

    def _axes(self, expr: Expr, own: str, over: str) -> tuple[str, ...]:
        read = free_axes(expr)
        head = "h" if "h" in read else "g" if "g" in read else None
        return (*((head,) if head is not None else ()), own, over)

    def _by_heads(self, expr: Expr, value: Tensor) -> Tensor:
        """Vectors ``[batch, heads or 1, entries, features]``."""
        read, lines = free_axes(expr), self.arrays.lines
        if "h" not in read and "g" not in read:
            return value.unsqueeze(1)
        if "h" in read and self.at.head != "h":
            raise NotNarrowedError("heads that choose together")
        if "h" not in read and self.at.head == "h":
            return value.repeat_interleave(lines.heads // lines.groups, 1)
        return value

    def pool(self, stage: Pool) -> Tensor:
        """A reduction over the queries of each row, at its keys."""
        assert stage.per is not None
        arrays, at = self.arrays, self.at
        shares = arrays.lines.shares("q", stage.per, stage.windows)
        entries, weights = _sampled(arrays, stage, shares.entries[at.rows], shares.weights[at.rows])
        most = entries.shape[1]
        keys = at.keys.repeat_interleave(most, 2)
        inner = Points(row="q", rows=entries.flatten(), key=at.key, keys=keys, head=at.head)
        value, only = _Values(arrays, inner, self.lists).both(stage.value, stage.only)
        exist = (weights > 0).view(1, 1, -1, 1)
        shape = torch.broadcast_shapes(value.shape, only.shape, exist.shape)
        value, only = (x.expand(shape).unflatten(2, (-1, most)) for x in (value, only & exist))
        return reduced(stage.kind, value, only, weights.view(1, 1, -1, most, 1), 3)

    def shared(self, stage: Pool) -> Tensor:
        """A reduction over the heads of a group, or over all of them, at the keys that these have in common."""
        at, lines = self.at, self.arrays.lines
        if at.head == "h" or (at.head == "g") != (stage.per == "g"):
            raise NotNarrowedError("heads that choose together")
        ratio = lines.heads // lines.groups
        keys = at.keys.repeat_interleave(ratio, 1) if at.keys.shape[1] > 1 else at.keys
        inner = Points(row=at.row, rows=at.rows, key=at.key, keys=keys, head="h")
        value, only = _Values(self.arrays, inner, self.lists).both(stage.value, stage.only)
        shape = list(torch.broadcast_shapes(value.shape, only.shape))
        shape[1] = lines.heads
        each = (lines.groups, ratio) if stage.per == "g" else (1, lines.heads)
        value, only = (x.expand(shape).unflatten(1, each) for x in (value, only))
        return reduced(stage.kind, value, only, None, 2)

    def member(self, stage: Select) -> Tensor:
        """Whether keys are in a set that is known as lists."""
        lists = self.lists(self.arrays, stage.name)
        if len(stage.axes) == 2:
            lists = lists.unsqueeze(1)
        elif self.at.head != stage.axes[0]:
            if (stage.axes[0], self.at.head) != ("g", "h"):
                raise NotNarrowedError("heads that choose together")
            lists = lists.repeat_interleave(self.arrays.lines.heads // self.arrays.lines.groups, 1)
        rows = lists[:, :, self.at.rows].unsqueeze(3)
        return in_lists(rows, self.at.keys)

    def search(self, stage: Descend) -> Tensor:
        """The best value that halving the positions of each block meets; NaN where it meets nothing."""
        at = self.at
        members = _children(self.arrays, stage.per, "k")
        sizes = (members >= 0).sum(-1)
        first, size = members[:, 0][at.keys].clamp(min=0), sizes[at.keys]
        best_seen = self._met(stage, first, size == 1)
        for _ in range(max(0, int(sizes.max()) - 1).bit_length() if len(sizes) else 0):
            half = (size + 1) // 2
            starts, lengths = (first, first + half), (half, size - half)
            seen = [
                self._met(stage, (2 * start + length) // 2, (length > 0) & (size > 1))
                for start, length in zip(starts, lengths, strict=True)
            ]
            shape = torch.broadcast_shapes(seen[0].shape, seen[1].shape, size.shape)
            one, two = (x.expand(shape) for x in seen)
            best_seen = torch.fmax(best_seen.expand(shape), torch.fmax(one, two))
            better = ((two > one) | (one.isnan() & ~two.isnan())) & (size > 1)
            first = torch.where(better, starts[1], torch.where(size > 1, starts[0], first).expand(shape))
            size = torch.where(better, lengths[1], torch.where(size > 1, lengths[0], size).expand(shape))
        return best_seen

    def _met(self, stage: Descend, keys: Tensor, there: Tensor) -> Tensor:
        """The values at positions, NaN where nothing is."""
        inside = keys.clamp(0, max(0, self.arrays.lines.n - 1))
        here = Points(row=self.at.row, rows=self.at.rows, key="k", keys=inside, head=self.at.head)
        value, only = _Values(self.arrays, here, self.lists).both(stage.value, stage.only)
        return torch.where(only & there, value, torch.nan)
