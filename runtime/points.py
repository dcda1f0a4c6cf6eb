"""Arrays of a call as they are seen from the points of a space: rows chosen, axes in order, coarse entries spread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spdsl.runtime.evaluate import Value
from spdsl.runtime.memo import Memo
from spdsl.semantics.graph import DISTANCE, TENSORS, on_side, side_of
from spdsl.semantics.nodes import Expr, Index, Load

if TYPE_CHECKING:
    from spdsl.runtime.arrays import Arrays

TENSOR_AXES = {"Q": ("h", "q", "d"), "K": ("g", "k", "d"), "V": ("g", "k", "d")}


def array_at(arrays: Arrays, node: Load, axes: tuple[str, ...], rows: Tensor | None, memo: Memo) -> Tensor:
    """An array as it is seen at the points of ``axes``."""
    name = node.table
    if name in arrays.stages:
        own = arrays.stages[name].axes
        side = on_side(own, "q")
        there: Tensor | None = None
        back: Tensor | None = None
        if side is not None:
            there, back = _rows_for(arrays, side, axes, rows, memo)
        value = arrays.array(name, there, memo)
        if side is not None and back is not None:
            value = value.index_select(1 + own.index(side), back)
        labels = tuple(at_side(axes, label) if side_of(label) == "q" else label for label in own)
    else:
        value = arrays.tensors[name]
        declared = TENSOR_AXES[name] if name in TENSORS else arrays.lines.labels(name)
        if declared[:1] == ("b",):
            declared = declared[1:]
        indices = node.indices[-len(declared) :] if declared else ()
        labels = tuple(position_of(label, index) for label, index in zip(declared, indices, strict=True))
        for place, (label, position) in enumerate(zip(declared, labels, strict=True)):
            if side_of(position) == "q":
                points = arrays.points(at_side(axes, position), rows)
                if position == "q" and label == "q":
                    if rows is not None and rows is not arrays.lines.points_of_rows("q"):
                        value = value.index_select(1 + place, rows)
                elif position == at_side(axes, position):
                    value = value.index_select(1 + place, points.clamp(0, value.shape[1 + place] - 1))
                else:
                    line = arrays.lines.coordinate(position.partition(".")[2], at_side(axes, position), points)
                    value = value.index_select(1 + place, line.clamp(0, value.shape[1 + place] - 1))
        # Rows are taken before numbers become larger.
        value = _real(value)
        labels = tuple(at_side(axes, label) if side_of(label) == "q" else label for label in labels)
    return _fitted(arrays, value, labels, axes, rows)


def _real(value: Tensor) -> Tensor:
    if value.is_floating_point():
        return value.float()
    return value if value.dtype == torch.bool else value.long()


def _fitted(
    arrays: Arrays, value: Tensor, labels: tuple[str, ...], axes: tuple[str, ...], rows: Tensor | None
) -> Tensor:
    """Keys, heads and distances as the space has them, and an axis of size 1 for each that is lacking."""
    for place, label in enumerate(labels):
        if label == "g" and "g" not in axes and "h" in axes:
            value = value.repeat_interleave(arrays.lines.heads // arrays.lines.groups, dim=1 + place)
            labels = (*labels[:place], "h", *labels[place + 1 :])
        elif side_of(label) == "k" and label not in axes:
            own = at_side(axes, label)
            line = arrays.lines.coordinate(label.partition(".")[2], own, arrays.lines.points(own))
            value = value.index_select(1 + place, line)
            labels = (*labels[:place], own, *labels[place + 1 :])
        elif label == DISTANCE and DISTANCE not in axes:
            q, k = arrays.points("q", rows), arrays.lines.points("k")
            index = q[:, None] - k - arrays.lines.first_distance
            value = value.movedim(1 + place, -1)[..., index]
            labels = (*labels[:place], *labels[place + 1 :], "q", "k")
    order = sorted(range(len(labels)), key=lambda place: axes.index(labels[place]))
    value = value.permute(0, *(1 + place for place in order))
    sizes = dict(zip((labels[place] for place in order), value.shape[1:], strict=True))
    return value.reshape(value.shape[0], *(sizes.get(axis, 1) for axis in axes))


def _rows_for(
    arrays: Arrays, side: str, axes: tuple[str, ...], rows: Tensor | None, memo: Memo
) -> tuple[Tensor | None, Tensor | None]:
    """The rows of an axis of queries that are seen from the points of a space, and the way back to these."""
    own = at_side(axes, side)
    if own == side:
        return rows, None
    key = f"{side} seen from {own}", id(rows)
    if key not in memo.rows:
        line = arrays.lines.coordinate(side.partition(".")[2], own, arrays.points(own, rows))
        memo.rows[key] = torch.unique(line, return_inverse=True)
    return memo.rows[key]


def gathered(arrays: Arrays, node: Load, parts: list[Value]) -> Tensor:
    """An element of an input at indices of any kind; outside of it, one inside."""
    table = _real(arrays.tensors[node.table])
    labels = arrays.lines.labels(node.table)
    places: list[Value] = list(parts)
    if "q" in labels:
        place = labels.index("q")
        places[place] = places[place] - arrays.lines.q_start
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


def position_of(label: str, index: Expr) -> str:
    """The axis of a space along which an axis of a table lies: positions are those of the side that reads them."""
    if label == "token":
        return index.name if isinstance(index, Index) else "?"
    return label


def at_side(axes: tuple[str, ...], label: str) -> str:
    """The axis of the space on the side of ``label``."""
    return next(axis for axis in axes if side_of(axis) == side_of(label))
