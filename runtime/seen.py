"""What torch and kernels were asked for while somebody watched: operations and launches, with the tensors of each."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from spdsl.runtime.notes import Started
from spdsl.runtime.plain import Launch

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


Note: TypeAlias = "Asked | Launch | Started"


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


def is_of_host(tensor: Tensor) -> bool:
    """Whether it is a number that the host has written down."""
    return tensor.is_cpu and tensor.numel() == 1


def reads_known(note: Note, storages: set[int]) -> bool:
    """Whether all that a note reads is in these storages, or a number of the host."""
    return all(storage_of(each) in storages or is_of_host(each) for each in read_by(note))


def changing_among(notes: Sequence[Note], inputs: Iterable[Tensor]) -> set[int]:
    """The storages whose numbers depend on the inputs, and those in which anything is written."""
    found = {storage_of(each) for each in inputs}
    found |= {storage_of(each) for note in notes for each in written_by(note)}
    before = 0
    while len(found) > before:
        before = len(found)
        for note in notes:
            if isinstance(note, Asked) and is_among(note, found):
                found |= {storage_of(each) for each in note.makes()}
    return found


def known_among(notes: Iterable[Note], first: Iterable[Tensor]) -> set[int]:
    """The storages of which it was seen what they are made of: ``first``, numbers of the host, and what these give."""
    found = {storage_of(each) for each in first}
    for note in notes:
        if reads_known(note, found):
            found |= {storage_of(each) for each in made_by(note)}
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
