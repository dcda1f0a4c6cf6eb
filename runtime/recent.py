"""A small memory of results made from tensors, by the identity of their content or by the content itself."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent(Generic[T]):
    """The ``size`` results used last.

    Each entry keeps what it was made from, so that no address in a key is used again.
    """

    size: int
    entries: OrderedDict[Hashable, tuple[T, object]] = field(default_factory=OrderedDict)

    def get(self, key: Hashable | None, sources: object, make: Callable[[], T]) -> T:
        """The result under ``key``, made if it is not there; None as key makes it every time."""
        if key is None:
            return make()
        if key not in self.entries:
            self.entries[key] = (make(), sources)
            if len(self.entries) > self.size:
                self.entries.popitem(last=False)
        self.entries.move_to_end(key)
        return self.entries[key][0]


def identity(*tensors: Tensor | None) -> Hashable | None:
    """What stays the same as long as the tensors hold the same numbers; None if that cannot be known."""
    if any(tensor is not None and tensor.is_inference() for tensor in tensors):
        # Inference tensors do not count their changes.
        return None
    return tuple(None if tensor is None else _identity(tensor) for tensor in tensors)


def _identity(tensor: Tensor) -> Hashable:
    place = (tensor.data_ptr(), tensor._version, str(tensor.device))  # noqa: SLF001  # torch has no public name for it
    return (*place, tensor.dtype, tuple(tensor.shape), tensor.stride())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made(Generic[T]):
    """A result, what it was made from, and the identity of the tensors then; None if they are copies of our own."""

    value: T
    source: object
    tensors: tuple[Tensor | None, ...]
    same: Hashable | None

    def serves(self, tensors: tuple[Tensor | None, ...]) -> bool:
        """Whether the tensors hold what the result was made from, as far as that can still be seen."""
        if self.same is not None and identity(*self.tensors) != self.same:
            return False
        return all(_equal(ours, theirs) for ours, theirs in zip(self.tensors, tensors, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class ByContent(Generic[T]):
    """The ``size`` results used last, found by identity of the tensors they were made from, else by their content.

    To compare tensors waits for the device, once for each tensor that is new.
    """

    size: int
    entries: OrderedDict[tuple[Hashable, Hashable], _Made[T]] = field(default_factory=OrderedDict)

    def get(self, key: Hashable, tensors: tuple[Tensor | None, ...], source: object, make: Callable[[], T]) -> T:
        """The result under ``key`` for tensors of this content; ``source`` is kept as long as the result is."""
        same = identity(*tensors)
        place = (key, same)
        if same is None or place not in self.entries:
            alike = self._alike(key, tensors)
            if alike is not None and same is None:
                place = alike
            else:
                value = make() if alike is None else self.entries[alike].value
                place = (key, object() if same is None else same)
                self._keep(place, _Made(value=value, source=source, tensors=_kept(tensors, same), same=same))
        self.entries.move_to_end(place)
        return self.entries[place].value

    def _alike(self, key: Hashable, tensors: tuple[Tensor | None, ...]) -> tuple[Hashable, Hashable] | None:
        """The place of a result for tensors of the same content."""
        if all(tensor is None for tensor in tensors):
            return None
        found = (place for place, made in reversed(self.entries.items()) if place[0] == key and made.serves(tensors))
        return next(found, None)

    def _keep(self, place: tuple[Hashable, Hashable], made: _Made[T]) -> None:
        self.entries[place] = made
        if len(self.entries) > self.size:
            self.entries.popitem(last=False)


def _kept(tensors: tuple[Tensor | None, ...], same: Hashable | None) -> tuple[Tensor | None, ...]:
    """The tensors, or copies if nobody would notice that they change."""
    return tensors if same is not None else tuple(None if tensor is None else tensor.clone() for tensor in tensors)


def _equal(ours: Tensor | None, theirs: Tensor | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    alike = ours.shape == theirs.shape and ours.dtype == theirs.dtype and ours.device == theirs.device
    return alike and torch.equal(ours, theirs)
