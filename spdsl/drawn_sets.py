"""Sets as large as a pattern's selections make them, drawn at random: for counts where there are no queries and keys.

From a softmax of a pattern with stages and the sizes of a call.  To: the tensors that it attends over, of which shapes
and types alone count, and its tables.  Where a selection takes so many keys of each row whatever they score, lists of
as many are drawn among the keys that the row may have; what else stages make has no size without numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.runtime.inputs import Inputs, arrays_of
from spdsl.runtime.lines import Lines
from spdsl.runtime.memo import Memo
from spdsl.runtime.ranking import FAR
from spdsl.semantics.graph import (
    TENSORS,
    Attention,
    Merge,
    Select,
    Stage,
    StageGraph,
    is_free,
    loads,
    on_side,
    parts,
)
from spdsl.semantics.nodes import BoundPattern, Const, Expr, Load, Table
from spdsl.semantics.rewrite import free_axes
from spdsl.semantics.softmaxes import POSITIONS

PICKS = 1 << 21
"""Numbers that are looked at where lists are drawn, so that it takes seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """A call of a pattern with stages: ``q``, ``k`` and ``v`` stand for tensors of their shapes."""

    pattern: BoundPattern
    q: Tensor
    k: Tensor
    v: Tensor
    tables: dict[str, Tensor]
    lines: Lines

    @property
    def inputs(self) -> Inputs:
        """The same as a call."""
        start = self.lines.q_start
        return Inputs(q=self.q, k=self.k, v=self.v, tables=self.tables, q_start=start, kernels=False)

    @property
    def graph(self) -> StageGraph:
        """The stages."""
        assert self.pattern.graph is not None
        return self.pattern.graph

    @property
    def made(self) -> tuple[Stage, ...]:
        """The stages that are made before anything attends."""
        return tuple(each for each in self.graph.stages if not isinstance(each, Attention | Merge))

    def of(self, stage: Attention) -> tuple[Tensor, Tensor, Tensor]:
        """What a softmax attends over, one element standing for all."""
        given = ((stage.query, "Q", self.q, stage.rows), (stage.key, "K", self.k, stage.columns))
        q, k = (self._like(*each) for each in given)
        return q, k, self._like(stage.value, "V", self.v, stage.columns)

    def _like(self, expr: Expr, name: str, given: Tensor, rows: str) -> Tensor:
        if isinstance(expr, Load) and expr.table == name:
            return given
        feature = next(axis for axis in sorted(free_axes(expr)) if is_free(axis))
        width = given.shape[3] if feature == "d" else self.lines.size(feature)
        return given[..., :1].expand(-1, -1, -1, width)[:, :, :1].expand(-1, -1, self.lines.size(rows), -1)


def width_of(table: Table) -> int | None:
    """How many keys a list of a table that stages make has, or None where that depends on scores."""
    return table.most if table.listed else None


def is_drawable(softmax: BoundPattern, stage: Attention) -> bool:
    """Whether nothing that a softmax reads of stages depends on scores but which keys lists have."""
    return stage.member is None and all(
        width_of(table) is not None for table in softmax.tables if table.made and _is_of_stage(table)
    )


def _is_of_stage(table: Table) -> bool:
    return table.listed or table.name != POSITIONS


