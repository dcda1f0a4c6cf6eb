"""What the launches of selections do, in the numbers that their time depends on.

From: the shapes of a call of a pattern with stages, and its launches.  To: `Effort` for each kernel by its name, and
for the operations of torch.  Scores are counted where a condition lets them be, in some rows that stand for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spdsl.drawn_sets import Shapes, sources
from spdsl.launched import Launched, Launches, Operation, held_bytes
from spdsl.runtime.inputs import arrays_of
from spdsl.runtime.memo import Memo
from spdsl.runtime.probes import probed_rows, rows_looked_at
from spdsl.semantics.graph import TENSORS, Pool, Score, Select, Softmax, loads, on_side, parts
from spdsl.semantics.nodes import Expr

if TYPE_CHECKING:
    from spdsl.selecting import StageReport

ATTENDING = ("forward", "forward_combine")
"""Kernels that attend, which are no part of a selection."""

_TILE = 128
"""Keys of a tile."""

_ROWS = 64
"""Rows that stand for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What launches of one name do together: ``products`` are multiply-adds of vectors, ``numbers`` scores that are
    looked at, or keys that are written or ranked, ``bytes`` what is read and written at least."""

    name: str
    launches: int
    products: float = 0.0
    numbers: float = 0.0
    bytes: float = 0.0

    @property
    def family(self) -> str:
        """Kernels that cost alike."""
        if self.name.startswith("sums_"):
            return "sums"
        if self.name in FAMILIES:
            return self.name
        return "keys" if self.products else "other"


FAMILIES = ("keys", "sums", "values", "choose", "torch", "sort")
"""Kernels with costs of their own; others that multiply vectors cost like keys, and all others are bound by memory."""


def efforts(shapes: Shapes, stages: Sequence[StageReport], found: Launches) -> tuple[Effort, ...]:
    """What the selections of a call do, in the order in which they are first launched; ``stages`` are reports of all
    stages but softmaxes over keys."""
    by_name: dict[str, list[Launched]] = {}
    for each in found.kernels:
        if each.name not in ATTENDING:
            by_name.setdefault(each.name, []).append(each)
    scores = _scores(shapes, stages)
    made = [_effort(name, some, scores) for name, some in by_name.items()]
    written = sum(each.numbers for each in made if each.name == "choose")
    made = [replace(each, numbers=written) if each.name == "keys" else each for each in made]
    for name in ("sort", "torch"):
        some = [each for each in found.operations if (each.name in _SORTS) == (name == "sort")]
        made += [_operations(name, some)] if some else []
    return tuple(made)


_SORTS = ("sort", "topk", "argsort")


def _operations(name: str, some: Sequence[Operation]) -> Effort:
    return Effort(name=name, launches=len(some), bytes=float(sum(each.bytes for each in some)))


def _effort(name: str, some: Sequence[Launched], scores: dict[str, tuple[float, float]]) -> Effort:
    tensors = [value for each in some for value in each.values.values() if isinstance(value, Tensor)]
    if name == "choose":
        numbers = float(sum(each.values["rows"] * each.values["pitch"] for each in some))
        return Effort(name=name, launches=len(some), numbers=numbers)
    products = numbers = 0.0
    done = set[str]()
    for each in some:
        for score, (multiplied, looked_at) in scores.items():
            # Launches for some rows each count together; each reduction goes through all.
            if f"{score}_q" not in each.values or (score in done and name != "values"):
                continue
            done.add(score)
            products += multiplied * _terms(each, score)
            numbers += looked_at
    if name != "values" and not name.startswith("sums_"):
        numbers = 0.0  # others keep little of what they look at
    size = float(sum(map(held_bytes, tensors)))
    return Effort(name=name, launches=len(some), products=products, numbers=numbers, bytes=size)


def _terms(launch: Launched, score: str) -> int:
    """How many products of 16 bits one of more bits takes."""
    split = [name for name in (f"{score}_q", f"{score}_k") if f"{name}_t" in launch.values]
    return math.prod(int(launch.values[name].shape[0]) for name in split)


def _scores(shapes: Shapes, stages: Sequence[StageReport]) -> dict[str, tuple[float, float]]:
    """The multiply-adds and the numbers of each score that conditions leave."""
    found = {}
    for stage, report in zip(shapes.made, stages, strict=True):
        if isinstance(stage, Score):
            share = _share(shapes, stage)
            found[stage.name] = report.products * share, report.numbers * share
    return found


def _share(shapes: Shapes, score: Score) -> float:
    """The share of a score's numbers that those who read it look at."""
    shares = []
    for reader in shapes.graph.stages:
        if any(score.name in loads(part) for part in parts(reader)):
            match reader:
                case Pool(only=only) | Softmax(only=only) | Select(only=only):
                    shares.append(_kept(shapes, score, only))
                case _:
                    return 1.0
    return max(shares, default=1.0)


def _kept(shapes: Shapes, score: Score, only: Expr) -> float:
    own = on_side(score.axes, "q")
    if own is None or any(name in TENSORS for name in sources(shapes.graph, only)):
        return 1.0
    lines = shapes.lines
    count = lines.size(own)
    rows = looked_at = range(count)
    if own == "q":
        rows = probed_rows(only, count, lines.n, lines.q_start)
        looked_at = rows_looked_at(shapes.graph, score, count, lines.n, lines.q_start)
    if not len(rows) or not len(looked_at):
        return 0.0
    some = torch.tensor([rows[len(rows) * at // _ROWS] for at in range(min(_ROWS, len(rows)))])
    found = arrays_of(shapes.pattern, shapes.inputs, grad=False).filter(only, score.axes, some, Memo())
    # What a tile of keys has some of is computed whole.
    keys = on_side(score.axes, "k")
    columns = 1 if keys is None else lines.size(keys)
    share = float(found.double().mean())
    return min(1.0, share + _TILE / 2 / columns if share else 0.0) * min(1.0, len(rows) / len(looked_at))
