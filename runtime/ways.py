"""From what was seen of a call, and of its backward if there was one, to steps that do the same for other tensors.

From: notes, of which the first belong to the forward, and the tensors that go in and come out.  To: a `Way` for each,
and what the first leaves for the second.  What does not depend on the tensors is done once and kept.  Tensors are told
apart by the memory that they stand for: autograd hands out other objects than it was given.  None where the course may
depend on numbers, or a tensor came from nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from spdsl.runtime.plain import on
from spdsl.runtime.ready import Ready
from spdsl.runtime.replayed import Step, step_of
from spdsl.runtime.seen import (
    Asked,
    Note,
    changing_among,
    decides,
    is_among,
    is_of_host,
    is_unlike,
    known_among,
    made_by,
    memory_of,
    read_by,
    reads_known,
    storage_of,
    written_by,
)
from spdsl.runtime.tape import current_stream
from spdsl.runtime.watched import ROOM, Notes, noting

KEPT = 1 << 24
"""Bytes of what does not depend on the tensors, and is kept with the steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Steps over numbered tensors; ``named`` launches by name, as hooks need it.

    ``places`` hold what does not depend on the call, and the stream last; ``inputs`` and ``results`` are numbers of
    places.
    """

    flat: tuple[Step, ...]
    named: tuple[Step, ...]
    places: list[Any]
    inputs: tuple[int, ...]
    results: tuple[int | None, ...]
    device: torch.device
    ready: Ready

    @torch.no_grad()
    def play(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """The results for other inputs that are laid out alike."""
        with on(self.device):
            self.ready.wait(self.device)
            places = self.places.copy()
            for at, each in zip(self.inputs, inputs, strict=True):
                places[at] = each
            stream = current_stream(self.device) if self.flat is not self.named else None
            places[-1] = stream
            for step in self.named if stream is None else self.flat:
                step(places)
            return [None if at is None else places[at] for at in self.results]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """The forward, whose last ``saved`` results go into the backward behind the inputs, before what comes in."""

    forward: Way
    backward: Way | None
    saved: int


def watch(make: Callable[[], tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Way | None]:
    """What ``make`` makes of the inputs, and how to make it of others; None where that is not known."""
    notes = Notes(room=ROOM + sum(each.untyped_storage().nbytes() for each in inputs))
    with noting(notes):
        results = make()
    ways = None if notes.blind else ways_of(notes, len(notes.seen), inputs, results)
    notes.give_up()
    return results, None if ways is None else ways.forward


def ways_of(
    notes: Notes,
    middle: int,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    incoming: Sequence[Tensor] = (),
    gradients: Sequence[Tensor | None] = (),
) -> Ways | None:
    """The steps of a call, whose notes end before the ``middle``, and of its backward, if there was one."""
    seen, every = notes.seen, (*inputs, *incoming)
    given, ends = [memory_of(each) for each in every], [memory_of(each) for each in outputs]
    wanted = [None if each is None else memory_of(each) for each in gradients]
    results = [*outputs, *(each for each in gradients if each is not None)]
    # What is given twice, or given back, has no place of its own; autograd has one for each memory alone.
    if len(set(given)) < len(given) or set(ends) & set(given):
        return None
    if gradients and {storage_of(each) for each in outputs} & {storage_of(each) for each in every}:
        return None
    changing, known = changing_among(seen, every), known_among(seen, (*notes.trusted, *every))
    if any(storage_of(each) not in changing for each in results) or any(map(_is_open(changing, known), seen)):
        return None
    needed = _needed([note for note in seen if is_among(note, changing)], results)
    parts = [[note for note in part if id(note) in needed] for part in (seen[:middle], seen[middle:])]
    # What is saved may be read again.
    earlier = {storage_of(each) for each in (*every, *(made for note in seen[:middle] for made in made_by(note)))}
    if any(storage_of(each) in earlier for note in parts[1] for each in written_by(note)):
        return None
    constants = _constants([*parts[0], *parts[1]], given, known - changing)
    if constants is None:
        return None
    numbers = _numbered(given, constants, parts)
    if any(memory_of(each) not in numbers for each in results):
        return None
    places = [*[None] * len(given), *constants.values(), *[None] * (len(numbers) - len(given) - len(constants) + 1)]
    made, read = _made(parts[0]), {memory_of(each) for note in parts[1] for each in read_by(note)}
    saved = sorted(numbers[each] for each in made & (read | set(wanted)))
    count = len(inputs)
    into, last = tuple(range(count)), tuple(range(count, len(given)))
    out = (*(numbers[each] for each in ends), *saved)
    device = every[0].device
    forward = _way(parts[0], numbers, places, into, out, device)
    if not gradients:
        return Ways(forward=forward, backward=None, saved=len(saved))
    found = tuple(None if each is None else numbers[each] for each in wanted)
    backward = _way(parts[1], numbers, places, (*into, *saved, *last), found, device)
    return Ways(forward=forward, backward=backward, saved=len(saved))


def _is_open(changing: set[int], known: set[int]) -> Callable[[Note], bool]:
    """Whether after a note the course may differ from call to call: by chance, or by numbers that may."""

    def is_open(note: Note) -> bool:
        if not isinstance(note, Asked):
            return False
        return is_unlike(note) or (decides(note) and (is_among(note, changing) or not reads_known(note, known)))

    return is_open


def _needed(notes: Sequence[Note], results: Sequence[Tensor]) -> set[int]:
    """The notes, by identity, without which the results were others."""
    wanted, storages = {memory_of(each) for each in results}, {storage_of(each) for each in results}
    found = set[int]()
    for note in reversed(notes):
        reads = {memory_of(each) for each in read_by(note)}
        # What gives back what it was given does nothing.
        makes = {memory_of(each) for each in made_by(note)} - reads
        if makes & wanted or any(storage_of(each) in storages for each in written_by(note)):
            found.add(id(note))
            wanted |= reads
            storages |= {storage_of(each) for each in read_by(note)}
    return found


def _made(notes: Sequence[Note]) -> set[Hashable]:
    return {memory_of(each) for note in notes for each in made_by(note)}


Constants: TypeAlias = dict[Hashable, Tensor]


def _constants(notes: Sequence[Note], given: Sequence[Hashable], known: set[int]) -> Constants | None:
    """What the steps read that no step makes: numbers of the host, and what is ``known`` and never changes; None if
    something came from nowhere or depends on the inputs, or there is too much."""
    others, found = _made(notes).union(given), Constants()
    for each in (tensor for note in notes for tensor in read_by(note)):
        if memory_of(each) not in others:
            if storage_of(each) not in known and not is_of_host(each):
                return None
            found[memory_of(each)] = each
    return found if sum(each.untyped_storage().nbytes() for each in found.values()) <= KEPT else None


def _numbered(given: Sequence[Hashable], constants: Constants, parts: Sequence[Sequence[Note]]) -> dict[Hashable, int]:
    """Places for inputs, then constants, then what steps make."""
    made = (memory_of(each) for part in parts for note in part for each in made_by(note))
    return {each: number for number, each in enumerate(dict.fromkeys((*given, *constants, *made)))}


def _way(
    notes: Sequence[Note],
    numbers: dict[Hashable, int],
    places: list[Any],
    inputs: tuple[int, ...],
    results: tuple[int | None, ...],
    device: torch.device,
) -> Way:
    def number(tensor: Tensor) -> int:
        return numbers[memory_of(tensor)]

    def touched(note: Note) -> Iterator[int]:
        return map(number, (*read_by(note), *made_by(note)))

    passing = {numbers[each] for each in _made(notes)}.difference(results)
    last = {at: place for place, note in enumerate(notes) for at in touched(note)}
    dead = [tuple(at for at in passing if last[at] == place) for place in range(len(notes))]
    named, flat = (
        tuple(step_of(note, number, dead[at], flat=way) for at, note in enumerate(notes)) for way in (False, True)
    )
    launched = any(not isinstance(note, Asked) and note.entry() is not None for note in notes)
    return Way(
        flat=flat if launched else named,
        named=named,
        places=places,
        inputs=inputs,
        results=results,
        device=device,
        ready=Ready.on(device),
    )
