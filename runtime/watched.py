"""What a computation without decisions does on the device, seen by watching torch, and repeated for other tensors.

From: a function that makes tensors from tensors.  To: its results, and steps that make the same of tensors laid out
alike: operations of torch as the dispatcher was asked for them, and launches.  What does not depend on the tensors is
done once and kept.  A function whose course depends on numbers of the tensors (it reads one on the host, or asks for
as much room as there are some) has no steps: it is `blind`.

In contrast to `spdsl.runtime.tape`, whose recorder is told of everything, nothing has to be told here but launches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton import knobs

from spdsl.runtime.notices import watched
from spdsl.runtime.seen import Asked, Note, made_by, storage_of

ROOM = 1 << 28
"""Bytes that are held, beyond as many as the tensors have, while a computation is watched."""


@dataclass(eq=False)
class Notes:
    """What was seen; ``room`` is how many bytes more may be held.

    ``trusted`` is older, and depends on no tensor; ``name`` tells notes apart where they are not held.
    """

    room: int
    seen: list[Note] = field(default_factory=list)
    storages: set[int] = field(default_factory=set)
    trusted: list[Tensor] = field(default_factory=list)
    name: object = field(default_factory=object)
    blind: bool = False

    def add(self, note: Note) -> None:
        """One more."""
        if self.blind:
            return
        self.seen.append(note)
        for tensor in made_by(note):
            if storage_of(tensor) not in self.storages:
                self.storages.add(storage_of(tensor))
                self.room -= tensor.untyped_storage().nbytes()
        if self.room < 0:
            self.give_up()

    def trust(self, value: object) -> None:
        """Tensors that depend on no others."""
        if not self.blind:
            self.trusted += _tensors_of(value)

    def give_up(self) -> None:
        """Something is not seen, or too much is held."""
        self.blind = True
        self.seen.clear()
        self.trusted.clear()


def _tensors_of(value: object) -> list[Tensor]:
    """The tensors of records and their parts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [tensor for each in value for tensor in _tensors_of(each)]
    if is_dataclass(value):
        return [tensor for each in fields(value) for tensor in _tensors_of(getattr(value, each.name))]
    return []


class _Mode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing that is watched is compiled by torch, whose compiler takes seconds to load."""
        return False

    def __init__(self, notes: Notes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.notes = notes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        self.notes.add(Asked(function=func, arguments=args, named=dict(kwargs or {}), result=result))
        return result


_HANDED_OVER = {Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.storage}
"""What gives the memory of a tensor to somebody who does not ask the dispatcher."""


class _Handed(TorchFunctionMode):
    """Sees numbers of tensors handed over."""

    def __init__(self, notes: Notes) -> None:
        super().__init__()
        self.notes = notes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        if func is Tensor.tolist:
            # The dispatcher is not asked for numbers that are there already.
            told = torch.ops.aten._local_scalar_dense.default  # noqa: SLF001  # its name
            self.notes.add(Asked(function=told, arguments=args[:1], named={}, result=None))
        elif func in _HANDED_OVER:
            self.notes.give_up()
        return func(*args, **(kwargs or {}))


@contextmanager
def _counted() -> Iterator[list[object]]:
    """One element for each launch of Triton's, if it tells of them; the interpreter does not."""
    found: list[object] = []
    hook = knobs.runtime.launch_enter_hook
    if not hasattr(hook, "add"):
        yield found
        return
    hook.add(found.append)
    try:
        yield found
    finally:
        hook.remove(found.append)


@contextmanager
def noting(notes: Notes) -> Iterator[None]:
    """While this lasts, all that is asked of torch and all launches of this thread are noted."""
    before = _launches(notes)
    with _Handed(notes), _Mode(notes), watched(notes), _counted() as counted:
        yield
    if counted and len(counted) != _launches(notes) - before:
        notes.give_up()  # somebody has launched something without a notice


def _launches(notes: Notes) -> int:
    return sum(not isinstance(note, Asked) for note in notes.seen)
