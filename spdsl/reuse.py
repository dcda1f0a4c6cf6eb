"""Sets of pairs that outlive a call, as lists: the keys of each row, ascending, and then 2³¹ − 1.

An export that is a set can be had in this form, and an input that is a set of pairs can be given in it.  From: declared
tables and tensors.  To: which of them are lists, and these as bools for the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from spdsl.diagnostics import error
from spdsl.runtime.lines import sizes_of_keys
from spdsl.runtime.ranking import FAR
from spdsl.semantics.nodes import BoundPattern, Table


def takes_lists(table: Table) -> bool:
    """Whether an input is a set whose last axis is one of keys."""
    if table.dtype != "bool" or len(table.axes) < 2:
        return False
    last = table.axes[-1]
    return last.kind == "token" or (last.kind == "axis" and last.label.startswith("k."))


def given_as_lists(tables: Sequence[Table], given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The inputs that are sets of pairs and are given as lists, by name.

    Raises:
        SpatError: lists that do not ascend, on the CPU (SP350).
    """
    found = []
    for table in tables:
        value = given[table.name]
        if takes_lists(table) and value.dtype == torch.int32:
            found.append(table.name)
            if value.device.type == "cpu":
                _refuse_unordered(table, value)
    return tuple(found)


def _refuse_unordered(table: Table, lists: Tensor) -> None:
    follow = (lists[..., 1:] > lists[..., :-1]) | (lists[..., 1:] == FAR)
    if not bool(follow.all()) or (lists.numel() and int(lists.min()) < 0):
        raise error(
            "SP350",
            f"a list of `{table.name}` does not ascend from 0 on",
            table.span,
            help=f"give the keys of each row in order, each once, and then {FAR}; or pass bools",
        )


def as_bools(lists: Tensor, size: int) -> Tensor:
    """The set that lists stand for, bool ``[…, size]``."""
    room = torch.zeros(*lists.shape[:-1], size + 1, dtype=torch.bool, device=lists.device)
    return room.scatter_(-1, lists.long().clamp(max=size), True)[..., :size]


def written_out(pattern: BoundPattern, given: dict[str, Tensor], q: Tensor, k: Tensor) -> dict[str, Tensor]:
    """The inputs of a call with these queries and keys, lists among them as bools."""
    names = given_as_lists(pattern.tables, given)
    if not names:
        return given
    sizes = sizes_of_keys(pattern, given, q, k)
    return {name: as_bools(table, sizes[name]) if name in names else table for name, table in given.items()}
