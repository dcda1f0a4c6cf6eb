"""What a recorded call does on the device: memory it takes, operations of torch, starts of kernels.

Each note has the tensors that it reads and writes; all else in it is constant, or an open number
(`spdsl.runtime.traced`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from typing_extensions import assert_never

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
class Taken:
    """Memory that was taken, as it was noted; ``zeroed``: and filled with zeros."""

    result: Tensor
    zeroed: bool = False

    @property
    def again(self) -> Callable[[], Tensor]:
        """Takes as much."""
        shape, dtype, device = tuple(self.result.shape), self.result.dtype, self.result.device
        if self.zeroed:
            return partial(torch.zeros, shape, dtype=dtype, device=device)
        if device.type == "cuda":
            # What torch's compiled programs call: there are no arguments to be told apart.
            taken = torch._C._dynamo.guards._empty_strided_cuda  # type: ignore[attr-defined]  # noqa: SLF001
            return partial(taken, shape, self.result.stride(), dtype)
        return partial(torch.empty, shape, dtype=dtype, device=device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """An operation of torch, as it was noted."""

    function: Callable[..., Tensor]
    arguments: tuple[Tensor, ...]
    result: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewed:
    """Another look at memory of the argument, as it was noted: nothing happens on the device."""

    function: Callable[..., Tensor]
    argument: Tensor
    result: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Tensors made of others by a function that may launch kernels itself, as it was noted."""

    function: Callable[..., tuple[Tensor, ...]]
    arguments: tuple[Tensor, ...]
    results: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A launch, as it was noted; ``writes`` names the tensors that it may change, where somebody watches."""

    starter: Startable
    grid: Grid
    values: Mapping[str, Any]
    given: Mapping[str, Any]
    stages: int
    device: torch.device
    writes: tuple[str, ...] = ()

    def entry(self) -> Entry | None:
        """The launch by flat arguments, if it can be done so."""
        return self.starter.entry(self.grid, self.values, self.given, self.stages, self.device)


Note: TypeAlias = "Taken | Done | Viewed | Made | Started"


def arguments_of(note: Note) -> tuple[Tensor, ...]:
    """The tensors that a note reads, or writes."""
    match note:
        case Taken():
            return ()
        case Done(arguments=arguments) | Made(arguments=arguments):
            return arguments
        case Viewed(argument=argument):
            return (argument,)
        case Started(values=values):
            return tuple(value for value in values.values() if isinstance(value, Tensor))
        case _:
            assert_never(note)


def results_of(note: Note) -> tuple[Tensor, ...]:
    """The tensors that a note has made."""
    match note:
        case Taken(result=result) | Done(result=result) | Viewed(result=result):
            return (result,)
        case Made(results=results):
            return results
        case Started():
            return ()
        case _:
            assert_never(note)
