"""What a call does on the device, noted once so that later calls of its kind repeat it without deciding anything.

A `Recorder` belongs to one call.  Memory that is taken, operations of torch and starts of kernels go through it; it
notes which tensors they read, and takes all else for constants.  So a `Tape` holds for calls whose tensors have the
same shapes, strides, types, alignment and device, and where it holds tensors of its own (lists of tiles, tables of
stages) for the same values of inputs: who plays it must know.  A call of which the recorder does not see all has no
tape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from operator import itemgetter
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

Grid: TypeAlias = tuple[int, int, int]


class Map(Protocol):
    """Makes what a launcher takes in the place of a tensor that the copy engine reads."""

    def of(self, tensor: Tensor) -> object:
        """The descriptor of a tensor laid out like the one that was recorded."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A compiled kernel as a function of flat arguments, of which ``STREAM``, tensors and `Mapped` are filled in."""

    launch: Callable[..., object]
    arguments: tuple[object, ...]


class Stream:
    """Stands for the stream among the arguments of an `Entry`."""


STREAM = Stream()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """Stands for the descriptor of a tensor among the arguments of an `Entry`."""

    tensor: Tensor
    map: Map


class Startable(Protocol):
    """What starts a kernel: `spdsl.runtime.starter.Starter`."""

    def given(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What Triton's launcher is given."""
        ...

    def start(self, grid: Grid, given: Mapping[str, Any], stages: int, device: torch.device) -> None:
        """Launch on the current device."""
        ...

    def entry(
        self, grid: Grid, values: Mapping[str, Any], given: Mapping[str, Any], stages: int, device: torch.device
    ) -> Entry | None:
        """The launch that `start` did, if it can be done again by its flat arguments."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """An operation of torch, as it was noted."""

    function: Callable[..., Tensor]
    arguments: tuple[Tensor, ...]
    result: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    """A launch, as it was noted."""

    starter: Startable
    grid: Grid
    values: Mapping[str, Any]
    given: Mapping[str, Any]
    stages: int
    device: torch.device


@dataclass(slots=True)
class Recorder:
    """Does what a call asks for, and notes it."""

    inputs: list[Tensor] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    notes: list[_Done | _Started] = field(default_factory=list)
    blind: bool = False

    def read(self, *inputs: Tensor) -> None:
        """The next tensors that a player will be given, in this order."""
        self.inputs.extend(inputs)

    def hold(self, *constants: Tensor) -> None:
        """Tensors that depend on values of the inputs; those that are inputs themselves do not count."""
        known = {id(each) for each in (*self.inputs, *self.constants)}
        self.constants.extend({id(each): each for each in constants if id(each) not in known}.values())

    def run(self, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        """The result of ``function``, which depends on nothing but what is known of a tape's calls."""
        result = function(*arguments)
        self.notes.append(_Done(function=function, arguments=arguments, result=result))
        return result

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
        self.notes.append(
            _Started(starter=starter, grid=grid, values=values, given=given, stages=stages, device=device)
        )

    def give_up(self) -> None:
        """Something is done that is not noted."""
        self.blind = True

    def tape(self, results: Sequence[Tensor], device: torch.device) -> Tape | None:
        """The tape of the call that gave these results; None if the recorder has not seen all of it."""
        if self.blind:
            return None
        try:
            return _Cut.of(self).tape(self.notes, results, device)
        except _Unseen:
            return None


# ---------------------------------------------------------------- playing

Step: TypeAlias = Callable[[list[Any], list[Any]], None]
"""Reads and writes the tensors of a tape and their cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    """An operation of torch on the tensors at the places ``arguments``; its result goes to ``result``."""

    function: Callable[..., Tensor]
    arguments: tuple[int, ...]
    result: int

    def __call__(self, tensors: list[Any], cells: list[Any]) -> None:
        function, at = self.function, self.result
        made = function(*[tensors[each] for each in self.arguments]) if self.arguments else function()
        tensors[at], cells[at] = made, made.data_ptr()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Descriptors:
    """The descriptors of one argument by the address of its tensor, the few used last."""

    map: Map
    at: int
    cell: int
    known: dict[int, object]

    def fill(self, tensors: list[Any], cells: list[Any]) -> None:
        """Put the descriptor of the tensor at ``at`` into the cell."""
        address = cells[self.at]
        found = self.known.get(address)
        if found is None:
            if len(self.known) >= _ADDRESSES:
                self.known.clear()
            found = self.known[address] = self.map.of(tensors[self.at])
        cells[self.cell] = found


_ADDRESSES = 64
"""Descriptors that are kept for one argument."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Launch:
    """A launch by flat arguments, which are cells."""

    launch: Callable[..., object]
    arguments: Callable[[list[Any]], tuple[Any, ...]]
    descriptors: tuple[_Descriptors, ...]

    def __call__(self, tensors: list[Any], cells: list[Any]) -> None:
        for each in self.descriptors:
            each.fill(tensors, cells)
        self.launch(*self.arguments(cells))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """A launch by names, the way of the first one."""

    starter: Startable
    grid: Grid
    numbers: Mapping[str, Any]
    tensors: tuple[tuple[str, int], ...]
    stages: int
    device: torch.device

    def __call__(self, tensors: list[Any], _: list[Any]) -> None:
        values = {**self.numbers, **{name: tensors[at] for name, at in self.tensors}}
        self.starter.start(self.grid, self.starter.given(values), self.stages, self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tape:
    """Steps over numbered tensors: inputs, constants, results.  Cells hold the addresses of tensors under the same
    numbers, then the stream, then numbers and descriptors for launches.

    ``flat`` launches go to Triton's launcher directly, the others (``plain``) by name; steps differ in that alone.
    ``constant`` says whether tensors are held that depend on values of the inputs.
    """

    flat: tuple[Step, ...]
    plain: tuple[Step, ...]
    tensors: list[Any]
    cells: list[Any]
    inputs: int
    stream: int
    results: tuple[int, ...]
    device: torch.device
    constant: bool

    def play(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The results for other inputs of the same kind."""
        device = self.device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return self._played(inputs)
        # Triton launches on the current device, which need not be that of the tensors.
        with torch.cuda.device(device):
            return self._played(inputs)

    def _played(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        tensors, cells = self.tensors.copy(), self.cells.copy()
        tensors[: self.inputs] = inputs
        cells[: self.inputs] = [each.data_ptr() for each in inputs]
        steps = self.flat
        if steps is not self.plain:
            stream = current_stream(self.device)
            if stream is None:
                steps = self.plain
            cells[self.stream] = stream
        for step in steps:
            step(tensors, cells)
        return [tensors[at] for at in self.results]


def current_stream(device: torch.device) -> int | None:
    """The stream that kernels are launched on; None if launches are being watched, so that they have to go by name."""
    runtime, driver = _triton()
    for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        if hook is not None and getattr(hook, "calls", True):
            return None
    return driver.active.get_current_stream(device.index or 0)  # type: ignore[no-any-return]


@cache
def _triton() -> tuple[Any, Any]:
    """Triton's settings and what knows its driver, which not every back end needs."""
    from triton import knobs
    from triton.runtime import driver

    return knobs.runtime, driver


# ---------------------------------------------------------------- from notes to steps


class _Unseen(Exception):  # noqa: N818  # nothing is wrong
    """A step reads a tensor that came from somewhere else."""


@dataclass(slots=True, kw_only=True)
class _Cut:
    """Gives numbers to the tensors of a recording, and makes steps of its notes."""

    numbers: dict[int, int]
    tensors: list[Any]
    cells: list[Any]
    inputs: int
    constant: bool

    @staticmethod
    def of(recorder: Recorder) -> _Cut:
        """The tensors of a recording: inputs, constants, results of operations, each once."""
        seen = [*recorder.inputs, *recorder.constants, *(n.result for n in recorder.notes if isinstance(n, _Done))]
        each = list({id(tensor): tensor for tensor in seen}.values())
        inputs, constants = len(recorder.inputs), len(recorder.constants)
        if len({id(tensor) for tensor in recorder.inputs}) < inputs:
            raise _Unseen
        held = range(inputs, inputs + constants)
        return _Cut(
            numbers={id(tensor): number for number, tensor in enumerate(each)},
            tensors=[tensor if number in held else None for number, tensor in enumerate(each)],
            cells=[*(tensor.data_ptr() if number in held else None for number, tensor in enumerate(each)), None],
            inputs=inputs,
            constant=constants > 0,
        )

    def tape(self, notes: Sequence[_Done | _Started], results: Sequence[Tensor], device: torch.device) -> Tape:
        """The tape of these notes."""
        plain = tuple(self._operation(note) if isinstance(note, _Done) else self._start(note) for note in notes)
        flat = tuple(self._launch(note, step) for note, step in zip(notes, plain, strict=True))
        alike = all(one is other for one, other in zip(flat, plain, strict=True))
        return Tape(
            flat=plain if alike else flat,
            plain=plain,
            tensors=self.tensors,
            cells=self.cells,
            inputs=self.inputs,
            stream=len(self.tensors),
            results=tuple(self._place(each) for each in results),
            device=device,
            constant=self.constant,
        )

    def _place(self, tensor: Tensor) -> int:
        number = self.numbers.get(id(tensor))
        if number is None:
            raise _Unseen
        return number

    def _cell(self, value: object) -> int:
        self.cells.append(value)
        return len(self.cells) - 1

    def _operation(self, note: _Done) -> Step:
        places = tuple(self._place(each) for each in note.arguments)
        return _Operation(function=note.function, arguments=places, result=self._place(note.result))

    def _start(self, note: _Started) -> Step:
        values = {name: value for name, value in note.values.items() if isinstance(value, Tensor)}
        rest = {name: value for name, value in note.values.items() if name not in values}
        known = tuple((name, self._place(tensor)) for name, tensor in values.items())
        return _Start(
            starter=note.starter, grid=note.grid, numbers=rest, tensors=known, stages=note.stages, device=note.device
        )

    def _launch(self, note: _Done | _Started, plain: Step) -> Step:
        """The launch by flat arguments, if there is one."""
        if isinstance(note, _Done):
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
                    descriptors.append(_Descriptors(map=map, at=self._place(tensor), cell=places[-1], known={}))
                case _:
                    places.append(self._cell(each))
        return _Launch(launch=entry.launch, arguments=itemgetter(*places), descriptors=tuple(descriptors))
