"""Notes what a call does on the device, and makes a tape of the notes.

A `Recorder` belongs to one call.  Memory that is taken, operations of torch and starts of kernels go through it; it
notes which tensors they read, and takes all else for constants, but for numbers that the call has left open
(`spdsl.runtime.traced`).  A call of which the recorder does not see all has no tape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from spdsl.runtime.notes import Done, Grid, Made, Note, Startable, Started, Taken, results_of
from spdsl.runtime.notices import is_watched, tell
from spdsl.runtime.tape import Tape
from spdsl.runtime.taping import tape_of
from spdsl.runtime.traced import Trace


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

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory that holds zeros."""
        result = torch.zeros(tuple(int(size) for size in shape), dtype=dtype, device=device)
        self.notes.append(Taken(result=result, zeroed=True))
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
        return tape_of(self.notes, self.inputs, self.constants, results, device, trace=self.trace)
