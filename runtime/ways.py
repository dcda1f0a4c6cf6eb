"""From what was seen of a call, and of its backward, to steps that do both for other tensors.

From: notes, of which the first belong to the forward, and the tensors that go in and come out.  To: a `Way` for each,
and what the first leaves for the second.  Tensors are told apart by the memory that they stand for: autograd hands out
other objects than it was given.  None where the course may depend on numbers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spdsl.runtime.plain import on
from spdsl.runtime.replayed import Step, step_of
from spdsl.runtime.seen import Asked, Note, decides, is_unlike, made_by, read_by, storage_of, written_by
from spdsl.runtime.steps import KEPT, Ready, changing_among, is_among
from spdsl.runtime.tape import current_stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Steps over numbered tensors; ``named`` launches by name, as hooks need it.

    ``places`` hold what does not depend on the call; ``inputs`` and ``results`` are numbers of places.
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


def ways_of(
    notes: Sequence[Note],
    middle: int,
    trusted: Sequence[Tensor],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    incoming: Sequence[Tensor] = (),
    gradients: Sequence[Tensor | None] = (),
) -> Ways | None:
    """The steps of a call, whose notes end before the ``middle``, and of its backward, if there was one.

    ``trusted`` is older than the notes, and depends on no tensor.
    """
    every, results = [*inputs, *incoming], [*outputs, *(each for each in gradients if each is not None)]
    numbers = _Numbers()
    given = [numbers.add(each) for each in every]
    numbers.given |= set(given)
    for each in (tensor for note in notes for tensor in (*read_by(note), *made_by(note))):
        numbers.add(each)
    # What is given twice, or given back, has no place of its own.
    if len(set(given)) < len(given) or {storage_of(each) for each in outputs} & {storage_of(each) for each in every}:
        return None
    changing = changing_among(notes, every)
    if any(storage_of(each) not in changing for each in results):
        return None
    asked = [note for note in notes if isinstance(note, Asked)]
    if any(map(is_unlike, asked)) or any(decides(note) for note in asked if is_among(note, changing)):
        return None
    wanted = _needed([note for note in notes if is_among(note, changing)], numbers, results)
    parts = [[note for note in part if id(note) in wanted] for part in (notes[:middle], notes[middle:])]
    # What is saved may be read again.
    earlier = {storage_of(each) for note in notes[:middle] for each in made_by(note)}
    earlier |= {storage_of(each) for each in every}
    if any(storage_of(each) in earlier for note in parts[1] for each in written_by(note)):
        return None
    constants = _constants(numbers, parts, _known(notes, (*trusted, *every)), changing)
    if constants is None:
        return None
    places: list[Any] = [None] * (len(numbers.known) + 1)
    for number, tensor in constants.items():
        places[number] = tensor
    ends = [numbers.of(each) for each in outputs]
    made = {numbers.of(each) for note in parts[0] for each in made_by(note)}
    read = {numbers.of(each) for note in parts[1] for each in read_by(note)}
    read |= {numbers.of(each) for each in gradients if each is not None}
    saved = sorted(made & read)
    device, count = every[0].device, len(inputs)
    forward = _way(parts[0], numbers, places, tuple(given[:count]), (*ends, *saved), device)
    if not gradients:
        return Ways(forward=forward, backward=None, saved=len(saved))
    into = (*given[:count], *saved, *given[count:])
    out = tuple(None if each is None else numbers.of(each) for each in gradients)
    return Ways(forward=forward, backward=_way(parts[1], numbers, places, into, out, device), saved=len(saved))


def _needed(notes: Sequence[Note], numbers: _Numbers, results: Sequence[Tensor]) -> set[int]:
    """The notes, by identity, without which the results were others."""
    places, storages = {numbers.of(each) for each in results}, {storage_of(each) for each in results}
    found = set[int]()
    for note in reversed(notes):
        makes, writes = {numbers.of(each) for each in made_by(note)}, {storage_of(each) for each in written_by(note)}
        reads = {numbers.of(each) for each in read_by(note)}
        # What gives back what it was given does nothing.
        if writes & storages or (makes - reads) & places:
            found.add(id(note))
            places |= reads
            storages |= {storage_of(each) for each in read_by(note)}
    return found


def _way(
    notes: Sequence[Note],
    numbers: _Numbers,
    places: list[Any],
    inputs: tuple[int, ...],
    results: tuple[int | None, ...],
    device: torch.device,
) -> Way:
    made = {numbers.of(each) for note in notes for each in made_by(note)} - set(results)
    last = {numbers.of(each): at for at, note in enumerate(notes) for each in (*read_by(note), *made_by(note))}
    dead = [tuple(number for number in made if last[number] == at) for at in range(len(notes))]
    steps = [
        tuple(step_of(note, numbers.of, dead[at], flat=flat) for at, note in enumerate(notes)) for flat in (False, True)
    ]
    launched = any(not isinstance(note, Asked) and note.entry() is not None for note in notes)
    return Way(
        flat=steps[1] if launched else steps[0],
        named=steps[0],
        places=places,
        inputs=inputs,
        results=results,
        device=device,
        ready=Ready.on(device),
    )


def _known(notes: Sequence[Note], first: Iterable[Tensor]) -> set[int]:
    """The storages of which it was seen what they are made of: ``first``, numbers of the host, and what these give."""
    found = {storage_of(each) for each in first}
    for note in notes:
        if all(storage_of(each) in found or (each.is_cpu and each.numel() == 1) for each in read_by(note)):
            found |= {storage_of(each) for each in made_by(note)}
    return found


def _constants(
    numbers: _Numbers, parts: Iterable[Sequence[Note]], known: set[int], changing: set[int]
) -> dict[int, Tensor] | None:
    """What the steps read that no step makes: numbers of the host, and what is ``known``; None if something came from
    nowhere or depends on the inputs, or there is too much."""
    found: dict[int, Tensor] = {}
    made = {numbers.of(each) for part in parts for note in part for each in made_by(note)}
    for each in (tensor for part in parts for note in part for tensor in read_by(note)):
        number = numbers.of(each)
        if number in made or number in numbers.given or number in found:
            continue
        seen = storage_of(each) in known or (each.is_cpu and each.numel() == 1)
        if not seen or storage_of(each) in changing:
            return None
        found[number] = each
    return found if sum(each.untyped_storage().nbytes() for each in found.values()) <= KEPT else None


@dataclass(slots=True)
class _Numbers:
    """Numbers of tensors, the same for those that stand for the same memory."""

    known: dict[Hashable, int] = field(default_factory=dict)
    given: set[int] = field(default_factory=set)

    def add(self, tensor: Tensor) -> int:
        """The number of a tensor."""
        return self.known.setdefault(memory_of(tensor), len(self.known))

    def of(self, tensor: Tensor) -> int:
        """The number of a tensor that has one."""
        return self.known[memory_of(tensor)]


def memory_of(tensor: Tensor) -> Hashable:
    """What tells the memory of tensors apart as long as all of them live, and how it is read."""
    place = storage_of(tensor), tensor.storage_offset(), tensor.dtype
    return (*place, tensor.shape, tensor.stride())
