"""A small memory of results made from tensors, by the identity of their content or by the content itself."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from spdsl.runtime.notices import watcher

T = TypeVar("T")
K = TypeVar("K")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent(Generic[T]):
    """The ``size`` results used last.

    Each entry keeps what it was made from, or weak references to it, so that no address in a key is used again.
    """

    size: int
    entries: OrderedDict[Hashable, tuple[T, object]] = field(default_factory=OrderedDict)

    def get(self, key: Hashable | None, sources: object, make: Callable[[], T]) -> T:
        """The result under ``key``, made if it is not there; None as key makes it every time."""
        if key is None:
            return make()
        found = self.entries.get(key)
        if found is None:
            found = make(), sources
        _keep_last(self.entries, key, found, self.size)
        return found[0]

    def find(self, key: Hashable) -> T | None:
        """The result under ``key``, if it is there."""
        with _lock:
            found = self.entries.get(key)
            if found is None:
                return None
            self.entries.move_to_end(key)
        return found[0]

    def drop(self, key: Hashable, value: T) -> None:
        """Forget the result under ``key`` if it is this one."""
        with _lock:
            found = self.entries.get(key)
            if found is not None and found[0] is value:
                del self.entries[key]


_lock = threading.Lock()  # threads may call at once; results are made outside of it


def _keep_last(entries: OrderedDict[K, T], key: K, value: T, size: int) -> None:
    """Make the entry the last one, and drop the first if there are too many."""
    with _lock:
        entries[key] = value
        entries.move_to_end(key)
        if len(entries) > size:
            entries.popitem(last=False)


def identity(*tensors: Tensor | None) -> Hashable | None:
    """What stays the same as long as the tensors hold the same numbers; None if that cannot be known.

    It names the storage of a tensor by an address, which no other storage has while something refers to the first,
    be it weakly: see `weakly`.  Writes that torch does not count are not seen: through `.data`, by kernels of others,
    in graphs that are replayed.  `torch.autograd.graph.increment_version` makes them known.
    """
    if any(tensor is not None and not counts(tensor) for tensor in tensors):
        return None
    return tuple(None if tensor is None else _identity(tensor) for tensor in tensors)


def counts(tensor: Tensor) -> bool:
    """Whether changes are counted: not those of inference tensors, and not in memory of the CPU, to which numpy or
    another process may write."""
    return not tensor.is_cpu and not tensor.is_inference()


def _identity(tensor: Tensor) -> Hashable:
    # torch has no public names for these.
    storage: int = torch._C._storage_id(tensor)  # type: ignore[attr-defined]  # noqa: SLF001
    place = storage, tensor.data_ptr(), tensor._version  # noqa: SLF001
    return (*place, tensor.dtype, tensor.shape, tensor.stride())


def weakly(*tensors: Tensor | None) -> tuple[StorageWeakRef, ...]:
    """References that keep the storages' addresses from being used again, but not the memory of the numbers."""
    return tuple(StorageWeakRef(tensor.untyped_storage()) for tensor in tensors if tensor is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made(Generic[T]):
    """A result, what it was made from, and the identity of the tensors then; None if they are copies of our own."""

    value: T
    source: object
    tensors: tuple[Tensor | None, ...]
    same: Hashable | None

    def might_serve(self, tensors: tuple[Tensor | None, ...]) -> bool:
        """Whether what the result was made from can still be seen, and is of the shapes and types of the tensors."""
        if self.same is not None and identity(*self.tensors) != self.same:
            return False
        return all(_alike(ours, theirs) for ours, theirs in zip(self.tensors, tensors, strict=True))

    def equal(self, tensors: tuple[Tensor | None, ...]) -> Tensor:
        """Whether the tensors hold the numbers that the result was made from, on their device."""
        pairs = [(a, b) for a, b in zip(self.tensors, tensors, strict=True) if a is not None and b is not None]
        return torch.stack([torch.eq(ours, theirs).all() for ours, theirs in pairs]).all()


_COMPARED = 8
"""Results, the last first, whose tensors are compared with new ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ByContent(Generic[T]):
    """The ``size`` results used last, found by identity of the tensors they were made from, else by their content.

    To compare tensors waits for the device, once for tensors that are new, however many results are there.  Who watches
    is served what was made of tensors under their own eyes alone, and told of what was made of none.
    """

    size: int
    entries: OrderedDict[tuple[Hashable, Hashable], _Made[T]] = field(default_factory=OrderedDict)

    def get(
        self,
        key: Hashable,
        tensors: tuple[Tensor | None, ...],
        source: object,
        make: Callable[[], T],
        *,
        compare: bool = True,
    ) -> T:
        """The result under ``key`` for tensors of this content; ``source`` is kept as long as the result is.

        Without ``compare`` other tensors have to be these very tensors, and the device is not waited for.
        """
        by = watcher()
        if by is not None and any(tensor is not None for tensor in tensors):
            key = key, by.name
        same = identity(*tensors)
        place: tuple[Hashable, Hashable] = (key, object() if same is None else same)
        made = self.entries.get(place)
        if made is None:
            alike = self._alike(key, tensors) if compare else None
            if alike is not None and same is None:
                place, made = alike
            else:
                # Before the result is made: tensors may change while it is.
                kept = _kept(tensors, same)
                value = make() if alike is None else alike[1].value
                made = _Made(value=value, source=source, tensors=kept, same=same)
        _keep_last(self.entries, place, made, self.size)
        if by is not None and all(tensor is None for tensor in tensors):
            by.trust(made.value)
        return made.value

    def seen(self, key: Hashable, tensors: tuple[Tensor | None, ...]) -> T | None:
        """The result under ``key`` for these very tensors, unchanged, if it is there."""
        with _lock:
            made = self.entries.get((key, identity(*tensors)))
        return None if made is None else made.value

    def _alike(
        self, key: Hashable, tensors: tuple[Tensor | None, ...]
    ) -> tuple[tuple[Hashable, Hashable], _Made[T]] | None:
        """The place and the result for tensors of the same content."""
        if all(tensor is None for tensor in tensors):
            return None
        with _lock:
            known = [entry for entry in reversed(self.entries.items()) if entry[0][0] == key]
        known = [entry for entry in known if entry[1].might_serve(tensors)][:_COMPARED]
        answers = torch.stack([made.equal(tensors) for _, made in known]).tolist() if known else []
        return next((entry for entry, equal in zip(known, answers, strict=True) if equal), None)


def _kept(tensors: tuple[Tensor | None, ...], same: Hashable | None) -> tuple[Tensor | None, ...]:
    """The tensors, or copies if nobody would notice that they change."""
    return tensors if same is not None else tuple(None if tensor is None else tensor.clone() for tensor in tensors)


def _alike(ours: Tensor | None, theirs: Tensor | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return ours.shape == theirs.shape and ours.dtype == theirs.dtype and ours.device == theirs.device
