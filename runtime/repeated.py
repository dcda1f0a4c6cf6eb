"""Selections of calls that are like earlier ones: their steps are repeated, and nothing is decided again.

From: the arrays of a call, and the name of a selection, or of a softmax.  To: its lists, or all
sets of the softmax.  What decides is remembered under the kinds of
all tensors, as in `spdsl.runtime.direct`.  The first call of a kind is only noted and the second one watched, which
takes longer: where caches grow, each kind is met once.  `spdsl.runtime.sights` says when a kind is watched again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from weakref import ref

import torch
from torch import Tensor

from spdsl.runtime.arrays import Arrays
from spdsl.runtime.checks import captured
from spdsl.runtime.direct import kind_of, plain
from spdsl.runtime.notices import is_watched
from spdsl.runtime.recent import Recent
from spdsl.runtime.seen import is_twice
from spdsl.runtime.shelf import SHELF
from spdsl.runtime.sights import Sights
from spdsl.runtime.ways import Way, watch

_KINDS = 256
"""Kinds of selections that are remembered."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """The steps of a kind, and when it was met."""

    steps: Way
    sights: Sights


_steps: Recent[Known] = Recent(size=_KINDS)

_sights: Recent[Sights] = Recent(size=_KINDS)
"""Kinds that were met; apart from those with steps, which many that are met once would drive out."""


def repeated(arrays: Arrays, name: str, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The lists of a selection, or all sets of a softmax, which ``make`` makes of the tensors of ``arrays``."""
    tensors = list(arrays.tensors.values())
    lines = arrays.lines
    if is_watched() or arrays.known or not plain(tensors) or torch.is_autocast_enabled(lines.device.type):
        return make()
    key: Hashable = (id(lines.pattern), name, lines.q_start, *map(kind_of, tensors))
    capturing = captured(tensors[0])
    known = _steps.find(key)
    if known is None:
        # What is made in a capture holds nothing before the graph is replayed.
        sights = _sights.get(key, lines.pattern, Sights)
        if capturing or is_twice(tensors) or not sights.is_due():
            return make()
        found, steps = watch(make, tensors)
        if steps is None:
            sights.tries += 1
        else:
            made = Known(steps=steps, sights=sights)
            _steps.get(key, lines.pattern, lambda: made)
            SHELF.put(steps, steps.tape.device, steps.nbytes, partial(_forget, key, ref(made)))
        return found
    known.sights.repeats += 1
    SHELF.use(known.steps)
    if capturing:
        SHELF.pin(known.steps)
    return tuple(each for each in known.steps.play(tensors) if each is not None)


def _forget(key: Hashable, gone: ref[Known]) -> None:
    """Others need the room."""
    known = gone()
    if known is not None:
        _steps.drop(key, known)
        known.sights.lost()
