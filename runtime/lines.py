"""The axes of one call: how many entries each has, where they lie, and how they share positions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spdsl.diagnostics import error
from spdsl.runtime.evaluate import Tables, evaluate, value_of
from spdsl.runtime.notices import is_watched
from spdsl.runtime.recent import Recent
from spdsl.runtime.runs import Runs
from spdsl.runtime.shares import Line, Shares, by_member, shares
from spdsl.semantics import axes as axis_rules
from spdsl.semantics.expand import expand
from spdsl.semantics.graph import DISTANCE, Select, Windows, side_of
from spdsl.semantics.nodes import Axis, BoundPattern, Const, Coord, Expr, Index, Reduce

_counts: dict[tuple[int, str, str, int, int, int], tuple[BoundPattern, int]] = {}
_MOST = 4096
"""Sizes of axes that are remembered."""

_shared: Recent[Shares] = Recent(size=64)
"""What is made of lengths alone, and would make the host wait for the device at every call."""

_captured: dict[Hashable, tuple[Shares, BoundPattern]] = {}
"""Those that CUDA graphs were captured with, which read them for as long as the process runs."""


def sizes_of_keys(pattern: BoundPattern, tables: Mapping[str, Tensor], q: Tensor, k: Tensor) -> dict[str, int]:
    """The size of the last axis of each input that has one of keys, in a call whose sequences are alike."""
    lines = Lines(
        pattern=pattern,
        tables=tables,
        batch=q.shape[0],
        nq=q.shape[2],
        n=k.shape[2],
        q_start=k.shape[2] - q.shape[2],
        device=q.device,
    )
    last = {table.name: table.axes[-1] for table in pattern.tables if table.axes}
    return {
        name: lines.n if axis.kind == "token" else lines.size(axis.label)
        for name, axis in last.items()
        if axis.kind == "token" or (axis.kind == "axis" and axis.label.startswith("k."))
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """The axes of a call with ``nq`` queries from ``q_start`` on and ``n`` keys, in all ``batch`` sequences alike."""

    pattern: BoundPattern
    tables: Mapping[str, Tensor]
    batch: int
    nq: int
    n: int
    q_start: int
    device: torch.device
    known: dict[object, object] = field(default_factory=dict)

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.pattern.heads

    @property
    def groups(self) -> int:
        """Key heads."""
        return self.pattern.groups

    @property
    def extents(self) -> dict[str, int]:
        """What lengths are called in expressions."""
        return {"n": self.n, "nq": self.nq, "q_start": self.q_start}

    @property
    def first_distance(self) -> int:
        """The smallest ``q - k``."""
        return self.q_start - (self.n - 1)

    def labels(self, table: str) -> tuple[str, ...]:
        """The axes of an input as spaces name them; sizes of its own are ``own``."""
        declared = next(each for each in self.pattern.tables if each.name == table)
        return tuple(
            axis.label if axis.kind in ("axis", "free") else axis.kind if axis.kind != "own" else f"own {place}"
            for place, axis in enumerate(declared.axes)
        )

    # ------------------------------------------------------------ sizes and places

    def size(self, axis: str) -> int:
        """How many entries an axis has."""
        fixed = {"q": self.nq, "k": self.n, "h": self.heads, "g": self.groups, DISTANCE: self.nq + self.n - 1}
        if axis in fixed:
            return fixed[axis]
        side = side_of(axis)
        if side is None:
            return self._free(axis)
        key = "size", axis
        if key not in self.known:
            self.known[key] = self._count(axis.partition(".")[2], side)
        found = self.known[key]
        assert isinstance(found, int)
        return found

    def _free(self, axis: str) -> int:
        for table in self.pattern.tables:
            for place, declared in enumerate(table.axes):
                if declared.kind == "free" and declared.label == axis:
                    given = self.tables[table.name]
                    return given.shape[given.dim() - len(table.axes) + place]
        for stage in () if self.pattern.graph is None else self.pattern.graph.stages:
            match stage:
                case Select(rank=rank, amount=Const(value=count)) if rank == axis:
                    return int(count)
                case _:
                    pass
        return self.pattern.head_dim if axis == "d" else 1

    def _count(self, name: str, side: str) -> int:
        axis = self._axis(name)
        if any(each.table is not None for each in self.pattern.axes):
            return self._counted(axis, name, side, self.device)
        # By identity: hashing a pattern takes longer than a launch.  The entry keeps it alive.
        key = (id(self.pattern), name, side, self.n, self.nq, self.q_start)
        if key not in _counts:
            if len(_counts) >= _MOST:
                _counts.clear()
            # Without a look at the device, which would wait for it.
            _counts[key] = self.pattern, self._counted(axis, name, side, torch.device("cpu"))
        return _counts[key][1]

    def _counted(self, axis: Axis | None, name: str, side: str, device: torch.device) -> int:
        if axis is None:
            extents = (size for grid in self.pattern.grids for label, size in grid.coordinates if label == name)
            found = self._number(next(extents))
        else:
            found = self._number(axis_rules.count(axis))
        # Queries are among the positions of a table.
        if side == "q" and self.nq and (axis is None or (axis.step is None and axis.table is None)):
            last = torch.tensor([self.q_start + self.nq - 1], device=device)
            found = max(found, int(self.at_position(name, last)) + 1)
        return found

    def _number(self, expr: Expr) -> int:
        # As a plain number where it is one: as a tensor the host would wait for it.
        return int(value_of(expand(self.pattern, expr), self.extents, self._tables()))

    def _tables(self) -> Tables:
        return Tables(values=self.tables)

    def _axis(self, name: str) -> Axis | None:
        return next((axis for axis in self.pattern.axes if axis.name == name), None)

    def points(self, axis: str) -> Tensor:
        """The index along an axis at all of its entries."""
        key = "points", axis
        if key not in self.known:
            start = self.q_start if axis == "q" else self.first_distance if axis == DISTANCE else 0
            self.known[key] = torch.arange(self.size(axis), device=self.device) + start
        found = self.known[key]
        assert isinstance(found, Tensor)
        return found

    def points_of_rows(self, axis: str) -> Tensor:
        """The numbers of all rows of an axis of queries."""
        key = "rows", axis
        if key not in self.known:
            self.known[key] = torch.arange(self.size(axis), device=self.device)
        found = self.known[key]
        assert isinstance(found, Tensor)
        return found

    def reduced(self, node: Reduce) -> Tensor:
        """A reduction over the positions 0 … n - 1 of one side: one number, or one for each member of its axis."""
        key = "reduced", node
        if key not in self.known:
            self.known[key] = self._of_runs(node)
        if self.known[key] is None:
            line = torch.arange(self.n, device=self.device)
            places: dict[str, Tensor | int] = {**self.extents, node.side: line, "b": 0}
            body = evaluate(expand(self.pattern, node.body), places, self._tables()).expand(line.shape)
            count = 1 if node.axis is None else self.size(f"{node.side}.{node.axis}")
            member = torch.zeros_like(line) if node.axis is None else self.at_position(node.axis, line)
            whole = by_member(node.kind, body, member, count)
            self.known[key] = whole[0] if node.axis is None else whole
        found = self.known[key]
        assert isinstance(found, Tensor)
        return found

    def _of_runs(self, node: Reduce) -> Tensor | None:
        """What a reduction of members by a table is if it is their size or one of their ends; None of others."""
        match node:
            case Reduce(kind="sum", axis=str() as name, body=Const(value=1, dtype="int")):
                runs = self.runs(name)
                return None if runs is None else runs.sizes
            case Reduce(kind="min" | "max" as kind, axis=str() as name, body=Index(name=side)) if side == node.side:
                runs = self.runs(name)
                return None if runs is None else runs.firsts if kind == "min" else runs.lasts
            case _:
                return None

    def runs(self, name: str) -> Runs | None:
        """The members of an axis by a table of positions; None of other axes."""
        axis = self._axis(name)
        if axis is None or axis.table is None or axis.of != (Index(name="k"),):
            return None
        key = "runs", name
        if key not in self.known:
            self.known[key] = Runs.of(self.tables[axis.table], self.size(f"k.{name}"))
        found = self.known[key]
        assert isinstance(found, Runs)
        return found

    def at_position(self, name: str, positions: Tensor) -> Tensor:
        """The coordinate of positions."""
        expr = expand(self.pattern, Coord(side="k", axis=name))
        return evaluate(expr, {**self.extents, "k": positions, "b": 0}, self._tables()).expand(positions.shape)

    def coordinate(self, name: str, own: str, points: Tensor) -> Tensor:
        """A coordinate at points of the axis ``own`` of its side, which is as fine or finer."""
        here = own.partition(".")[2]
        if here == name:
            return points
        return self.at_position(name, points if not here else self.edge(here, points, last=False, must=True))

    def is_even(self, name: str) -> bool:
        """Whether the members of an axis are runs of positions of one size."""
        axis = self._axis(name)
        return axis is not None and axis.size is not None and axis.step is None and axis.of == (Index(name="k"),)

    def edge(self, name: str, entries: Tensor, *, last: bool, must: bool = True) -> Tensor:
        """The first or last position of entries, as declared; empty where there is none and none is needed."""
        axis = self._axis(name)
        rule = axis_rules.last if last else axis_rules.first
        axes = {each.name: each for each in self.pattern.axes}
        found = None if axis is None else rule(axis, Index(name="k"), axes)
        if found is None:
            if must:
                raise error("SP218", f"other axes cannot be read at members of `{name}`", axis.span if axis else None)
            return entries.new_zeros(0)
        return evaluate(found, {**self.extents, "k": entries}, self._tables()).expand(entries.shape)

    # ------------------------------------------------------------ shared positions

    def shares(self, over: str, per: str | None, windows: Windows | None) -> Shares:
        """How the entries of an axis are shared out among those of another of the same side."""
        key = "shares", over, per, windows
        if key not in self.known:
            self.known[key] = self._shares(over, per, windows)
        found = self.known[key]
        assert isinstance(found, Shares)
        return found

    def _shares(self, over: str, per: str | None, windows: Windows | None) -> Shares:
        def make() -> Shares:
            return shares(self._line(over), None if per is None else self._line(per), windows)

        if any(axis.table is not None for axis in self.pattern.axes):
            return make()
        # By identity: hashing a pattern takes longer than a launch.  The entry keeps it alive.
        key = (id(self.pattern), over, per, windows, self.n, self.nq, self.q_start, self.device)
        # Who watches has to see what is made.
        if is_watched():
            return make()
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            if key not in _shared.entries:
                return make()
            _captured[key] = _shared.get(key, self.pattern, make), self.pattern
            return _captured[key][0]
        return _shared.get(key, self.pattern, make)

    def _line(self, axis: str) -> Line:
        name, side = axis.partition(".")[2], axis[0]
        positions = self.points(side)
        exist = (positions >= 0) & ((positions < self.n) if side == "k" else True)
        count = self.size(axis)
        if not name:
            entries = torch.arange(count, device=self.device)
            # The ends of rows of queries are their positions.
            return Line(entries=torch.where(exist, entries, -1)[None], count=count, ends=(positions, positions))
        declared = self._axis(name)
        line = torch.arange(count, device=self.device)
        first = self.edge(name, line, last=False, must=False)
        last = self.edge(name, line, last=True, must=False)
        ends = None if declared is None or len(first) < count else (first, last)
        if declared is None or declared.step is None:
            entries = self.at_position(name, positions)[None]
            inside = exist & (entries >= 0) & (entries < count)
            return Line(entries=torch.where(inside, entries, -1), count=count, ends=ends)
        if ends is None:
            raise error("SP404", f"windows of `{name}` have no ends", declared.span)
        low, high = torch.searchsorted(last, positions), torch.searchsorted(first, positions, right=True)
        most = max(1, int((high - low).max())) if len(positions) else 1
        rows = low + torch.arange(most, device=self.device)[:, None]
        return Line(entries=torch.where(exist & (rows < high), rows, -1), count=count, ends=ends)
