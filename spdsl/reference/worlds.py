"""Pointwise expressions over arrays with named axes: where stages of a graph have their values.

All arrays are whole, ``[batch, axis, …]``, floats in float64.  Nothing is chunked, fused or remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from spdsl.diagnostics import error
from spdsl.reference.coordinates import coordinate
from spdsl.reference.operations import DTYPES, operate
from spdsl.semantics import axes as axis_rules
from spdsl.semantics.graph import DISTANCE, TENSORS, side_of
from spdsl.semantics.nodes import (
    Apply,
    Axis,
    BoundPattern,
    Const,
    Coord,
    Expr,
    Extent,
    Index,
    Load,
    Noise,
    Reduce,
    Side,
)
from spdsl.semantics.philox import WORD, first_word
from spdsl.semantics.rewrite import children, free_axes, walk


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One call whose sequences stand at the same places.

    ``arrays`` holds Q, K, V, inputs and stages by name, ``[batch or 1, …]``; ``axes`` the axes of the stages.
    """

    pattern: BoundPattern
    arrays: dict[str, Tensor]
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    batch: int
    nq: int
    n: int
    q_start: int

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.arrays["Q"].device

    # ------------------------------------------------------------ points

    def points(self, axis: str, expr: Expr) -> Tensor:
        """The index along an axis at each of its entries; that of a free axis is looked up in what ``expr`` reads."""
        if axis == "q":
            return torch.arange(self.nq, device=self.device) + self.q_start
        if axis == "k":
            return torch.arange(self.n, device=self.device)
        if axis == DISTANCE:
            return torch.arange(self.nq + self.n - 1, device=self.device) + self.q_start - (self.n - 1)
        if axis in ("h", "g"):
            return torch.arange(self.pattern.heads if axis == "h" else self.pattern.groups, device=self.device)
        side = side_of(axis)
        if side is not None:
            return torch.arange(self.count(side, axis.partition(".")[2]), device=self.device)
        return torch.arange(self._free(axis, expr), device=self.device)

    def count(self, side: Side, name: str) -> int:
        """How many entries a coordinate has; queries past the last key go on."""
        for axis in self.pattern.axes:
            if axis.name == name:
                found = int(self.evaluate(axis_rules.count(axis), ()).max())
                break
        else:
            found = next(
                int(self.evaluate(size, ()).max())
                for grid in self.pattern.grids
                for label, size in grid.coordinates
                if label == name
            )
        if side == "q" and self.nq and not self.axis(name).step:
            last = self.at_position(name, torch.tensor([self.q_start + self.nq - 1], device=self.device))
            found = max(found, int(last.max()) + 1)
        return found

    def axis(self, name: str) -> Axis:
        """The declaration of an axis."""
        return next(axis for axis in self.pattern.axes if axis.name == name)

    def _free(self, axis: str, expr: Expr) -> int:
        for node in walk(expr):
            if isinstance(node, Load) and Index(name=axis) in node.indices:
                place = node.indices.index(Index(name=axis))
                array = self.arrays[node.table]
                return array.shape[array.dim() - len(node.indices) + place]
        return 1  # what does not vary along an axis is the same all along it

    def at_position(self, name: str, positions: Tensor) -> Tensor:
        """The coordinate of positions of keys, int64 of their shape."""
        line = World(pattern=self.pattern, arrays=self.arrays, batch=1, nq=self.nq, n=self.n, q_start=self.q_start)
        found = _Evaluation(world=line, axes=("k",), points={"k": positions.flatten()})
        return found.value(coordinate(self.pattern, "k", name)).expand(1, positions.numel()).reshape(positions.shape)

    # ------------------------------------------------------------ values

    def evaluate(self, expr: Expr, axes: tuple[str, ...]) -> Tensor:
        """The value along ``axes``, broadcasting to ``[batch, *axes]``."""
        return _Evaluation(world=self, axes=axes, points={axis: self.points(axis, expr) for axis in axes}).value(expr)

    def whole(self, expr: Expr, axes: tuple[str, ...]) -> Tensor:
        """The value along ``axes``, ``[batch, *axes]``."""
        return self.together((expr,), axes)[0]

    def together(self, exprs: tuple[Expr, ...], axes: tuple[str, ...]) -> tuple[Tensor, ...]:
        """Several values along ``axes``, each ``[batch, *axes]``."""
        sizes = [max(len(self.points(axis, expr)) for expr in exprs) for axis in axes]
        return tuple(self.evaluate(expr, axes).expand(self.batch, *sizes) for expr in exprs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Evaluation:
    world: World
    axes: tuple[str, ...]
    points: dict[str, Tensor]

    def value(self, expr: Expr) -> Tensor:
        done: dict[int, Tensor] = {}
        for node in walk(expr, into_stages=False):
            parts = () if isinstance(node, Reduce) else children(node)
            done[id(node)] = self._node(node, [done[id(part)] for part in parts])
        return done[id(expr)]

    def _line(self, axis: str) -> Tensor:
        shape = [1] * (len(self.axes) + 1)
        shape[1 + self.axes.index(axis)] = -1
        return self.points[axis].reshape(shape)

    def _node(self, node: Expr, parts: list[Tensor]) -> Tensor:
        world = self.world
        match node:
            case Const(value=value):
                return torch.full([1] * (len(self.axes) + 1), value, dtype=DTYPES[node.dtype], device=world.device)
            case Index(name="b"):
                return torch.arange(world.batch, device=world.device).reshape(-1, *[1] * len(self.axes))
            case Index(name="g") if "g" not in self.axes:
                return self._line("h") // (world.pattern.heads // world.pattern.groups)
            case Index(name="q" | "k") if DISTANCE in self.axes and node.name not in self.axes:
                # Only the difference matters: queries stand where the distance says, keys at 0.
                return self._line(DISTANCE) if node.name == "q" else torch.zeros_like(self._line(DISTANCE))
            case Index(name=name):
                return self._line(name)
            case Extent(name=name):
                value = {"n": world.n, "nq": world.nq, "q_start": world.q_start}[name]
                return torch.full([1] * (len(self.axes) + 1), value, device=world.device)
            case Coord(side=side, axis=axis):
                return self._coordinate(side, axis)
            case Load():
                return self._load(node, parts)
            case Apply():
                return operate(node.op, parts, node.dtype)
            case Reduce(side=side) if free_axes(node.body) <= {side}:
                return self._reduction(node)
            case Noise(seed=seed):
                number = seed.value if isinstance(seed, Const) else parts[0].flatten()[0]
                words: Tensor = first_word(int(number), parts[1:])
                return words.double() / WORD
            case _:
                raise error(
                    "SP405",
                    "a reduction or random selection inside of a stage is not worked out yet",
                    node.span,
                    help="use it in `keep`, beside the selection",
                )

    def _reduction(self, node: Reduce) -> Tensor:
        """A reduction over the positions 0 … n - 1, at the members of its axis."""
        line = torch.arange(self.world.n, device=self.world.device)
        body = replace(self, axes=(node.side,), points={node.side: line}).value(node.body)[0].expand(len(line))
        if node.axis is None:
            return _reduced(node.kind, body).reshape([1] * (len(self.axes) + 1))
        member = self.world.at_position(node.axis, line)
        wanted = self._coordinate(node.side, node.axis)
        found = [_reduced(node.kind, body[member == each]) for each in wanted.flatten().tolist()]
        return torch.stack(found).reshape(wanted.shape)

    def _coordinate(self, side: Side, axis: str) -> Tensor:
        name = f"{side}.{axis}"
        if name in self.axes:
            return self._line(name)
        own = next(each for each in self.axes if side_of(each) == side)
        positions = (
            self.points[own] if own == side else first_positions(self.world, own.partition(".")[2], self.points[own])
        )
        shape = [1] * (len(self.axes) + 1)
        shape[1 + self.axes.index(own)] = -1
        return self.world.at_position(axis, positions).reshape(shape)

    def _load(self, node: Load, parts: list[Tensor]) -> Tensor:
        world, array = self.world, self.world.arrays[node.table]
        labels = self._labels(node)
        rows: list[Tensor] = []
        if array.dim() == len(parts) + 1:
            batch = torch.arange(array.shape[0], device=world.device)
            rows.append(batch.reshape(-1, *[1] * len(self.axes)))
        for label, index, size in zip(labels, parts, array.shape[len(rows) :], strict=True):
            first = world.q_start if label == "q" else world.q_start - (world.n - 1) if label == DISTANCE else 0
            rows.append((index - first).clamp(0, max(size - 1, 0)))
        found: Tensor = array[tuple(rows)]
        return found.to(DTYPES[node.dtype])

    def _labels(self, node: Load) -> tuple[str, ...]:
        """The axes of an array."""
        if node.table in TENSORS:
            return ("b", "h" if node.table == "Q" else "g", "q" if node.table == "Q" else "k", "d")
        if node.table in self.world.axes:
            return self.world.axes[node.table]
        table = next(table for table in self.world.pattern.tables if table.name == node.table)
        return tuple(axis.kind for axis in table.axes)


def _reduced(kind: str, values: Tensor) -> Tensor:
    match kind:
        case "any":
            return values.any()
        case "all":
            return values.all()
        case "sum":
            return values.sum()
        case _ if not len(values):
            return values.sum()
        case "mean":
            return values.double().mean()
        case "min":
            return values.min()
        case _:
            return values.max()


def first_positions(world: World, name: str, entries: Tensor) -> Tensor:
    """The first position of each entry of an axis, as declared: the data may end before it."""
    axis = world.axis(name)
    found = axis_rules.first(axis, Index(name="k"), {each.name: each for each in world.pattern.axes})
    if found is None:
        raise error("SP218", f"other axes cannot be read at members of `{name}`", axis.span)
    return _Evaluation(world=world, axes=("k",), points={"k": entries}).value(found).reshape(entries.shape)


def last_positions(world: World, name: str, entries: Tensor) -> Tensor | None:
    """The last position of each entry of an axis, as declared; None where it has no such thing."""
    found = axis_rules.last(world.axis(name), Index(name="k"), {each.name: each for each in world.pattern.axes})
    if found is None:
        return None
    return _Evaluation(world=world, axes=("k",), points={"k": entries}).value(found).reshape(entries.shape)