def entries_of(softmax: BoundPattern, shapes: Shapes) -> int:
    """How many numbers are looked at to draw the lists of a softmax: their picks over all heads that have their own,
    and the keys of every row."""
    found = 0
    for table in softmax.tables:
        width = width_of(table)
        if table.made and width is not None:
            stage = shapes.graph.stage(table.name)
            rows, columns = (shapes.lines.size(str(on_side(stage.axes, side))) for side in ("q", "k"))
            heads = shapes.q.shape[1] if "h" in stage.axes else shapes.k.shape[1]
            found += rows * (width * shapes.lines.batch * heads + columns // PICK)
    return found


PICK = 16
"""How many keys of rows take as long as a pick: picks are sorted and looked up."""


def drawn_tables(softmax: BoundPattern, shapes: Shapes, *, causal: bool, seed: int) -> dict[str, Tensor]:
    """The tables of a softmax: inputs as they are given, lists drawn at random, the same for all heads."""
    generator, found = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for table in softmax.tables:
        if table.name == POSITIONS:
            found[table.name] = torch.full((1,), shapes.lines.n, dtype=torch.int32)
        elif table.name in shapes.tables:
            found[table.name] = shapes.tables[table.name]
        else:
            found[table.name] = _lists(table, shapes, causal=causal, generator=generator)
    return found


def _lists(table: Table, shapes: Shapes, *, causal: bool, generator: torch.Generator) -> Tensor:
    """Lists ``[1, heads or none, rows, most]`` of one head."""
    stage, lines, width = shapes.graph.stage(table.name), shapes.lines, width_of(table)
    own, over = on_side(stage.axes, "q"), on_side(stage.axes, "k")
    assert own is not None
    assert over is not None
    assert width is not None
    rows, columns = lines.size(own), lines.size(over)
    width = max(1, min(width, columns))
    parts = []
    for some in torch.arange(rows).split(max(1, _ENTRIES // max(1, columns))):
        only, forced = _conditions(shapes, stage, some)
        if only is None:
            only = torch.ones(1, columns, dtype=torch.bool).expand(len(some), -1)
            if causal:
                # The last position of each row, and the columns that begin up to it.
                last = lines.q_start + ((some + 1) * lines.nq).div(rows, rounding_mode="floor") - 1
                only = torch.arange(columns) * lines.n <= last[:, None] * columns
        parts.append(drawn(only, forced, width, generator))
    made = torch.cat(parts)[None]
    return made if len(stage.axes) == 2 else made[None]


_ENTRIES = 1 << 22
"""Pairs of rows and keys that are held at once."""


def _conditions(shapes: Shapes, stage: Stage, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Which keys rows of the first head may take and which they must, bools ``[rows, columns]``; None for what scores
    decide, and where nothing must."""
    match stage:
        case Select(only=only, forced=forced):
            pass
        case _:
            return None, None
    arrays = arrays_of(shapes.pattern, shapes.inputs, grad=False)

    def of(condition: Expr) -> Tensor | None:
        if any(name in TENSORS for name in sources(shapes.graph, condition)):
            return None
        found = arrays.filter(condition, stage.axes, rows, Memo())
        found = found.expand(1, *(len(rows) if axis == own else shapes.lines.size(axis) for axis in stage.axes))
        return found[(0,) * (found.dim() - 2)]

    own = on_side(stage.axes, "q")
    return of(only), None if forced == Const(value=False) else of(forced)


def sources(graph: StageGraph, expr: Expr) -> frozenset[str]:
    """The names of all that an expression is made of, through stages."""
    stages, found, waiting = {each.name: each for each in graph.stages}, set[str](), set(loads(expr))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting |= frozenset[str]().union(*map(loads, parts(stages[name]))) if name in stages else frozenset()
    return frozenset(found)


def drawn(only: Tensor, forced: Tensor | None, width: int, generator: torch.Generator) -> Tensor:
    """Ascending lists int32 ``[rows, width]`` of different columns: those that are ``forced``, the first if there are
    too many, and of others where ``only`` holds one from each of as many parts of them as there is room for.

    Both are bools ``[rows, columns]``.
    """
    found, room = [], torch.full((only.shape[0], 1), width)
    if forced is not None:
        before = forced.int().cumsum(1, dtype=torch.int32)
        place, count = torch.arange(width), before[:, -1:].clamp(max=width)
        most = max(1, int(count.max())) if len(count) else 1
        found.append(_columns(before, place[:most].expand(len(only), -1), count))
        only, room = only & ~forced, room - count
    before = only.int().cumsum(1, dtype=torch.int32)
    candidates, place = before[:, -1:].long(), torch.arange(width)
    parts = room.clamp(min=1)
    ends = [(candidates * at).div(parts, rounding_mode="floor") for at in (place, place + 1)]
    inside = torch.rand(ends[0].shape, generator=generator) * (ends[1] - ends[0])
    rank = torch.where(candidates > room, ends[0] + inside.long(), place)
    found.append(_columns(before, rank, torch.where(place < room, candidates, 0)))
    return torch.cat(found, 1).sort(1).values[:, :width].contiguous()


def _columns(before: Tensor, rank: Tensor, count: Tensor) -> Tensor:
    """The columns of these ranks among those that are counted, `FAR` from ``count`` on."""
    at = torch.searchsorted(before, (rank + 1).int().contiguous(), out_int32=True)
    return torch.where(rank < count, at, FAR)
