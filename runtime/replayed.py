"""One step of what was seen, for tensors that stand at numbered places.

From: an operation or a launch, and the places of its tensors.  To: a function of all places that does it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from spdsl.runtime.notes import Mapped, Started, Stream, Taken
from spdsl.runtime.plain import Launch, start
from spdsl.runtime.seen import Asked, Note
from spdsl.runtime.tape import KeptMaps

Step: TypeAlias = Callable[[list[Any]], None]
"""Reads and fills the places of tensors."""


Numbered: TypeAlias = Callable[[Tensor], int]
"""The place of a tensor."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Stands for the tensor of this number in the arguments of a step."""

    number: int


def step_of(note: Note, number: Numbered, dead: tuple[int, ...], *, flat: bool) -> Step:
    """The step of a note, after which the ``dead`` places hold nothing; ``flat``: launches by flat arguments."""
    if not isinstance(note, Asked):
        if flat and note.entry() is not None:
            return _flat(note, number, dead)
        return _named(note, number, dead) if isinstance(note, Launch) else _started(note, number, dead)
    if flat and note.function in _MEMORY:
        return _memory(note, number, dead)
    arguments, named = tree_map_only(Tensor, lambda each: _Place(number(each)), (note.arguments, dict(note.named)))
    targets = tuple(number(each) if isinstance(each, Tensor) else None for each in tree_flatten(note.result)[0])
    return _operation(note.function, arguments, named, targets, dead)


_MEMORY = {torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default}


def _memory(note: Asked, number: Numbered, dead: tuple[int, ...]) -> Step:
    take, at = Taken(result=note.result).again, number(note.result)

    def step(places: list[Any]) -> None:
        places[at] = take()
        for each in dead:
            places[each] = None

    return step


def _operation(
    function: Any,
    arguments: tuple[Any, ...],
    named: Mapping[str, Any],
    targets: tuple[int | None, ...],
    dead: tuple[int, ...],
) -> Step:
    direct = tuple((at, each.number) for at, each in enumerate(arguments) if isinstance(each, _Place))
    leaves, shape = tree_flatten((arguments, dict(named)))
    nested = sum(isinstance(each, _Place) for each in leaves) != len(direct)
    plain = list(arguments)

    def step(places: list[Any]) -> None:
        if nested:
            filled = [places[each.number] if isinstance(each, _Place) else each for each in leaves]
            given, rest = tree_unflatten(filled, shape)
            made = function(*given, **rest)
        else:
            given = plain.copy()
            for at, number in direct:
                given[at] = places[number]
            made = function(*given, **named)
        if len(targets) == 1:
            if targets[0] is not None:
                places[targets[0]] = made[0] if isinstance(made, list | tuple) else made
        else:
            for target, each in zip(targets, tree_flatten(made)[0], strict=True):
                if target is not None:
                    places[target] = each
        for number in dead:
            places[number] = None

    return step


def _named(launch: Launch, number: Numbered, dead: tuple[int, ...]) -> Step:
    rest = {name: value for name, value in launch.values.items() if not isinstance(value, Tensor)}
    # In the order of the arguments, as they were given.
    given = tuple((name, number(value)) for name, value in launch.values.items() if isinstance(value, Tensor))

    def step(places: list[Any]) -> None:
        start(replace(launch, values={**rest, **{name: places[at] for name, at in given}}))
        for number in dead:
            places[number] = None

    return step


def _started(note: Started, number: Numbered, dead: tuple[int, ...]) -> Step:
    given = tuple((name, number(value)) for name, value in note.values.items() if isinstance(value, Tensor))

    def step(places: list[Any]) -> None:
        values = {**note.values, **{name: places[at] for name, at in given}}
        note.starter.start(note.grid, note.starter.given(values), note.stages, note.device)
        for each in dead:
            places[each] = None

    return step


def _flat(launch: Launch | Started, number: Numbered, dead: tuple[int, ...]) -> Step:
    entry = launch.entry()
    assert entry is not None
    maps = tuple(
        (at, number(each.tensor), KeptMaps(map=each.map))
        for at, each in enumerate(entry.arguments)
        if isinstance(each, Mapped)
    )
    tensors = tuple((at, number(each)) for at, each in enumerate(entry.arguments) if isinstance(each, Tensor))
    (stream,) = (at for at, each in enumerate(entry.arguments) if isinstance(each, Stream))
    plain, function = list(entry.arguments), entry.launch

    def step(places: list[Any]) -> None:
        given = plain.copy()
        for at, place in tensors:
            given[at] = places[place].data_ptr()
        for at, place, kept in maps:
            given[at] = kept.of(places[place])
        given[stream] = places[-1]
        function(*given)
        for number in dead:
            places[number] = None

    return step
