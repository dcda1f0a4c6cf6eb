"""Values with coarse axes: reductions and selections, evaluated at many coarse points at once.

From: an expression whose coordinates are expanded, and the members of the coarse points of both sides.  To: tensors
``[…, members of q, members of k]``; the last two dimensions are 1 outside of reductions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from spdsl.diagnostics import error
from spdsl.runtime.evaluate import Tables, Value, apply, value_of
from spdsl.semantics.nodes import Apply, Expr, Reduce, Side, Top
from spdsl.semantics.rewrite import walk

_DIM = {"q": -2, "k": -1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """The coarse points of one side: their axis, and their members, of shape ``[…, most, 1]`` or ``[…, 1, most]``.

    ``axis`` is the name of the coordinate, or None for points that are positions.
    """

    axis: str | None
    positions: Tensor
    exist: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Coarse:
    """A place to evaluate coarse expressions.

    ``everything`` holds all positions, for reductions without an axis; ``candidates`` is the dimension, counted from
    the end, along which a selection on each side ranks.
    """

    sides: Mapping[Side, Points]
    everything: Mapping[Side, Points]
    candidates: Mapping[Side, int]
    extents: Mapping[str, Tensor | int]
    tables: Tables
    inside: frozenset[Side] = frozenset()
    constants: Mapping[str, Tensor | int] = field(default_factory=dict)

    def value(self, expr: Expr) -> Value:
        """The value at all points."""
        if not any(isinstance(node, (Reduce, Top)) for node in walk(expr)):
            return value_of(expr, self._env(), self.tables)
        match expr:
            case Reduce():
                return self._reduce(expr)
            case Top():
                return self._top(expr)
            case Apply(op=op, args=args, dtype=dtype):
                return apply(op, [self.value(arg) for arg in args], dtype)
            case _:
                raise error("SP405", "a table indexed by a reduction is not supported yet", expr.span)

    def _env(self) -> dict[str, Tensor | int]:
        """Positions: all members of the sides that are being reduced, the first member of the others."""
        env = dict(self.extents) | dict(self.constants)
        for side, points in self.sides.items():
            env[side] = points.positions if side in self.inside else points.positions.narrow(_DIM[side], 0, 1)
        return env

    def _reduce(self, expr: Reduce) -> Value:
        side, dim = expr.side, _DIM[expr.side]
        if side in self.inside:
            raise error(
                "SP405",
                f"a reduction over `{side}` inside another one over `{side}` is not supported yet",
                expr.span,
                help="reduce once, over the axis of the outer reduction",
            )
        points = self._points(expr)
        inner = replace(self, sides={**self.sides, side: points}, inside=self.inside | {side})
        body = torch.as_tensor(inner.value(expr.body), device=points.exist.device)
        shape = list(torch.broadcast_shapes(body.shape, points.exist.shape))
        body, exist = body.expand(shape), points.exist
        return _reduced(expr, body, exist, dim)

    def _points(self, expr: Reduce) -> Points:
        if expr.axis is None:
            return self.everything[expr.side]
        points = self.sides.get(expr.side)
        if points is None or points.axis != expr.axis:
            raise error(
                "SP405",
                f"a reduction per `{expr.side}.{expr.axis}` is not supported yet beside another axis of `{expr.side}`",
                expr.span,
                help="use one axis of this side in a reduction or selection",
            )
        return points

    def _top(self, expr: Top) -> Value:
        if self.inside:
            raise error("SP405", "a selection inside a reduction is not supported yet", expr.span)
        points = self.sides.get(expr.side)
        if points is None or points.axis != expr.axis:
            raise error("SP405", "a selection beside another axis of its side is not supported yet", expr.span)
        dim, device = self.candidates[expr.side], points.positions.device
        value, only = (torch.as_tensor(self.value(part), device=device) for part in (expr.value, expr.only))
        shape = torch.broadcast_shapes(value.shape, only.shape, points.exist.narrow(_DIM[expr.side], 0, 1).shape)
        count = torch.as_tensor(self.value(expr.count), device=device)
        exist = points.exist.narrow(_DIM[expr.side], 0, 1)
        return select(value.expand(shape), (only & exist).expand(shape), count, dim)


def _reduced(expr: Reduce, body: Tensor, exist: Tensor, dim: int) -> Tensor:
    match expr.kind:
        case "any":
            return (body & exist).any(dim, keepdim=True)
        case "all":
            return (body | ~exist).all(dim, keepdim=True)
        case "sum" | "mean":
            total = torch.where(exist, body, 0).sum(dim, keepdim=True)
            if expr.kind == "sum":
                return total
            return total.double() / exist.sum(dim, keepdim=True).clamp(min=1)
        case "min" | "max":
            far = torch.finfo(body.dtype).max if body.is_floating_point() else torch.iinfo(body.dtype).max
            if expr.kind == "min":
                return torch.where(exist, body, far).amin(dim, keepdim=True)
            return torch.where(exist, body, -far).amax(dim, keepdim=True)


def select(value: Tensor, only: Tensor, count: Tensor, dim: int) -> Tensor:
    """The ``count`` largest values along ``dim`` among those where ``only`` holds; ties go to the smaller index.

    A NaN ranks as absent.
    """
    value, only, count = value.movedim(dim, -1), only.movedim(dim, -1), _moved(count, dim)
    value = value.double()
    only = only & ~value.isnan()
    value = torch.where(only, value, -torch.inf)
    most = min(int(count.max()), value.shape[-1])
    if most <= 0:
        return torch.zeros_like(only).movedim(-1, dim)
    largest = value.topk(most, dim=-1).values
    wanted = count.clamp(max=most).expand(*value.shape[:-1], 1)
    least = largest.gather(-1, (wanted - 1).clamp(min=0))
    above = only & (value > least)
    ties = only & (value == least)
    # What is left after the larger ones goes to the first of the equal ones.
    left = wanted - above.sum(-1, keepdim=True)
    chosen = (above | ties & (ties.cumsum(-1) <= left)) & (wanted > 0)
    return chosen.movedim(-1, dim)


def _moved(count: Tensor, dim: int) -> Tensor:
    return count.view((1,) * max(0, -dim - count.dim()) + tuple(count.shape)).movedim(dim, -1)
