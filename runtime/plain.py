"""Starts of kernels that are written by hand or for selections, with a notice of each for whoever watches.

From: a function of Triton, a grid, and arguments by name.  To: a launch.  The binary that Triton chose is remembered,
as in `spdsl.runtime.starter`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from triton.compiler import CompiledKernel

from spdsl.codegen.binaries import keeping
from spdsl.diagnostics import Span, SpatError, error
from spdsl.runtime.notes import Entry, Grid, Started
from spdsl.runtime.notices import is_watched, tell
from spdsl.runtime.starter import flat_launch, launch_key
from spdsl.runtime.traced import concrete

PROGRAMS = 65_535
"""The most programs of a launch along its second and its third dimension."""

_MOST = 64
"""Binaries that are remembered for one function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A launch: ``values`` by the names of arguments, constants among them, ``options`` for Triton's compiler, and the
    names of the tensors that the kernel writes."""

    function: Any
    grid: Grid
    values: Mapping[str, Any]
    options: Mapping[str, Any]
    writes: tuple[str, ...]
    device: torch.device

    def note(self) -> Started:
        """The launch as others are noted."""
        return Started(
            starter=_Starter(function=self.function, options=self.options, writes=self.writes),
            grid=self.grid,
            values=self.values,
            given=self.values,
            stages=0,  # is among the options
            device=self.device,
            writes=self.writes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Starter:
    """Starts a function as a `Launch` does."""

    function: Any
    options: Mapping[str, Any]
    writes: tuple[str, ...]

    def given(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What Triton's launcher is given."""
        return dict(values)

    def start(self, grid: Grid, given: Mapping[str, Any], stages: int, device: torch.device) -> None:
        """Launch on the device."""
        del stages
        start(self._launch(grid, given, device))

    def entry(
        self, grid: Grid, values: Mapping[str, Any], given: Mapping[str, Any], stages: int, device: torch.device
    ) -> Entry | None:
        """The launch by flat arguments, where it has been done before and Triton allows it."""
        del stages
        known = _binaries(self.function).get(_place(self._launch(grid, given, device)))
        if known is None or getattr(self.function, "pre_run_hooks", None):
            return None
        return flat_launch(known, grid, [values[name] for name in self.function.arg_names])

    def _launch(self, grid: Grid, values: Mapping[str, Any], device: torch.device) -> Launch:
        function, options, writes = self.function, self.options, self.writes
        return Launch(function=function, grid=grid, values=values, options=options, writes=writes, device=device)


@dataclass(slots=True)
class _Binaries:
    """Binaries by what decides which one runs; ``function`` is kept, so that its address stays its own."""

    function: Any
    found: dict[Hashable, Any] = field(default_factory=dict)


_known: dict[int, _Binaries] = {}


def too_wide(grid: Sequence[int], kernel: str, span: Span | None = None) -> SpatError:
    """Says that the ``grid`` of a ``kernel`` has more than `PROGRAMS` programs along a dimension (SP510)."""
    return error(
        "SP510",
        f"the kernel {kernel} would start {' × '.join(map(str, grid))} programs, but a GPU starts 65,535 "
        "along the second and the third dimension",
        span,
        help="call it with fewer sequences at a time, and put the results together",
    )


def start(launch: Launch) -> None:
    """Launch on the device of the tensors.

    Raises:
        OutOfResources: the kernel needs more of something than the device has.
        SpatError: a grid that no GPU starts (SP510).
    """
    if max(sizes := tuple(concrete(size) for size in launch.grid[1:])) > PROGRAMS:
        raise too_wide((concrete(launch.grid[0]), *sizes), f"`{launch.function.__name__}`")
    # What the launcher itself does with tensors is no part of what is computed.
    with _disable_current_modes():
        _start(launch)
    if is_watched():
        tell(launch.note())


def start_given(
    function: Any,
    grid: Grid,
    arguments: Sequence[object],
    constants: Mapping[str, Any],
    writes: tuple[str, ...],
    options: Mapping[str, Any],
    device: torch.device,
) -> None:
    """As `start`, for arguments in their order, of which the last are ``constants`` by name; nothing for an empty
    grid."""
    if 0 in grid:
        return
    values = dict(zip(function.arg_names, arguments, strict=False)) | dict(constants)
    start(Launch(function=function, grid=grid, values=values, options=options, writes=writes, device=device))


@contextmanager
def on(device: torch.device) -> Iterator[None]:
    """While this lasts, kernels of this thread start on this device; Triton takes the current one, not the tensors'."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        yield
        return
    with torch.cuda.device(device):
        yield


def _start(launch: Launch) -> None:
    function, place, binaries = launch.function, _place(launch), _binaries(launch.function)
    known = None if place is None or getattr(function, "pre_run_hooks", None) else binaries.get(place)
    if known is not None:
        with on(launch.device):
            known[launch.grid](*(launch.values[name] for name in function.arg_names))
        return
    with on(launch.device), keeping(function, launch.device.index if launch.device.type == "cuda" else None):
        made = function[launch.grid](**launch.values, **launch.options)
    # The interpreter gives back nothing.
    if place is not None and isinstance(made, CompiledKernel):
        if len(binaries) >= _MOST:
            binaries.clear()
        binaries[place] = made


def _binaries(function: Any) -> dict[Hashable, Any]:
    found = _known.get(id(function))
    if found is None:
        found = _known[id(function)] = _Binaries(function)
    return found.found


def _place(launch: Launch) -> Hashable | None:
    """What decides which binary runs; None if that is not known."""
    parameters = getattr(launch.function, "params", None)
    if parameters is None or any(isinstance(value, Tensor) and not value.is_cuda for value in launch.values.values()):
        return None
    fixed = [launch.values[each.name] for each in parameters if each.is_constexpr]
    free = [each for each in parameters if not each.is_constexpr]
    key = launch_key(
        tuple(launch.values[each.name] for each in free), tuple(not each.do_not_specialize for each in free)
    )
    return None if key is None else (key, tuple(fixed), tuple(launch.options.items()), launch.device)
