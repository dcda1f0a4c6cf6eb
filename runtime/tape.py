"""Repeats what a call did on the device, without deciding anything.

A `Tape` holds for calls whose tensors have the same shapes, strides, types, alignment and device as those of the call
that was recorded (`spdsl.runtime.recorder`), but for numbers that this has left open, and where it holds tensors of its
own (lists of tiles, tables of stages) for the same values of inputs: who plays it must know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from spdsl.runtime.memset import clear
from spdsl.runtime.notes import Map, Startable
from spdsl.runtime.traced import Numbers

Step: TypeAlias = Callable[[list[Any], list[Any]], None]
"""Reads and writes the tensors of a tape and their cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """An operation of torch on the tensors at the places ``arguments``; its result goes to ``result``."""

    function: Callable[..., Tensor]
    arguments: tuple[int, ...]
    result: int

    def __call__(self, tensors: list[Any], cells: list[Any]) -> None:
        """Carry it out."""
        function, at = self.function, self.result
        made = function(*[tensors[each] for each in self.arguments]) if self.arguments else function()
        tensors[at], cells[at] = made, made.data_ptr()


@dataclass(frozen=True, slots=True, kw_only=True)
class Several:
    """As `Operation`, of a function with several results."""

    function: Callable[..., tuple[Tensor, ...]]
    arguments: tuple[int, ...]
    results: tuple[int, ...]

    def __call__(self, tensors: list[Any], cells: list[Any]) -> None:
        """Carry it out."""
        for at, made in zip(self.results, self.function(*[tensors[each] for each in self.arguments]), strict=True):
            tensors[at], cells[at] = made, made.data_ptr()


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """Memory that launches alone see, taken at once: at the places of ``parts``, each from an offset on."""

    take: Callable[[], Tensor]
    parts: tuple[tuple[int, int], ...]

    def __call__(self, tensors: list[Any], cells: list[Any]) -> None:
        """Take the memory."""
        made = self.take()
        address = made.data_ptr()
        for at, offset in self.parts:
            # The tensor is there so that the memory is kept until all is launched.
            tensors[at], cells[at] = made, address + offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Zero:
    """Fills the memory at a place with zeros: ``bytes`` of it, from ``begin`` on where it was taken at once."""

    at: int
    bytes: int
    begin: int
    stream: int

    def __call__(self, tensors: list[Any], cells: list[Any]) -> None:
        """Fill it."""
        if not clear(cells[self.at], self.bytes, cells[self.stream]):
            tensors[self.at].view(-1).view(torch.uint8)[self.begin : self.begin + self.bytes].zero_()


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The address of a view: so many bytes behind that of the tensor at ``of``."""

    at: int
    of: int
    bytes: int

    def __call__(self, _: list[Any], cells: list[Any]) -> None:
        """Fill the cell."""
        cells[self.at] = cells[self.of] + self.bytes


@dataclass(frozen=True, slots=True)
class Free:
    """Gives back what stands at these places."""

    places: tuple[int, ...]

    def __call__(self, tensors: list[Any], _: list[Any]) -> None:
        """Forget the tensors."""
        for at in self.places:
            tensors[at] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptMaps:
    """The descriptors of one argument by the address of its tensor, the few used last; ``part`` finds the tensor in
    memory that was taken at once."""

    map: Map
    known: dict[int, object] = field(default_factory=dict)
    part: Callable[[Tensor], Tensor] | None = None

    def of(self, tensor: Tensor, address: int | None = None) -> object:
        """The descriptor of a tensor, whose address may be known."""
        address = tensor.data_ptr() if address is None else address
        found = self.known.get(address)
        if found is None:
            if len(self.known) >= _ADDRESSES:
                self.known.clear()
            found = self.known[address] = self.map.of(tensor if self.part is None else self.part(tensor))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptors:
    """Puts the descriptor of the tensor at ``at`` into a cell."""

    maps: KeptMaps
    at: int
    cell: int

    def fill(self, tensors: list[Any], cells: list[Any]) -> None:
        """Fill the cell."""
        cells[self.cell] = self.maps.of(tensors[self.at], cells[self.at])


_ADDRESSES = 64
"""Descriptors that are kept for one argument."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A launch by flat arguments, which are cells."""

    launch: Callable[..., object]
    arguments: Callable[[list[Any]], tuple[Any, ...]]
    descriptors: tuple[Descriptors, ...]

    def __call__(self, tensors: list[Any], cells: list[Any]) -> None:
        """Launch."""
        for each in self.descriptors:
            each.fill(tensors, cells)
        self.launch(*self.arguments(cells))


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A launch by names, the way of the first one; ``grid`` and ``numbers`` are cells."""

    starter: Startable
    grid: tuple[int, int, int]
    numbers: tuple[tuple[str, int], ...]
    tensors: tuple[tuple[str, int], ...]
    stages: int
    device: torch.device

    def __call__(self, tensors: list[Any], cells: list[Any]) -> None:
        """Launch by name."""
        values = {name: cells[at] for name, at in self.numbers} | {name: tensors[at] for name, at in self.tensors}
        x, y, z = (cells[at] for at in self.grid)
        self.starter.start((x, y, z), self.starter.given(values), self.stages, self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tape:
    """Steps over numbered tensors: inputs, constants, results.  Cells hold the addresses of tensors under the same
    numbers, then the stream, then numbers and descriptors for launches.

    ``flat`` launches go to Triton's launcher directly, the others (``plain``) by name; besides, the first take the
    memory that only launches see at once.  ``constant`` says whether tensors are held that depend on values of inputs.
    ``numbers`` makes what stands in the cells from ``opened`` on of lengths and strides that are open.
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
    numbers: Numbers | None = None
    opened: int = 0

    def play(self, inputs: Sequence[Tensor], numbers: tuple[int, ...] = ()) -> list[Tensor]:
        """The results for other inputs of the same kind, with the numbers that are made of open ones."""
        device = self.device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return self._played(inputs, numbers)
        # Triton launches on the current device, which need not be that of the tensors.
        with torch.cuda.device(device):
            return self._played(inputs, numbers)

    def _played(self, inputs: Sequence[Tensor], numbers: tuple[int, ...]) -> list[Tensor]:
        tensors, cells = self.tensors.copy(), self.cells.copy()
        cells[self.opened : self.opened + len(numbers)] = numbers
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
