"""Conditions of a place for whole tiles: which tiles need not be computed.

From: a condition that reads sets of earlier stages.  To: `Intervals`, which open those that are ``any`` of members.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from spdsl.codegen.chains.intervals import Intervals
from spdsl.codegen.chains.places import Place
from spdsl.codegen.chains.presence import opened
from spdsl.codegen.chains.reductions import member
from spdsl.semantics import build
from spdsl.semantics.graph import Pool, side_of
from spdsl.semantics.nodes import Const, Expr, Index, Load

if TYPE_CHECKING:
    from spdsl.codegen.chains.values import Values


def intervals(values: Values, ends: Mapping[str, tuple[Expr, Expr]]) -> Intervals:
    """What decides conditions from the ends of names."""

    def inside(expr: Expr) -> tuple[Expr, Intervals] | None:
        match expr:
            case Load(table=name, indices=indices) if isinstance(values.stages.get(name), Pool):
                stage = values.stages[name]
                assert isinstance(stage, Pool)
                if stage.kind != "any" or stage.per is None or side_of(stage.per) is None:
                    return None
                return _opened(values, stage, Place(at=dict(zip(stage.axes, indices, strict=True))), ends)
            case _:
                return None

    return Intervals(ends=ends, inside=inside, scalar=values.program.is_scalar)


def _opened(
    values: Values, stage: Pool, place: Place, ends: Mapping[str, tuple[Expr, Expr]]
) -> tuple[Expr, Intervals] | None:
    assert stage.per is not None
    members = values.places.members(stage.over, stage.per, place.at[stage.per], stage.windows)
    number = Index(name=f"?{stage.name}")
    at, there, _ = member(values, stage, place, members, number)
    whole = build.conj(opened(values, stage.value, at), opened(values, stage.only, at), there)
    known = {**ends, number.name: (Const(value=0), Const(value=members.most - 1))}
    return whole, intervals(values, known)
