"""From what was seen of a call, and of its backward if there was one, to steps that do the same for other tensors.

From: notes, of which the first belong to the forward, and the tensors that go in and come out.  To: a `Way` for each,
and what the first leaves for the second.  What does not depend on the tensors is done once and kept.  Tensors are told
apart by the memory that they stand for: autograd hands out other objects than it was given.  None where the course may
depend on numbers, or a tensor came from nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from spdsl.runtime.ready import Ready
from spdsl.runtime.seen import (
    Asked,
    Note,
    changing_among,
    decides,
    is_among,
    is_unlike,
    is_view,
    made_by,
    memory_of,
    noted,
    read_by,
    storage_of,
    unknown_among,
    written_by,
)
from spdsl.runtime.tape import Tape
from spdsl.runtime.taping import tape_of
from spdsl.runtime.watched import ROOM, Notes, noting

Constants: TypeAlias = dict[Hashable, Tensor]

KEPT = 1 << 24
"""Bytes of what does not depend on the tensors, and is kept with the steps."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A tape that reads what was kept, ``nbytes`` of it, once it is there; ``results`` are places among its results."""

    tape: Tape
    results: tuple[int | None, ...]
    ready: Ready
    nbytes: int

    @torch.no_grad()
    def play(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """The results for other inputs that are laid out alike."""
        self.ready.wait(self.tape.device)
        found = self.tape.play(inputs)
        return [None if at is None else found[at] for at in self.results]


@dataclass(frozen=True, kw_only=True)
class Ways:
    """The forward, whose last ``saved`` results go into the backward behind the inputs, before what comes in.

    ``apart`` are the outputs that depend on nothing that wants a gradient.
    """

    forward: Way
    backward: Way | None
    saved: int
    apart: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that both hold; what they share counts twice."""
        return self.forward.nbytes + (0 if self.backward is None else self.backward.nbytes)


_TIMES = 12
"""How many times the memory of the inputs may be held while a selection is watched, beyond `ROOM`, but at most half of
what is free."""


def watch(make: Callable[[], tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Way | None]:
    """What ``make`` makes of the inputs, and how to make it of others; None where that is not known."""
    room = ROOM + _TIMES * sum(each.untyped_storage().nbytes() for each in inputs)
    if inputs[0].is_cuda:
        room = min(room, torch.cuda.mem_get_info(inputs[0].device)[0] // 2)
    notes = Notes(room=room)
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
    every = (*inputs, *incoming)
    given, ends = [memory_of(each) for each in every], [memory_of(each) for each in outputs]
    wanted = [None if each is None else memory_of(each) for each in gradients]
    results = [*outputs, *(each for each in gradients if each is not None)]
    # What is given twice, or given back, has no place of its own; autograd has one for each memory alone.
    if len(set(given)) < len(given) or set(ends) & set(given):
        return None
    if gradients and {storage_of(each) for each in outputs} & {storage_of(each) for each in every}:
        return None
    needed = _needed_of(notes, middle, every, results)
    if needed is None:
        return None
    parts, constants = needed
    parts[1][:0] = _looks(parts[0], parts[1])
    made = {memory_of(each): each for note in parts[0] for each in made_by(note)}
    read = _read_first(parts[1]).union(key for key in wanted if key is not None)
    saved = [each for key, each in made.items() if key in read]
    forward = _way(parts[0], inputs, constants, (*outputs, *saved))
    backward = _way(parts[1], (*inputs, *saved, *incoming), constants, gradients) if gradients else None
    if forward is None or (gradients and backward is None):
        return None
    apart = tuple(at for at, each in enumerate(outputs) if not each.requires_grad)
    return Ways(forward=forward, backward=backward, saved=len(saved), apart=apart)


def _needed_of(
    notes: Notes, middle: int, every: Sequence[Tensor], results: Sequence[Tensor]
) -> tuple[list[list[Note]], Constants] | None:
    """The notes of both parts that have to be repeated for the results, and what they read that is not; None where the
    course may be another, or too much were kept."""
    seen = notes.seen
    written = {storage_of(each) for note in seen for each in written_by(note)}
    own = [each for each in results if storage_of(each) in written]  # nobody else may have these
    changing = changing_among(seen, (*every, *own))
    open = changing | unknown_among(seen, (*notes.trusted, *every))
    if any(storage_of(each) not in changing for each in results) or any(_is_open(note, open) for note in seen):
        return None
    # What is saved may be read again.
    earlier = {storage_of(each) for each in (*every, *(made for note in seen[:middle] for made in made_by(note)))}
    given, large = [memory_of(each) for each in every], set[int]()
    while True:
        found = _needed([note for note in seen if is_among(note, changing) or _makes(note, large)], results)
        parts = [[note for note in part if id(note) in found] for part in (seen[:middle], seen[middle:])]
        if any(storage_of(each) in earlier for note in parts[1] for each in written_by(note)):
            return None
        constants = _constants([*parts[0], *parts[1]], given)
        if any(storage_of(each) in open for each in constants.values()):
            return None
        if _bytes(constants.values()) <= KEPT:
            return parts, constants
        # What takes most room is made anew in each call.
        more = _largest(seen, constants.values())
        if not more:
            return None
        large |= more


def _is_open(note: Note, open: set[int]) -> bool:
    """Whether after a note the course may differ from call to call: by chance, or by a number in these storages."""
    return isinstance(note, Asked) and (is_unlike(note) or (decides(note) and is_among(note, open)))


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


def _looks(first: Sequence[Note], second: Sequence[Note]) -> list[Note]:
    """The views of the first notes that the second read: what they look at is saved in their place."""
    made = dict[Hashable, Note]()
    for note in first:
        for each in made_by(note):
            made.setdefault(memory_of(each), note)  # a look at a look may be the first thing again
    read, found = _read_first(second), list[Note]()
    for note in reversed(first):
        if is_view(note) and any(key in read and made[key] is note for key in map(memory_of, made_by(note))):
            read |= {memory_of(each) for each in read_by(note)}
            found.append(note)
    return found[::-1]


def _read_first(notes: Sequence[Note]) -> set[Hashable]:
    """What is read before any of the notes has made it."""
    found, made = set[Hashable](), set[Hashable]()
    for note in notes:
        found |= {memory_of(each) for each in read_by(note)} - made
        made |= {memory_of(each) for each in made_by(note)}
    return found


def _made(notes: Sequence[Note]) -> set[Hashable]:
    return {memory_of(each) for note in notes for each in made_by(note)}


def _constants(notes: Sequence[Note], given: Iterable[Hashable]) -> Constants:
    """What the steps read that no step makes."""
    others = _made(notes).union(given)
    read = (tensor for note in notes for tensor in read_by(note))
    return {memory_of(each): each for each in read if memory_of(each) not in others}


def _makes(note: Note, storages: set[int]) -> bool:
    """Whether a note makes or changes anything in these storages."""
    return any(storage_of(each) in storages for each in (*made_by(note), *written_by(note)))


def _largest(notes: Sequence[Note], constants: Iterable[Tensor]) -> set[int]:
    """The storages of the largest constants that steps can make without the host."""
    made, waits = set[int](), set[int]()
    for note in notes:
        (waits if _waits(note) else made).update(storage_of(each) for each in made_by(note))
    sizes = {storage_of(each): int(each.untyped_storage().nbytes()) for each in constants}
    sizes = {at: size for at, size in sizes.items() if at in made - waits}
    return {at for at, size in sizes.items() if 2 * size >= max(sizes.values())}


def _waits(note: Note) -> bool:
    """Whether the host waits for an operation: it reads a number, or hands numbers over."""
    if not isinstance(note, Asked):
        return False
    from_host = any(each.is_cpu and each.dim() > 0 for each in note.reads())
    return decides(note) or (from_host and not all(each.is_cpu for each in note.makes()))


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {storage_of(each): each.untyped_storage() for each in tensors}
    return sum(int(each.nbytes()) for each in storages.values())


def _way(
    part: Sequence[Note], inputs: Sequence[Tensor], constants: Constants, results: Sequence[Tensor | None]
) -> Way | None:
    device, read = inputs[0].device, {memory_of(each) for note in part for each in read_by(note)}
    held = [each for key, each in constants.items() if key in read]
    present = [each for each in results if each is not None]
    tape = tape_of([each for note in part for each in noted(note)], inputs, held, present, device, same=memory_of)
    if tape is None:
        return None
    places = iter(range(len(present)))
    return Way(
        tape=tape,
        results=tuple(None if each is None else next(places) for each in results),
        ready=Ready.on(device),
        nbytes=_bytes(held),
    )
