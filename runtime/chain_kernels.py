"""The kernels of selections for the types of a call: written once, imported once.

From: a selection and the arrays of a call.  To: its chain and the functions of that, or why it is left to torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from spdsl.codegen.chains.below import below
from spdsl.codegen.chains.coverage import uncovered
from spdsl.codegen.chains.emit import emit_chain
from spdsl.codegen.chains.lower import Chain, lower_chain
from spdsl.codegen.chains.parts import Terms
from spdsl.codegen.chains.places import UncoveredError
from spdsl.codegen.load import load
from spdsl.runtime.arrays import Arrays
from spdsl.runtime.operands import terms_of
from spdsl.runtime.tilings import Tiling
from spdsl.semantics.graph import Score, Softmax, Stage, parts
from spdsl.semantics.rewrite import free_axes


@dataclass(slots=True, kw_only=True)
class Loaded:
    """A chain and its functions; ``tilings`` remembers what fitted the device."""

    chain: Chain
    functions: dict[str, Any]
    tilings: dict[tuple[str, Tiling], Tiling] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What a selection is made of: all stages, scores among them, whether a softmax, whether sequences by number; and
    why it is left to torch, as far as stages tell."""

    pattern: object
    stages: dict[str, Stage]
    scores: tuple[Score, ...]
    softmax: bool
    by_batch: bool
    uncovered: str | None


_reads: dict[tuple[int, str], Read] = {}
_lowered: dict[tuple[int, str, tuple[tuple[str, Terms], ...]], Chain | str] = {}
_loaded: dict[int, Loaded] = {}


def read_of(arrays: Arrays, name: str) -> Read:
    """What a selection is made of."""
    # By identity: hashing a pattern takes longer than a launch.  The entry keeps it alive.
    key = id(arrays.lines.pattern), name
    if key not in _reads:
        stages = dict(arrays.stages)
        found = {each: stages[each] for each in below(stages, name)}
        conditions = (part for stage in found.values() if not isinstance(stage, Score) for part in parts(stage))
        _reads[key] = Read(
            pattern=arrays.lines.pattern,
            stages=found,
            scores=tuple(stage for stage in found.values() if isinstance(stage, Score)),
            softmax=any(isinstance(stage, Softmax) for stage in found.values()),
            by_batch=any("b" in free_axes(part) for part in conditions),
            uncovered=uncovered(stages, name),
        )
    return _reads[key]


def lowered(arrays: Arrays, name: str) -> Chain | str:
    """The kernels of a selection for the types of a call, or why it is left to torch."""
    read = read_of(arrays, name)
    if read.uncovered is not None:
        return read.uncovered
    terms = tuple((stage.name, terms_of(arrays, stage, shares=read.softmax)) for stage in read.scores)
    key = (id(arrays.lines.pattern), name, terms)
    if key not in _lowered:
        try:
            _lowered[key] = lower_chain(arrays.lines.pattern, name, terms)
        except UncoveredError as reason:
            _lowered[key] = str(reason)
    return _lowered[key]


def loaded(arrays: Arrays, name: str) -> Loaded | None:
    """The kernels of a selection, written and imported; None where it is left to torch."""
    chain = lowered(arrays, name)
    if isinstance(chain, str):
        return None
    found = _loaded.get(id(chain))
    if found is None:
        module = load(emit_chain(chain, arrays.lines.pattern.name))
        functions = {kernel.name: getattr(module, kernel.name) for kernel in chain.kernels}
        found = _loaded[id(chain)] = Loaded(chain=chain, functions=functions)
    return found
