"""Selections of calls that are like earlier ones: their steps are repeated, and nothing is decided again.

From: the arrays of a call, and the name of a selection, or of a softmax.  To: its lists, or all
sets of the softmax.  What decides is remembered under the kinds of
all tensors, as in `spdsl.runtime.direct`.  The first call of a kind is only noted and the second one watched, which
takes longer: where caches grow, each kind is met once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from spdsl.runtime.arrays import Arrays
from spdsl.runtime.checks import captured
from spdsl.runtime.direct import kind_of, plain
from spdsl.runtime.notices import is_watched
from spdsl.runtime.recent import Recent
from spdsl.runtime.seen import is_twice
from spdsl.runtime.shelf import SHELF
from spdsl.runtime.ways import Way, watch

_KINDS = 256
"""Kinds of selections that are remembered."""

_steps: Recent[Way | None] = Recent(size=_KINDS)

_sights: Recent[None] = Recent(size=_KINDS)
"""Kinds that were met; apart from those with steps, which many that are met once would drive out."""

_captured: dict[int, Way] = {}
"""Steps that CUDA graphs were captured with, by identity: graphs read what these keep as long as the process runs."""


def repeated(arrays: Arrays, name: str, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The lists of a selection, or all sets of a softmax, which ``make`` makes of the tensors of ``arrays``."""
    tensors = list(arrays.tensors.values())
    lines = arrays.lines
    if is_watched() or arrays.known or not plain(tensors) or torch.is_autocast_enabled(lines.device.type):
        return make()
    key: Hashable = (id(lines.pattern), name, lines.q_start, *map(kind_of, tensors))
    capturing = captured(tensors[0])
    if key not in _steps.entries:
        is_first = key not in _sights.entries
        _sights.get(key, lines.pattern, lambda: None)
        # What is made in a capture holds nothing before the graph is replayed.
        if is_first or capturing or is_twice(tensors):
            return make()
        found, steps = watch(make, tensors)
        _steps.get(key, lines.pattern, lambda: steps)
        if steps is not None:
            SHELF.put(steps, steps.tape.device, steps.nbytes, lambda: _steps.entries.pop(key, None))
        return found
    steps = _steps.get(key, None, lambda: None)
    if steps is None:
        return make()
    SHELF.use(steps)
    if capturing:
        _captured[id(steps)] = steps
    return tuple(each for each in steps.play(tensors) if each is not None)
