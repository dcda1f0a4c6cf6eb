"""Notes what a call does on the device, and makes a tape of the notes.

A `Recorder` belongs to one call.  Memory that is taken, operations of torch and starts of kernels go through it; it
notes which tensors they read, and takes all else for constants, but for numbers that the call has left open
(`spdsl.runtime.traced`).  A call of which the recorder does not see all has no tape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from typing_extensions import assert_never

from spdsl.runtime.notes import Done, Grid, Made, Mapped, Note, Startable, Started, Stream, Taken, results_of
from spdsl.runtime.notices import is_watched, tell
from spdsl.runtime.tape import Arena, Descriptors, KeptMaps, Launch, Operation, Several, Start, Step, Tape
from spdsl.runtime.traced import Trace, Traced


@dataclass(slots=True)
class Recorder:
    """Does what a call asks for, and notes it.  With a ``trace`` the call may leave lengths and strides open."""

    trace: Trace | None = None
    inputs: list[Tensor] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    blind: bool = False

    def read(self, *inputs: Tensor) -> None:
        """The next tensors that a player will be given, in this order."""
        self.inputs.extend(inputs)

    def hold(self, *constants: Tensor) -> None:
        """Tensors that depend on values of the inputs; those that are inputs themselves, or made of them by what is
        noted, do not count."""
        made = (each for note in self.notes for each in results_of(note))
        known = {id(each) for each in (*self.inputs, *self.constants, *made)}
        self.constants.extend({id(each): each for each in constants if id(each) not in known}.values())

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory that kernels fill."""
        result = torch.empty(tuple(int(size) for size in shape), dtype=dtype, device=device)
        self.notes.append(Taken(result=result))
        return result

    def run(self, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        """The result of ``function``, which depends on nothing but what is known of a tape's calls."""
        result = function(*arguments)
        self.notes.append(Done(function=function, arguments=arguments, result=result))
        return result

    def made(
        self, results: tuple[Tensor, ...], function: Callable[..., tuple[Tensor, ...]], *arguments: Tensor
    ) -> None:
        """Note tensors that ``function`` makes again of others; it may launch kernels itself."""
        self.notes.append(Made(function=function, arguments=arguments, results=results))

    def started(
        self,
        starter: Startable,
        grid: Grid,
        values: Mapping[str, Any],
        given: Mapping[str, Any],
        stages: int,
        device: torch.device,
    ) -> None:
        """Note a launch; ``given`` is what the starter made of ``values``."""
        note = Started(starter=starter, grid=grid, values=values, given=given, stages=stages, device=device)
        self.notes.append(note)
        if is_watched():
            tell(replace(note, writes=tuple(self._taken(values))))

    def _taken(self, values: Mapping[str, Any]) -> Iterator[str]:
        """The names of tensors that this call has made: a kernel of it writes no others."""
        made = {
            id(note.result)
            for note in self.notes
            if isinstance(note, Taken) or (isinstance(note, Done) and all(note.result is not x for x in note.arguments))
        }
        return (name for name, value in values.items() if id(value) in made)

    def give_up(self) -> None:
        """Something is done that is not noted."""
        self.blind = True

    def tape(self, results: Sequence[Tensor], device: torch.device) -> Tape | None:
        """The tape of the call that gave these results; None if the recorder has not seen all of it."""
        if self.blind:
            return None
        try:
            return _Cut.of(self).tape(self.notes, results, device, self.trace)
        except _Unseen:
            return None


class _Unseen(Exception):  # noqa: N818  # nothing is wrong
    """A step reads a tensor that came from somewhere else."""


_ALIGNED = 256
"""Bytes at whose multiples memory begins that is taken at once."""


@dataclass(slots=True, kw_only=True)
class _Cut:
    """Gives numbers to the tensors of a recording, and makes steps of its notes; ``open`` numbers have cells of their
    own, by their texts."""

    numbers: dict[int, int]
    tensors: list[Any]
    cells: list[Any]
    inputs: int
    constant: bool
    open: dict[str, Traced]

    @staticmethod
    def of(recorder: Recorder) -> _Cut:
        """The tensors of a recording: inputs, constants, results of operations, each once."""
        results = (each for note in recorder.notes for each in results_of(note))
        each = list({id(tensor): tensor for tensor in (*recorder.inputs, *recorder.constants, *results)}.values())
        inputs, constants = len(recorder.inputs), len(recorder.constants)
        if len({id(tensor) for tensor in recorder.inputs}) < inputs:
            raise _Unseen
        held = range(inputs, inputs + constants)
        started = [note for note in recorder.notes if isinstance(note, Started)]
        used = (value for note in started for value in (*note.grid, *note.given.values()))
        open = {value.text: value for value in used if isinstance(value, Traced)}
        return _Cut(
            numbers={id(tensor): number for number, tensor in enumerate(each)},
            tensors=[tensor if number in held else None for number, tensor in enumerate(each)],
            cells=[tensor.data_ptr() if number in held else None for number, tensor in enumerate(each)]
            + [None] * (1 + len(open)),  # the stream, and what is open
            inputs=inputs,
            constant=constants > 0,
            open=open,
        )

    def tape(self, notes: Sequence[Note], results: Sequence[Tensor], device: torch.device, trace: Trace | None) -> Tape:
        """The tape of these notes."""
        plain = tuple(self._step(note) for note in notes)
        flat = tuple(self._launch(note, step) for note, step in zip(notes, plain, strict=True))
        alike = all(one is other for one, other in zip(flat, plain, strict=True))
        places = tuple(self._place(each) for each in results)
        return Tape(
            flat=plain if alike else self._at_once(notes, flat, places),
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
        number = self.numbers.get(id(tensor))
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
        if not isinstance(note, Started):
            return plain
        entry = note.starter.entry(note.grid, note.values, note.given, note.stages, note.device)
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

    def _at_once(self, notes: Sequence[Note], steps: Sequence[Step], results: tuple[int, ...]) -> tuple[Step, ...]:
        """The steps, with the memory that is seen by nothing but launches taken by the first."""
        seen = set(results)
        for step in steps:
            match step:
                case Operation(arguments=arguments) | Several(arguments=arguments):
                    seen.update(arguments)
                case Start(tensors=tensors):
                    seen.update(at for _, at in tensors)
        taken = {self._place(note.result): note.result for note in notes if isinstance(note, Taken)}
        taken = {at: result for at, result in taken.items() if at not in seen}
        if len(taken) < 2:
            return tuple(steps)
        ends = list(accumulate(-(-result.nbytes // _ALIGNED) * _ALIGNED for result in taken.values()))
        device = next(iter(taken.values())).device
        memory = Taken(result=torch.empty(ends[-1], dtype=torch.uint8, device=device))
        offsets = dict(zip(taken, (0, *ends), strict=False))
        parts = {at: _Part.of(result, offsets[at]) for at, result in taken.items()}
        others = (step for step in steps if not (isinstance(step, Operation) and step.result in taken))
        return Arena(take=memory.again, parts=tuple(offsets.items())), *(_within(parts, step) for step in others)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The tensor that begins at a byte of memory taken at once."""

    begin: int
    bytes: int
    dtype: torch.dtype
    shape: torch.Size

    @staticmethod
    def of(tensor: Tensor, begin: int) -> _Part:
        return _Part(begin=begin, bytes=tensor.nbytes, dtype=tensor.dtype, shape=tensor.shape)

    def __call__(self, memory: Tensor) -> Tensor:
        return memory[self.begin : self.begin + self.bytes].view(self.dtype).view(self.shape)


def _within(parts: Mapping[int, _Part], step: Step) -> Step:
    """A step whose descriptors look for their tensors in memory that was taken at once."""
    if not isinstance(step, Launch):
        return step
    found = (replace(each, maps=replace(each.maps, part=parts.get(each.at))) for each in step.descriptors)
    return replace(step, descriptors=tuple(found))
