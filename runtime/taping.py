"""From notes of what a call does on the device to a tape, whose steps do it again for other tensors.

Tensors get numbers, all else in a note is constant or an open number (`spdsl.runtime.traced`).  Launches by flat
arguments need addresses alone.  So memory that nothing else sees is taken at once, each part of it for as long as it is
used, and views that nothing else sees are no operations, but addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from typing_extensions import assert_never

from spdsl.runtime.arena import Claim, offsets_of
from spdsl.runtime.notes import (
    Done,
    Made,
    Mapped,
    Note,
    Started,
    Stream,
    Taken,
    Viewed,
    arguments_of,
    results_of,
)
from spdsl.runtime.tape import (
    Address,
    Arena,
    Descriptors,
    Free,
    KeptMaps,
    Launch,
    Operation,
    Several,
    Start,
    Step,
    Tape,
    Zero,
)
from spdsl.runtime.traced import Trace, Traced

LARGE = 1 << 25
"""Bytes from which memory is taken alone, and given back as soon as nothing needs it."""

FREED = 1 << 20
"""Bytes from which memory is given back before the last step."""


def tape_of(
    notes: Sequence[Note],
    inputs: Sequence[Tensor],
    constants: Sequence[Tensor],
    results: Sequence[Tensor],
    device: torch.device,
    *,
    trace: Trace | None = None,
    same: Callable[[Tensor], Hashable] = id,
) -> Tape | None:
    """The tape of notes that give these results; None if a note reads a tensor that came from somewhere else.

    ``same`` tells tensors apart.
    """
    try:
        return _Taping.of(notes, inputs, constants, same).tape(notes, results, device, trace)
    except _Unseen:
        return None


class _Unseen(Exception):  # noqa: N818  # nothing is wrong
    """A step reads a tensor that came from somewhere else."""


@dataclass(slots=True, kw_only=True)
class _Taping:
    """Gives numbers to the tensors of notes, and makes steps; ``open`` numbers have cells of their own, by their
    texts."""

    same: Callable[[Tensor], Hashable]
    numbers: dict[Hashable, int]
    tensors: list[Any]
    cells: list[Any]
    inputs: int
    constant: bool
    open: dict[str, Traced]

    @staticmethod
    def of(
        notes: Sequence[Note],
        inputs: Sequence[Tensor],
        constants: Sequence[Tensor],
        same: Callable[[Tensor], Hashable],
    ) -> _Taping:
        """Numbers for inputs, constants and results of notes, each once."""
        every = (*inputs, *constants, *(each for note in notes for each in results_of(note)))
        numbers = {key: number for number, key in enumerate(dict.fromkeys(map(same, every)))}
        if len({same(each) for each in (*inputs, *constants)}) < len(inputs) + len(constants):
            raise _Unseen
        held = [None] * len(inputs) + list(constants) + [None] * (len(numbers) - len(inputs) - len(constants))
        started = [note for note in notes if isinstance(note, Started)]
        used = (value for note in started for value in (*note.grid, *note.given.values()))
        open = {value.text: value for value in used if isinstance(value, Traced)}
        return _Taping(
            same=same,
            numbers=numbers,
            tensors=held,
            cells=[None if each is None else each.data_ptr() for each in held] + [None] * (1 + len(open)),
            inputs=len(inputs),
            constant=len(constants) > 0,
            open=open,
        )

    def tape(self, notes: Sequence[Note], results: Sequence[Tensor], device: torch.device, trace: Trace | None) -> Tape:
        """The tape of these notes."""
        steps = tuple(self._step(note) for note in notes)
        flat = tuple(self._launch(note, step) for note, step in zip(notes, steps, strict=True))
        alike = all(one is other for one, other in zip(flat, steps, strict=True))
        places = tuple(self._place(each) for each in results)
        plain = tuple(self._with_frees(notes, [(step,) for step in steps], set(places)))
        return Tape(
            flat=plain if alike else tuple(self._shortened(notes, flat, set(places))),
            plain=plain,
            tensors=self.tensors,
            cells=self.cells,
            inputs=self.inputs,
            stream=len(self.tensors),
            results=places,
            device=device,
            constant=self.constant,
            # Last: what has been asked of open numbers until here must hold.
            numbers=trace.function(tuple(self.open.values())) if self.open and trace is not None else None,
            opened=len(self.tensors) + 1,
        )

    def _place(self, tensor: Tensor) -> int:
        number = self.numbers.get(self.same(tensor))
        if number is None:
            raise _Unseen
        return number

    def _cell(self, value: object) -> int:
        if isinstance(value, Traced):
            return len(self.tensors) + 1 + list(self.open).index(value.text)
        self.cells.append(value)
        return len(self.cells) - 1

    def _step(self, note: Note) -> Step:
        match note:
            case Taken(result=result):
                return Operation(function=note.again, arguments=(), result=self._place(result))
            case Done(function=function, arguments=arguments, result=result):
                places = tuple(self._place(each) for each in arguments)
                return Operation(function=function, arguments=places, result=self._place(result))
            case Viewed(function=function, argument=argument, result=result):
                return Operation(function=function, arguments=(self._place(argument),), result=self._place(result))
            case Made(function=several, arguments=arguments, results=results):
                places, targets = (tuple(self._place(each) for each in tensors) for tensors in (arguments, results))
                return Several(function=several, arguments=places, results=targets)
            case Started():
                return self._start(note)
            case _:
                assert_never(note)

    def _start(self, note: Started) -> Step:
        values = {name: value for name, value in note.values.items() if isinstance(value, Tensor)}
        x, y, z = note.grid
        return Start(
            starter=note.starter,
            grid=(self._cell(x), self._cell(y), self._cell(z)),
            numbers=tuple((name, self._cell(value)) for name, value in note.values.items() if name not in values),
            tensors=tuple((name, self._place(tensor)) for name, tensor in values.items()),
            stages=note.stages,
            device=note.device,
        )

    def _launch(self, note: Note, plain: Step) -> Step:
        """The launch by flat arguments, if there is one."""
        entry = note.entry() if isinstance(note, Started) else None
        if entry is None:
            return plain
        places, descriptors = [], []
        for each in entry.arguments:
            match each:
                case Tensor():
                    places.append(self._place(each))
                case Stream():
                    places.append(len(self.tensors))
                case Mapped(tensor=tensor, map=map):
                    places.append(self._cell(None))
                    descriptors.append(Descriptors(maps=KeptMaps(map=map), at=self._place(tensor), cell=places[-1]))
                case _:
                    places.append(self._cell(each))
        return Launch(launch=entry.launch, arguments=itemgetter(*places), descriptors=tuple(descriptors))

    def _shortened(self, notes: Sequence[Note], steps: Sequence[Step], results: set[int]) -> Iterator[Step]:
        """The steps, where addresses stand for what nothing but launches sees: views, and memory, which the first of
        them takes at once."""
        seen = self._seen(notes, steps, results)
        looks = self._looks(notes)
        views = {at: look for at, look in looks.items() if at not in seen}
        last = self._last(notes, views)
        small = {
            self._place(note.result): Claim(bytes=_bytes(note.result), first=at, last=last[self._place(note.result)])
            for at, note in enumerate(notes)
            if isinstance(note, Taken) and self._place(note.result) not in seen and _bytes(note.result) < LARGE
        }
        arena, parts = _arena(notes, small, self._place) if len(small) > 1 else (None, {})
        every: list[tuple[Step, ...]] = []
        for note, step in zip(notes, steps, strict=True):
            match note:
                case Taken(result=result, zeroed=zeroed):
                    at = self._place(result)
                    first, arena = ((), arena) if at not in parts or arena is None else ((arena,), None)
                    taken = first if at in parts else (self._step(Taken(result=result)),)
                    every.append((*taken, self._zero(at, result, parts)) if zeroed else taken)
                case Viewed(result=result) if self._place(result) not in looks:
                    every.append(())  # a look at a look is the first thing again
                case Viewed(result=result) if (at := self._place(result)) in views:
                    of, distance = views[at]
                    every.append((Address(at=at, of=of, bytes=distance),))
                case _:
                    every.append((_within(parts, step),))
        yield from self._with_frees(notes, every, results, views, parts)

    def _looks(self, notes: Sequence[Note]) -> dict[int, tuple[int, int]]:
        """Of each view that is no tensor of before: what it looks at, and how many bytes behind its beginning."""
        known, found = {at for at, each in enumerate(self.tensors) if each is not None} | set(range(self.inputs)), {}
        for note in notes:
            if isinstance(note, Viewed) and self._place(note.result) not in known:
                found[self._place(note.result)] = self._place(note.argument), _distance(note)
            known |= {self._place(each) for each in results_of(note)}
        return found

    def _zero(self, at: int, result: Tensor, parts: Mapping[int, _Part]) -> Zero:
        begin = parts[at].begin if at in parts else 0
        return Zero(at=at, bytes=_bytes(result), begin=begin, stream=len(self.tensors))

    def _seen(self, notes: Sequence[Note], steps: Sequence[Step], results: set[int]) -> set[int]:
        """The tensors that something else than a launch by addresses sees."""
        seen, taken = set(results), {self._place(note.result) for note in notes if isinstance(note, Taken)}
        for note, step in reversed(tuple(zip(notes, steps, strict=True))):
            match note, step:
                case Viewed(argument=argument, result=result), _:
                    seen |= {self._place(argument)} if self._place(result) in seen else set()
                case Started(), Launch(descriptors=descriptors):
                    # A descriptor can be made of a part of memory, not of a view of it.
                    seen |= {each.at for each in descriptors} - taken
                case _:
                    seen |= {self._place(each) for each in arguments_of(note)}
        return seen

    def _last(self, notes: Sequence[Note], views: Mapping[int, tuple[int, int]]) -> dict[int, int]:
        """The last note that touches each tensor, be it by the address of a view."""
        last = dict[int, int]()
        for at, note in enumerate(notes):
            for each in map(self._place, (*arguments_of(note), *results_of(note))):
                last[each] = at
                while each in views:
                    each = views[each][0]
                    last[each] = at
        return last

    def _with_frees(
        self,
        notes: Sequence[Note],
        steps: Sequence[tuple[Step, ...]],
        results: set[int],
        views: Mapping[int, tuple[int, int]] = MappingProxyType({}),
        together: Collection[int] = (),
    ) -> Iterator[Step]:
        """The steps of each note, and those that give back memory which nothing needs any longer."""
        last = self._last(notes, views)
        sizes = {self._place(each): _bytes(each) for note in notes for each in results_of(note)}
        large = {at for at, size in sizes.items() if size >= FREED and at not in results and at >= self.inputs}
        # What was taken at once is given back at once.
        last |= dict.fromkeys(together, max((last[at] for at in together), default=0))
        large = large.difference(together).union(together if sum(sizes[at] for at in together) >= FREED else ())
        for at, some in enumerate(steps):
            yield from some
            dead = tuple(sorted(each for each in large if last[each] == at))
            if dead:
                yield Free(dead)


def _bytes(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().nbytes())


def _distance(note: Viewed) -> int:
    """Bytes between the beginnings of a view and of what it looks at."""
    one, other = (each.storage_offset() * each.element_size() for each in (note.result, note.argument))
    return int(one - other)


def _arena(
    notes: Sequence[Note], claims: Mapping[int, Claim], place: Callable[[Tensor], int]
) -> tuple[Arena, dict[int, _Part]]:
    """The memory of these numbers taken at once, and where each of them is in it."""
    begins, size = offsets_of(tuple(claims.values()))
    offsets = dict(zip(claims, begins, strict=True))
    results = {place(note.result): note.result for note in notes if isinstance(note, Taken)}
    parts = {at: _Part.of(results[at], begin) for at, begin in offsets.items()}
    device = results[next(iter(claims))].device
    memory = Taken(result=torch.empty(size, dtype=torch.uint8, device=device))
    return Arena(take=memory.again, parts=tuple(offsets.items())), parts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The tensor that begins at a byte of memory taken at once."""

    begin: int
    bytes: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    @staticmethod
    def of(tensor: Tensor, begin: int) -> _Part:
        return _Part(begin=begin, bytes=_bytes(tensor), dtype=tensor.dtype, shape=tensor.shape, stride=tensor.stride())

    def __call__(self, memory: Tensor) -> Tensor:
        flat = memory[self.begin : self.begin + self.bytes].view(self.dtype)
        return flat.as_strided(self.shape, self.stride, flat.storage_offset())


def _within(parts: Mapping[int, _Part], step: Step) -> Step:
    """A step whose descriptors look for their tensors in memory that was taken at once."""
    if not isinstance(step, Launch):
        return step
    found = (replace(each, maps=replace(each.maps, part=parts.get(each.at))) for each in step.descriptors)
    return replace(step, descriptors=tuple(found))
