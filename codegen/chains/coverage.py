"""Which selections are left to torch, as far as their stages alone tell."""

from __future__ import annotations

from collections.abc import Mapping

from spdsl.codegen.chains.below import below
from spdsl.codegen.chains.candidates import outer_of
from spdsl.codegen.chains.columns import is_without_queries
from spdsl.codegen.chains.descents import descent_of
from spdsl.codegen.chains.lower import ranks_together
from spdsl.semantics.graph import Descend, Prefix, Score, Select, Smooth, Stage, ranks_queries, side_of


def uncovered(stages: Mapping[str, Stage], name: str) -> str | None:
    """Why a selection is left to torch, as far as its stages alone tell; None if they do not."""
    if descent_of(stages, stages[name]) is not None:
        return None
    outer = outer_of(stages, stages[name])
    stages = dict(stages) if outer is None else {**stages, name: outer[1]}
    for each in below(stages, name):
        match stages[each]:
            case Select(also=(_, *_)) as stage if not ranks_together(stage) or each != name:
                return "selections over several axes"
            case Select(rank=str()):
                return "sets for each place in an order"
            case Select(least=least) as stage if least is not None and not (each == name and is_without_queries(stage)):
                return "selections of at least a number"
            case Select() as stage if ranks_queries(stage) and not ranks_together(stage):
                return "selections among queries"
            case Score(over=over) if side_of(over) is not None:
                return "sums of the vectors of keys"
            case Smooth() | Prefix():
                return "sums along the keys"
            case Descend():
                return "searches inside of blocks"
            case _:
                pass
    return None
