"""Whether merged softmaxes share pairs: a pair counts once, unless the pattern says otherwise.

From a bound pattern to nothing, or an error.  The proofs are those of `spdsl prove`: of sets of stages it is known what
they were chosen among, and nothing else, so that `chosen` and `not chosen` are disjoint, and two selections are not.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import combinations

from spdsl.analysis.claims import Answer, decide
from spdsl.analysis.pairs import Subject
from spdsl.analysis.worker import bounded
from spdsl.diagnostics import error
from spdsl.semantics.graph import Attention, Merge, StageGraph, loads
from spdsl.semantics.nodes import BoundPattern
from spdsl.semantics.softmaxes import among_candidates, softmax_pattern
from spdsl.semantics.titles import titled, titles

SECONDS = 4.5
"""Wall-clock time for one proof."""


@lru_cache(maxsize=256)
def refuse_overlap(pattern: BoundPattern) -> None:
    """Refuse merges of softmaxes over the same keys that are not proved to share no pair.

    Raises:
        SpatError: two of them share a pair, or may (SP415).
    """
    graph = pattern.graph
    for merge in () if graph is None else graph.stages:
        # In a mean each softmax is one by itself.
        if graph is None or not isinstance(merge, Merge) or merge.counted or merge.by == "mean":
            continue
        for one, two in combinations(_softmaxes(graph, merge), 2):
            # Other keys are other pairs.
            if (one.key, one.value) == (two.key, two.value):
                _refuse_shared(pattern, merge, one, two)


def _softmaxes(graph: StageGraph, merge: Merge) -> list[Attention]:
    found: list[Attention] = []
    for name in merge.parts:
        match graph.stage(name):
            case Attention() as stage:
                found.append(stage)
            case Merge() as inner:
                found += _softmaxes(graph, inner)
            case stage:
                raise TypeError(stage)
    return found


def _refuse_shared(pattern: BoundPattern, merge: Merge, one: Attention, two: Attention) -> None:
    assert pattern.graph is not None
    called = titles(pattern.graph)
    shown = among_candidates(replace(pattern, graph=titled(pattern.graph)))
    subjects = [Subject.of(softmax_pattern(shown, called[stage.name])) for stage in (one, two)]
    found = bounded(decide, {"claim": "disjoint", "subjects": subjects}, seconds=SECONDS)
    answer = found or Answer(verdict="undecided", reason="isl did not answer in time")
    if answer.verdict == "proven":
        return
    example = f": for example where {answer.example.where}" if answer.example is not None else ""
    # What the example needs to be chosen may never be.
    certain = answer.verdict == "refuted" and not any(_is_chosen(pattern.graph, stage) for stage in (one, two))
    what = f"{'share' if certain else 'may share'} pairs{example}"
    raise error(
        "SP415",
        f"merged softmaxes {what}",
        two.attend.keep.span or merge.span,
        note=answer.reason,
        help="take what the one keeps from the other with `and not …`, or write `merge(…, overlap = counted)`",
    )


def _is_chosen(graph: StageGraph, stage: Attention) -> bool:
    return not loads(stage.attend.keep).isdisjoint(each.name for each in graph.stages)
