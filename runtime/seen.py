"""What torch and kernels were asked for while somebody watched: operations and launches, with the tensors of each.

From there to the notes of which tapes are made (`spdsl.runtime.notes`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from spdsl.runtime import notes
from spdsl.runtime.notes import Done, Made, Started, Taken, Viewed

_DECIDING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An operation that the dispatcher was asked for."""

    function: Any
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    result: Any

    def reads(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return tensors_in((self.arguments, self.named))

    def makes(self) -> list[Tensor]:
        """The tensors among the results."""
        return tensors_in(self.result)

    def writes(self) -> list[Tensor]:
        """The tensors among the arguments that are changed."""
        found = []
        for place, declared in enumerate(self.function._schema.arguments):  # noqa: SLF001  # torch has no other way
            if declared.alias_info is not None and declared.alias_info.is_write:
                given = self.arguments[place] if place < len(self.arguments) else self.named.get(declared.name)
                found += tensors_in(given)
        return found


Note: TypeAlias = "Asked | Started"


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors in lists, tuples and dicts."""
    return [each for each in tree_flatten(tree)[0] if isinstance(each, Tensor)]


def read_by(note: Note) -> list[Tensor]:
    """The tensors that are read."""
    return note.reads() if isinstance(note, Asked) else tensors_in(dict(note.values))


def written_by(note: Note) -> list[Tensor]:
    """The tensors that are changed."""
    return note.writes() if isinstance(note, Asked) else [note.values[name] for name in note.writes]


def made_by(note: Note) -> list[Tensor]:
    """The tensors that are new."""
    return note.makes() if isinstance(note, Asked) else []


def storage_of(tensor: Tensor) -> int:
    """What tells storages apart, as long as all of them live."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001  # torch has no public name


def memory_of(tensor: Tensor) -> Hashable:
    """What tells the memory of tensors apart as long as all of them live, and how it is read."""
    place = storage_of(tensor), tensor.storage_offset(), tensor.dtype
    return (*place, tensor.shape, tensor.stride())


def is_twice(tensors: Sequence[Tensor]) -> bool:
    """Whether one stands for the memory of another, so that steps could not tell which is meant."""
    return len({memory_of(each) for each in tensors}) < len(tensors)


def is_among(note: Note, storages: set[int]) -> bool:
    """Whether a note reads or makes anything in these storages."""
    return any(storage_of(each) in storages for each in (*read_by(note), *made_by(note)))


def changing_among(notes: Sequence[Note], inputs: Iterable[Tensor]) -> set[int]:
    """The storages whose numbers depend on the inputs, and those in which anything is written, but not those that were
    made here and hold what they do as soon as anybody reads them, whatever the inputs are."""
    found = {storage_of(each) for each in inputs} | _written_again(notes)
    before = 0
    while len(found) > before:
        before = len(found)
        for note in notes:
            if is_among(note, found):
                found |= {storage_of(each) for each in (*made_by(note), *written_by(note))}
    return found


def _written_again(notes: Sequence[Note]) -> set[int]:
    """The storages that are older, or that somebody reads before the last has written there."""
    made, read, found = set[int](), set[int](), set[int]()
    for note in notes:
        written = {storage_of(each) for each in written_by(note)}
        found |= {each for each in written if each in read or each not in made}
        reads = {storage_of(each) for each in read_by(note)}
        made |= {storage_of(each) for each in made_by(note)} - reads
        if not is_view(note) and not (isinstance(note, Asked) and note.function in _TAKES):
            read |= reads - written
    return found


def unknown_among(notes: Iterable[Note], known: Iterable[Tensor]) -> set[int]:
    """The storages of which it was not seen what they are made of: they are not among those of ``known``, hold no
    numbers that the host has written down, and are not made of these alone."""
    seen, found = {storage_of(each) for each in known}, set[int]()
    for note in notes:
        if isinstance(note, Asked) and note.function is torch.ops.aten.lift_fresh.default:
            # What the host has written down into a new tensor, on whichever device.
            seen.update(storage_of(each) for each in note.makes())
            continue
        for each in read_by(note):
            if storage_of(each) not in seen and not (each.is_cpu and each.numel() == 1):
                found.add(storage_of(each))
        of_unknown = any(storage_of(each) in found for each in read_by(note))
        (found if of_unknown else seen).update(storage_of(each) for each in made_by(note))
        if of_unknown:
            found.update(storage_of(each) for each in written_by(note))
    return found


def is_unlike(note: Asked) -> bool:
    """Whether an operation draws numbers, or puts other memory in the place of a tensor's, as Triton's interpreter does
    when it launches without a notice."""
    return (
        torch.Tag.nondeterministic_seeded in note.function.tags or note.function.overloadpacket is torch.ops.aten.set_
    )


def decides(note: Asked) -> bool:
    """Whether the host may know a number of a tensor after an operation."""
    makes, reads = note.makes(), note.reads()
    tells = not makes and not note.writes()
    leaves = any(each.is_cpu for each in makes) and not all(each.is_cpu for each in reads)
    return tells or leaves or (bool(_DECIDING & set(note.function.tags)) and not _by_numbers(note))


def _by_numbers(note: Asked) -> bool:
    """Whether elements are asked for by their numbers, so that the result has the shape of these."""
    is_index = note.function.overloadpacket is torch.ops.aten.index
    return is_index and all(each.dtype == torch.int64 for each in tensors_in(note.arguments[1]))


_TAKES = {
    torch.ops.aten.empty.memory_format: False,
    torch.ops.aten.empty_strided.default: False,
    torch.ops.aten.empty_like.default: False,
    torch.ops.aten.new_empty.default: False,
    torch.ops.aten.new_empty_strided.default: False,
    torch.ops.aten.zeros.default: True,
    torch.ops.aten.zeros_like.default: True,
    torch.ops.aten.new_zeros.default: True,
}
"""What takes memory, and whether it fills it with zeros."""


def is_view(note: Note) -> bool:
    """Whether an operation does nothing but look at memory of its only tensor in other ways."""
    if not isinstance(note, Asked) or note.writes():
        return False
    reads, makes = note.reads(), note.makes()
    return len(reads) == 1 and len(makes) > 0 and {storage_of(each) for each in makes} == {storage_of(reads[0])}


def noted(note: Note) -> tuple[notes.Note, ...]:
    """An operation as notes of a tape; a launch is one."""
    if isinstance(note, Started):
        return (note,)
    result, reads = note.result, tuple(note.reads())
    zeroed, function = _TAKES.get(note.function), _of_tensors(note)
    if isinstance(result, Tensor):
        if zeroed is not None and (result.is_contiguous() or (result.is_cuda and not zeroed)):
            return (Taken(result=result, zeroed=zeroed),)
        if is_view(note):
            return (Viewed(function=function, argument=reads[0], result=result),)
        return (Done(function=function, arguments=reads, result=result),)
    several = _several(function)
    if not is_view(note):
        return (Made(function=several, arguments=reads, results=tuple(note.makes())),)
    return tuple(
        Viewed(function=partial(_nth, several, at), argument=reads[0], result=each)
        for at, each in enumerate(note.makes())
    )


def _nth(function: Callable[..., tuple[Tensor, ...]], at: int, given: Tensor) -> Tensor:
    return function(given)[at]


def _of_tensors(note: Asked) -> Callable[..., Any]:
    """An operation as a function of its tensors, in the order of `Asked.reads`; it holds none of those of the note."""
    function, named = note.function, dict(note.named)
    at = tuple(place for place, each in enumerate(note.arguments) if isinstance(each, Tensor))
    if len(at) == len(note.arguments) and not named:
        return function  # type: ignore[no-any-return]
    leaves, shape = tree_flatten((note.arguments, named))
    places = tuple(place for place, each in enumerate(leaves) if isinstance(each, Tensor))
    if len(at) == len(places):
        arguments = [None if isinstance(each, Tensor) else each for each in note.arguments]

        def direct(*given: Tensor) -> Any:
            filled = arguments.copy()
            for place, each in zip(at, given, strict=True):
                filled[place] = each
            return function(*filled, **named)

        return direct
    others = [None if isinstance(each, Tensor) else each for each in leaves]

    def nested(*given: Tensor) -> Any:
        filled = others.copy()
        for place, each in zip(places, given, strict=True):
            filled[place] = each
        arguments, named = tree_unflatten(filled, shape)
        return function(*arguments, **named)

    return nested


def _several(function: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
    """All tensors of an operation's result, which is no single one."""
    return lambda *given: tuple(tensors_in(function(*given)))
