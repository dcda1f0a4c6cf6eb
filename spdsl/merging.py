"""Whether merged softmaxes share pairs: a pair counts once, unless the pattern says otherwise.

From a bound pattern to nothing, or an error.  The proofs are those of `spdsl prove`; sets of stages are opaque, so that
`chosen` and `not chosen` are disjoint, and two selections are not.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

from spdsl.analysis.claims import Answer, decide
from spdsl.analysis.pairs import Subject
from spdsl.analysis.worker import bounded
from spdsl.diagnostics import error
from spdsl.semantics.graph import Attention, Merge, StageGraph
from spdsl.semantics.nodes import BoundPattern
from spdsl.semantics.softmaxes import softmax_pattern

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
        if graph is None or not isinstance(merge, Merge) or merge.counted:
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
    subjects = [Subject.of(softmax_pattern(pattern, stage.name)) for stage in (one, two)]
    found = bounded(decide, {"claim": "disjoint", "subjects": subjects}, seconds=SECONDS)
    answer = found or Answer(verdict="undecided", reason="isl did not answer in time")
    if answer.verdict == "proven":
        return
    example = f": for example where {answer.example.where}" if answer.example is not None else ""
    what = f"share pairs{example}" if answer.verdict == "refuted" else "may share pairs"
    raise error(
        "SP415",
        f"merged softmaxes {what}",
        two.attend.keep.span or merge.span,
        note=answer.reason,
        help="take what the one keeps from the other with `and not …`, or write `merge(…, overlap = counted)`",
    )
