"""Overlapping windows: a position has several, so a set over windows is lifted to positions by `any` over them.

From a `BoundPattern` to one whose `keep` has no coordinate of an overlapping axis.  Parts of a union are lifted one by
one: what does not speak of windows also holds where there is none.
"""

from __future__ import annotations

from dataclasses import replace

from spdsl.diagnostics import error
from spdsl.semantics import build
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Apply, Axis, BoundPattern, Const, Coord, Expr, Index, Noise, Reduce, Top
from spdsl.semantics.rewrite import mentions, substitute, walk

MAX_WINDOWS = 64
"""The most windows that may contain one position."""


def lift_windows(pattern: BoundPattern) -> BoundPattern:
    """Write ``keep`` out over the windows that contain each position.

    Raises:
        SpatError: windows stand where that is not possible (SP290).
    """
    overlapping = {axis.name: axis for axis in pattern.axes if axis.step is not None}
    if not overlapping:
        return pattern
    attend = pattern.attend
    for setting in (attend.bias, attend.sink_logit):
        for node in () if setting is None else walk(setting):
            if isinstance(node, Coord) and node.axis in overlapping:
                raise _refusal(node, "a bias over overlapping windows")
    for axis in pattern.axes:
        for part in axis.of:
            if isinstance(part, Coord) and part.axis in overlapping:
                raise _refusal(part, "an axis of overlapping windows")
    keep = attend.keep
    for node in walk(keep):
        if isinstance(node, (Reduce, Top, Noise)):
            for inner in walk(node):
                if isinstance(inner, Coord) and inner.axis in overlapping:
                    raise _refusal(node, "a selection over overlapping windows")
            if isinstance(node, (Reduce, Top)) and node.axis in overlapping:
                raise _refusal(node, "a reduction over overlapping windows")
    used = sorted({(n.side, n.axis) for n in walk(keep) if isinstance(n, Coord) and n.axis in overlapping})
    for side, name in used:
        window = Coord(side=side, axis=name)
        keep = build.disj(
            *(_lift(part, window, overlapping[name]) if mentions(part, window) else part for part in _parts(keep))
        )
    return replace(pattern, attend=replace(attend, keep=fold(keep)))


def _parts(keep: Expr) -> list[Expr]:
    """The sets that ``keep`` is the union of, in order."""
    found: list[Expr] = []
    waiting = [keep]
    while waiting:
        match waiting.pop():
            case Apply(op="or", args=(one, two)):
                waiting += [two, one]
            case part:
                found.append(part)
    return found


def _lift(keep: Expr, coordinate: Coord, axis: Axis) -> Expr:
    """Any of the windows w with ``w * step <= p < w * step + size``, counted back from p."""
    position: Expr = Index(name=coordinate.side)
    match axis.of[0]:
        case Coord(axis=inner):
            position = Coord(side=coordinate.side, axis=inner)
        case _:
            pass
    assert axis.size is not None
    assert axis.step is not None
    match axis.size[0], axis.step:
        case Const(value=size), Const(value=step):
            pass
        case _:
            raise AssertionError(axis)
    number = -(-int(size) // int(step))
    if number > MAX_WINDOWS:
        raise error(
            "SP290",
            f"{number} overlapping windows at one position is not supported yet",
            axis.span,
            help=f"use a step of at least {-(-int(size) // MAX_WINDOWS)}",
        )
    found: list[Expr] = []
    for back in range(number):
        window = build.sub(build.floordiv(position, axis.step), back)
        contains = build.conj(
            build.apply("ge", window, 0),
            build.apply("lt", position, build.add(build.mul(window, axis.step), axis.size[0])),
        )
        found.append(build.conj(contains, substitute(keep, {coordinate: window})))
    return build.disj(*found)


def _refusal(node: Expr, what: str) -> Exception:
    return error(
        "SP290", f"{what} is not supported yet", node.span, help="use windows that do not overlap: leave out `step`"
    )
