"""From what was seen to the steps that make the same of other tensors.

From: operations and launches, the inputs and the results.  To: `Steps`, without what does not depend on the inputs,
which is kept; None where the course may depend on numbers, or a tensor came from nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spdsl.runtime.plain import on
from spdsl.runtime.replayed import Step, step_of
from spdsl.runtime.seen import Asked, Note, decides, is_unlike, made_by, read_by, storage_of, written_by
from spdsl.runtime.tape import current_stream

KEPT = 1 << 24
"""Bytes of what does not depend on the tensors, and is kept with the steps."""


@dataclass(slots=True)
class Ready:
    """What is kept is there after an event, for which streams wait; None once it has passed, and on the CPU."""

    event: torch.cuda.Event | None

    @staticmethod
    def on(device: torch.device) -> Ready:
        """After all that the current stream has been given."""
        if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return Ready(None)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        return Ready(event)

    def wait(self, device: torch.device) -> None:
        """Let the current stream wait; one that is captured does not ask, as the device is waited for before."""
        event = self.event
        if event is None or torch.cuda.is_current_stream_capturing():
            return
        if event.query():
            self.event = None
        else:
            event.wait(torch.cuda.current_stream(device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Steps over numbered tensors, of which the first are inputs; ``named`` launches by name, as hooks need it."""

    flat: tuple[Step, ...]
    named: tuple[Step, ...]
    places: list[Any]
    results: tuple[int, ...]
    device: torch.device
    ready: Ready

    def play(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The results for other inputs that are laid out alike."""
        with on(self.device):
            return self._played(inputs)

    @torch.no_grad()
    def _played(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        places, steps = self.places.copy(), self.flat
        places[: len(inputs)] = inputs
        self.ready.wait(self.device)
        if steps is not self.named:
            stream = current_stream(self.device)
            places[-1] = stream
            steps = self.named if stream is None else steps
        for step in steps:
            step(places)
        return tuple(places[each] for each in self.results)


def steps_of(notes: list[Note], inputs: list[Tensor], results: tuple[Tensor, ...]) -> Steps | None:
    """The steps of a computation, or None."""
    if not _comes_from(notes, inputs):
        return None
    changing = changing_among(notes, inputs)
    if any(storage_of(each) not in changing or any(each is other for other in inputs) for each in results):
        return None
    kept = _needed([note for note in notes if is_among(note, changing)], results)
    asked = [note for note in notes if isinstance(note, Asked) and is_among(note, changing)]
    unlike = any(isinstance(note, Asked) and is_unlike(note) for note in notes)
    if unlike or any(decides(note) for note in asked):
        return None
    numbers = _Numbers.of(notes, inputs, kept)
    if numbers is None:
        return None
    last = {number: at for at, note in enumerate(kept) for number in numbers.of_note(note)}
    ends = tuple(numbers.place(each) for each in results)
    passing = numbers.passing - set(ends)
    dead = [tuple(number for number in passing if last[number] == here) for here in range(len(kept))]
    named = tuple(step_of(note, numbers.place, dead[at], flat=False) for at, note in enumerate(kept))
    flat = tuple(step_of(note, numbers.place, dead[at], flat=True) for at, note in enumerate(kept))
    alike = all(isinstance(note, Asked) or note.entry() is None for note in kept)
    return Steps(
        flat=named if alike else flat,
        named=named,
        places=[*numbers.places, None],
        results=ends,
        device=results[0].device,
        ready=Ready.on(results[0].device),
    )


def _comes_from(notes: list[Note], inputs: list[Tensor]) -> bool:
    """Whether all that is read was made before the eyes of who watched: of the inputs, or of numbers."""
    known = {id(each) for each in inputs}
    for note in notes:
        if any(id(each) not in known and not (each.is_cpu and each.numel() == 1) for each in read_by(note)):
            return False
        known |= {id(each) for each in made_by(note)}
    return True


def changing_among(notes: Sequence[Note], inputs: Sequence[Tensor]) -> set[int]:
    """The storages whose numbers depend on the inputs, and those in which anything is written."""
    found = {storage_of(each) for each in inputs}
    found |= {storage_of(each) for note in notes for each in written_by(note)}
    before = 0
    while len(found) > before:
        before = len(found)
        for note in notes:
            if isinstance(note, Asked) and is_among(note, found):
                found |= {storage_of(each) for each in note.makes()}
    return found


def is_among(note: Note, storages: set[int]) -> bool:
    """Whether a note reads or makes anything in these storages."""
    touched = [*read_by(note), *made_by(note)]
    return any(storage_of(each) in storages for each in touched)


def _needed(notes: list[Note], results: tuple[Tensor, ...]) -> list[Note]:
    """The notes without which the results were others, in their order."""
    wanted, found = {storage_of(each) for each in results}, list[Note]()
    for note in reversed(notes):
        makes = [*made_by(note), *written_by(note)]
        if any(storage_of(each) in wanted for each in makes):
            wanted |= {storage_of(each) for each in read_by(note)}
            found.append(note)
    return found[::-1]


@dataclass(slots=True, kw_only=True)
class _Numbers:
    """The places of tensors: inputs, what is kept, and ``passing`` results of steps."""

    by_id: dict[int, int]
    places: list[Any]
    passing: frozenset[int]

    @staticmethod
    def of(notes: list[Note], inputs: list[Tensor], kept: list[Note]) -> _Numbers | None:
        """Places for all tensors of the notes that are kept; None if one of them came from nowhere."""
        made = {id(each): each for note in kept if isinstance(note, Asked) for each in note.makes()}
        constant = {id(each): each for note in notes if isinstance(note, Asked) for each in note.makes()}
        by_id = {id(each): number for number, each in enumerate(inputs)}
        places: list[Any] = [None] * len(inputs)
        passing, held = set[int](), 0
        for each in (tensor for note in kept for tensor in (*read_by(note), *made_by(note))):
            if id(each) in by_id:
                continue
            by_id[id(each)] = len(places)
            if id(each) in made:
                passing.add(len(places))
                places.append(None)
            elif id(each) in constant or (each.is_cpu and each.numel() == 1):
                held += each.untyped_storage().nbytes()
                places.append(each)
            else:
                return None
        return _Numbers(by_id=by_id, places=places, passing=frozenset(passing)) if held <= KEPT else None

    def place(self, tensor: Tensor) -> int:
        """The place of a tensor."""
        return self.by_id[id(tensor)]

    def of_note(self, note: Note) -> Iterator[int]:
        """The places that a step reads or fills."""
        return (self.place(each) for each in (*read_by(note), *made_by(note)))
