"""Which coordinates are constant inside the members of others: what may be read where."""

from __future__ import annotations

from collections.abc import Mapping

from spdsl.diagnostics import error
from spdsl.semantics.graph import Attention, Stage, on_side, parts
from spdsl.semantics.nodes import Axis, BoundPattern, Const, Coord
from spdsl.semantics.rewrite import walk


def refines(axes: Mapping[str, Axis], fine: str, coarse: str) -> bool:
    """Whether a coordinate (or position) is constant inside each member of another, as far as the sizes are known."""
    if fine == coarse or "." not in fine:
        return True
    one, two = axes.get(fine.partition(".")[2]), axes.get(coarse.partition(".")[2])
    if two is None:
        return False
    below: Axis | None = two
    while below is not None:
        names = [part.axis for part in below.of if isinstance(part, Coord)]
        if fine.partition(".")[2] in names:
            return True
        below = axes.get(names[0]) if len(names) == 1 else None
    if one is None or not (_is_plain(one) and _is_plain(two)) or one.of != two.of:
        return False
    match one.size, two.size:
        case ((Const(value=small),), (Const(value=large),)):
            return large % small == 0
        case _:
            return True  # sizes that parameters decide are compared when a pattern is bound


def _is_plain(axis: Axis) -> bool:
    return axis.size is not None and axis.step is None and len(axis.of) == 1


def check_nested(pattern: BoundPattern) -> None:
    """Refuse coordinates that are not constant inside the members of a stage's axis, now that sizes are known.

    Raises:
        SpatError: one size is no multiple of the other (SP218).
    """
    axes = {axis.name: axis for axis in pattern.axes}
    for stage in () if pattern.graph is None else pattern.graph.stages:
        for part in parts(stage):
            for node in walk(part, into_stages=False):
                if isinstance(node, Coord):
                    _check_coordinate(axes, stage, node)


def _check_coordinate(axes: Mapping[str, Axis], stage: Stage, node: Coord) -> None:
    own = on_side(stage.axes, node.side)
    name = f"{node.side}.{node.axis}"
    over = getattr(stage, "over", None)
    if isinstance(over, str) and on_side((over,), node.side) is not None:
        own = over
    if isinstance(stage, Attention):
        own = stage.rows if node.side == "q" else stage.columns
    if own is None or "." not in own or own == name or node.axis not in axes:
        return
    if not refines(axes, own, name):
        raise error(
            "SP218",
            f"`{name}` varies inside the members of `{own}`",
            node.span or stage.span,
            help="let the size of the larger be a multiple of the smaller",
        )
