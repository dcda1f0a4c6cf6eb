"""Selections among the members of what an earlier selection has chosen: scores of those alone.

From: a selection whose condition reads another one, of coarser keys.  To: the rest of its condition, and how many
members each chosen entry has.  Blocks of keys are even, so that member ``c`` of entry ``e`` is ``e * each + c``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from spdsl.codegen.chains.places import Places, UncoveredError
from spdsl.semantics import build
from spdsl.semantics.graph import Select, Stage, index_of, on_side
from spdsl.semantics.nodes import BoundPattern, Expr, Index, Load
from spdsl.semantics.rewrite import conjuncts


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """``each`` members of every entry that ``outer`` has chosen for a run of ``rows`` rows of the selection.

    ``sharing`` heads of the selection have one list of ``outer``; 0 where all have.
    """

    outer: str
    rows: int
    each: int
    sharing: int


def outer_of(stages: Mapping[str, Stage], stage: Stage) -> tuple[str, Select] | None:
    """The selection whose members a selection chooses among, and the latter without this condition."""
    if not isinstance(stage, Select):
        return None
    rest: list[Expr] = conjuncts(stage.only)
    for condition in rest:
        match condition:
            case Load(table=name, indices=indices) if isinstance(other := stages.get(name), Select):
                coarse = on_side(other.axes, "k")
                plain = indices == tuple(map(index_of, other.axes)) and other.rank is None and not other.also
                if plain and coarse is not None and coarse != stage.over and on_side(other.axes, "q") is not None:
                    return name, replace(stage, only=build.conj(*(each for each in rest if each is not condition)))
            case _:
                pass
    return None


def candidates_of(pattern: BoundPattern, stages: Mapping[str, Stage], outer: str, stage: Select) -> Candidates:
    """How the candidates of a selection follow from what ``outer`` has chosen.

    Raises:
        UncoveredError: they have no closed form, or heads choose together.
    """
    above = stages[outer]
    if stage.forced != build.FALSE:
        raise UncoveredError("entries that are forced besides candidates")
    upper, coarse = on_side(above.axes, "q"), on_side(above.axes, "k")
    row, key = on_side(stage.axes, "q"), on_side(stage.axes, "k")
    assert upper is not None
    assert coarse is not None
    if row is None or key is None or stage.over != key:
        raise UncoveredError("candidates that are not of pairs")
    heads = [next((axis for axis in each.axes if axis in ("h", "g")), None) for each in (above, stage)]
    match heads:
        case None, _:
            sharing = 0
        case one, other if one == other:
            sharing = 1
        case "g", "h":
            sharing = pattern.heads // pattern.groups
        case _:
            raise UncoveredError("candidates of heads that choose together")
    places = Places(pattern=pattern)
    return Candidates(
        outer=outer, rows=_members(places, row, upper), each=_members(places, key, coarse), sharing=sharing
    )


def _members(places: Places, over: str, per: str) -> int:
    """How many entries of an axis make one of another, of which each begins where the one before ends."""
    if over == per:
        return 1
    for axis in (over, per):
        declared = places.named.get(axis.partition(".")[2])
        if "." in axis and (declared is None or declared.step is not None):
            raise UncoveredError("candidates that overlap, or lie on a grid")
    entry = Index(name="?")
    found = places.members(over, per, entry, None)
    even = found.last is None and found.most > 0 and found.first == build.mul(entry, found.most)
    if not even:
        raise UncoveredError("candidates in blocks of uneven sizes")
    return found.most
