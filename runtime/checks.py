"""What must hold of the tensors of a call: shapes, types and devices always, values as soon as they are known.

On the CPU, and everywhere under ``SPDSL_VERIFY=1``, wrong values raise at once.  On a GPU they set flags; without
waiting for the device, the error is raised later (`spdsl.runtime.deferred`).  Until then memory stays in bounds,
because indices are clamped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from spdsl.diagnostics import SpatError, error
from spdsl.runtime.calls import DTYPES, PLACES, Call
from spdsl.runtime.deferred import check_earlier, defer
from spdsl.runtime.evaluate import evaluate, tables_for
from spdsl.runtime.pairs import pairs_of
from spdsl.runtime.recent import Recent, identity, weakly
from spdsl.runtime.stages import materialise
from spdsl.runtime.values import value_faults
from spdsl.semantics.nodes import Extent, Grid, Index, Load, Table, TableAxis
from spdsl.semantics.rewrite import walk

_TYPES: dict[str, tuple[torch.dtype, ...]] = {
    "bool": (torch.bool,),
    "int": (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8),
    "float": (torch.float32, torch.bfloat16, torch.float16),
}

_checked: Recent[bool] = Recent(size=64)


def check_call(call: Call, *, narrow: bool = False) -> Call:
    """Check the tensors of a call against its pattern, and fill its stages, on which values may depend.

    Values are not checked while a CUDA graph is captured.  ``narrow`` says that kernels compute in 32 bits.

    Raises:
        SpatError: SP340 to SP349 for shapes, types and devices, SP324 for a grid that does not cover the keys,
            SP320, SP350 and SP351 for values, of this call or an earlier one.
    """
    check_earlier()
    pattern = call.plan.problem.pattern
    check_tensors(call.q, call.k, call.v, paged=call.plan.problem.page > 0)
    _check_places(call)
    for table in pattern.tables:
        if not table.made:
            _check_table(table, call)
    for grid in pattern.grids:
        if grid.name is None and grid.of == Index(name="k"):
            _check_grid(grid, call)
    call = materialise(call)
    check_values(call, narrow=narrow)
    return call


def captured(tensor: Tensor) -> bool:
    """Whether a call of this tensor becomes part of a CUDA graph, which is captured without asking for the state of the
    stream and replayed with other values."""
    return tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


# ---------------------------------------------------------------- shapes, types, devices


def check_tensors(q: Tensor, k: Tensor, v: Tensor, *, any_type: bool = False, paged: bool = False) -> None:
    """Check what does not depend on a pattern; ``any_type`` is for the reference, which converts all to float64, and
    ``paged`` says that the first axis of keys and values counts pages.

    Raises:
        SpatError: SP340 to SP345 for shapes, types and devices.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise _wrong(
                "SP341", f"`{name}` is a {type(x).__name__}, not a tensor", "convert it with `torch.as_tensor`"
            )
        if x.dim() != 4:
            raise _wrong("SP340", f"`{name}` has {x.dim()} dimensions", "pass tensors [batch, heads, tokens, dim]")
        if not any_type and x.dtype not in DTYPES.values():
            names = ", ".join(str(each).removeprefix("torch.") for each in DTYPES.values())
            raise _wrong("SP341", f"`{name}` is {_type(x)}", f"use one of {names}")
        if not any_type and x.dtype != q.dtype:
            raise _wrong("SP341", f"`{name}` is {_type(x)}, but `q` is {_type(q)}", "convert them to one type")
        if x.device != q.device:
            raise _wrong("SP342", f"`{name}` is on {x.device}, but `q` is on {q.device}", "move them to one device")
        if x.shape[0] != q.shape[0] and not paged:
            raise _wrong("SP345", f"`{name}` has batch {x.shape[0]}, but `q` has batch {q.shape[0]}", "expand one")
    if k.shape[0] != v.shape[0]:
        raise _wrong("SP340", f"`k` has {k.shape[0]} pages, but `v` has {v.shape[0]}", "give both the same pages")
    if k.shape[1] != v.shape[1]:
        raise _wrong("SP343", f"`k` has {k.shape[1]} heads, but `v` has {v.shape[1]}", "give both the same heads")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise _wrong(
            "SP343",
            f"`q` has {q.shape[1]} heads, which is no multiple of the {k.shape[1]} heads of `k`",
            "each head of `k` serves a group of heads of `q` of equal size",
        )
    if k.shape[3] != q.shape[3]:
        raise _wrong("SP344", f"`k` has head dim {k.shape[3]}, but `q` has {q.shape[3]}", "project them to one size")
    if q.shape[3] == 0 or v.shape[3] == 0:
        raise _wrong("SP344", f"`{'v' if q.shape[3] else 'q'}` has head dim 0", "give each token at least one number")
    if k.shape[2] != v.shape[2]:
        raise _wrong("SP340", f"`k` has {k.shape[2]} tokens, but `v` has {v.shape[2]}", "give both the same tokens")


def _check_table(table: Table, call: Call) -> None:
    check_input(table, call.tables.get(table.name), call.q, call.k, pairs_of(call).extents())


def check_inputs(
    tables: Sequence[Table],
    given: Mapping[str, Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_start: int,
    *,
    any_type: bool = False,
) -> None:
    """Check shapes, types and devices of inputs before stages read them; free axes are as long wherever they stand.

    ``given`` have their batch axis; features ``d`` are those of queries or of values.  ``any_type`` is for the
    reference, which converts all to float64.

    Raises:
        SpatError: SP346 to SP348.
    """
    extents: dict[str, Tensor | int] = {"n": k.shape[2], "nq": q.shape[2], "q_start": q_start, "d": q.shape[3]}
    extents |= {"heads": q.shape[1], "groups": k.shape[1]}
    free: dict[str, tuple[int, Table]] = {}
    for table in tables:
        value = given[table.name]
        check_input(table, value, q, k, extents, any_type=any_type)
        for axis, size in zip(reversed(table.axes), reversed(value.shape), strict=False):
            if axis.kind != "free":
                continue
            if axis.label == "d" and size not in (q.shape[3], v.shape[3]):
                raise error(
                    "SP346",
                    f"`{table.name}` has {size} elements on axis `d`, but vectors have {q.shape[3]} or {v.shape[3]}",
                    table.span,
                    help="pass as many as queries or values have",
                )
            if axis.label == "d":
                continue
            known, first = free.setdefault(axis.label, (size, table))
            if known != size:
                raise error(
                    "SP346",
                    f"`{table.name}` has {size} elements on axis `{axis.label}`, but `{first.name}` has {known}",
                    table.span,
                    help="a free axis is as long wherever its name stands",
                )


def check_input(
    table: Table,
    given: Tensor | None,
    q: Tensor,
    k: Tensor,
    extents: Mapping[str, Tensor | int],
    *,
    any_type: bool = False,
) -> None:
    """Check shape, type and device of an input with its batch axis; it has elements for all rows of keys."""
    written = f"{table.dtype}[{', '.join(axis.label for axis in table.axes)}]" if table.axes else table.dtype
    if given is None:
        raise error("SP346", f"the input `{table.name}` is missing", table.span, help=f"pass a tensor {written}")
    if given.device != q.device:
        raise error(
            "SP348",
            f"`{table.name}` is on {given.device}, but `q` is on {q.device}",
            table.span,
            help=f"move it with `{table.name}.to(q.device)`",
        )
    types = _TYPES["int"][:1] if table.listed else _TYPES[table.dtype]
    if not any_type and given.dtype not in types:
        names = ", ".join(str(each).removeprefix("torch.") for each in types)
        raise error(
            "SP347", f"`{table.name}` is {_type(given)}, but is declared {table.dtype}", table.span, help=f"use {names}"
        )
    named_b = bool(table.axes) and table.axes[0].kind == "b"
    if given.dim() != len(table.axes) + (not named_b):
        raise error(
            "SP346",
            f"`{table.name}` has shape {list(given.shape)}, but is declared {written}",
            table.span,
            help="pass one dimension for each axis, and one more in front for the batch (1 if all sequences share it)",
        )
    batch = q.shape[0]
    if given.shape[0] != batch and (named_b or given.shape[0] != 1):
        raise error(
            "SP346",
            f"`{table.name}` has batch {given.shape[0]}, but `q` has batch {batch}",
            table.span,
            help="pass 1 or as many as there are sequences" if not named_b else "pass one for each sequence",
        )
    sizes = given.shape if named_b else given.shape[1:]
    # Lists are as long as they are.
    axes = table.axes[:-1] if table.listed else table.axes
    for axis, size in zip(axes, sizes, strict=not table.listed):
        _check_size(table, axis, size, q, k, extents)


NUMBERED = 1 << 31
"""From so many on, lists of 32 bits cannot number things."""


def refuse_many(count: int, what: str) -> None:
    """Refuse lists of more than numbers of 32 bits can tell.  Raises `SpatError` (SP510)."""
    if count >= NUMBERED:
        raise error(
            "SP510",
            f"{count:,} {what} are more than lists of 32 bits can number",
            help="call it with fewer sequences or heads at a time, and put the results together",
        )


_THINGS = {"token": "keys", "q": "queries", "h": "heads", "g": "groups", "b": "sequences"}


def _check_size(
    table: Table, axis: TableAxis, size: int, q: Tensor, k: Tensor, extents: Mapping[str, Tensor | int]
) -> None:
    batch, heads, queries, _ = q.shape
    sizes = {"token": int(extents["n"]), "q": queries, "h": heads, "g": k.shape[1], "b": batch}
    wanted = sizes.get(axis.kind)
    if wanted is None:
        unsized = axis.kind == "free" and axis.size in (Extent(name=axis.label), Extent(name="d"))
        if any(isinstance(node, Load) for node in walk(axis.size)) or unsized:
            # The count of a ragged axis is a value; its indices are checked with the values.
            return
        wanted = int(evaluate(axis.size, extents))
    if size == wanted:
        return
    elements, all_of_them = ("element" if count == 1 else "elements" for count in (size, wanted))
    things = _THINGS.get(axis.kind)
    reason = f"but the axis has {wanted}" if things is None else f"but there are {wanted} {things}"
    raise error(
        "SP346",
        f"`{table.name}` has {size} {elements} on axis `{axis.label}`, {reason}",
        axis.span or table.span,
        help=f"pass {wanted} {all_of_them}",
    )


def _check_grid(grid: Grid, call: Call) -> None:
    extents = pairs_of(call).extents()
    sizes = [int(evaluate(size, extents)) for _, size in grid.coordinates]
    covered = torch.Size(sizes).numel()
    keys = call.keys
    if call.places is not None:
        # Lengths on a GPU are not waited for; a coordinate outside the grid is harmless there.
        if call.places.device.type != "cpu":
            return
        keys = next((int(n) for n in call.places[:, 2] if int(n) != covered), covered)
    if covered != keys:
        shown = ", ".join(f"{name}: {size}" for (name, _), size in zip(grid.coordinates, sizes, strict=True))
        raise error(
            "SP324",
            f"the grid ({shown}) has {covered} positions, but there are {keys} keys",
            grid.span,
            help="change its sizes, or name the grid: tokens after a named grid are outside of it",
        )


# ---------------------------------------------------------------- values


def _check_places(call: Call) -> None:
    """Refuse rows that `k` does not have; lengths on a GPU are not waited for."""
    places, rows = call.places, call.keys
    if places is None or not (places.device.type == "cpu" or os.environ.get("SPDSL_VERIFY") == "1"):
        return
    starts, lengths = places[:, 1], places[:, 2]
    wrong = (starts < 0) | (lengths < 0) | (starts + lengths > rows)
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        found = f"k_start={int(starts[at])} and k_len={int(lengths[at])} of sequence {at}"
        raise _wrong(
            "SP303",
            f"{found} reach outside the {rows} rows of k",
            "0 <= k_start and k_start + k_len <= number of keys must hold",
        )
    if call.plan.problem.page:
        used = torch.arange(places.shape[1] - PLACES, device=places.device) * call.plan.problem.page < lengths[:, None]
        named = places[:, PLACES:]
        wrong = used & ((named < 0) | (named >= call.k.shape[0]))
        if bool(wrong.any()):
            at, place = (int(each) for each in wrong.nonzero()[0])
            found = f"`pages` names page {int(named[at, place])} for sequence {at}, but there are {call.k.shape[0]}"
            raise _wrong("SP303", found, "give the numbers of pages of `k` and `v`; those past `k_len` are not read")


def check_values(call: Call, *, narrow: bool) -> bool:
    """Check the values of the tables of a call, unless they have been checked or the call is captured.

    Returns:
        Whether those of another call of its kind have to be checked.

    Raises:
        SpatError: SP320, SP350 and SP351, on a GPU at a later call.
    """
    pattern = call.plan.problem.pattern
    tables = [call.tables[table.name] for table in pattern.tables if not table.made]
    if not tables or captured(call.q):
        return bool(tables)
    same = identity(*tables)
    sizes = (call.q.shape[:3], call.k.shape[1], call.keys, call.q_start, call.places is None, *call.parameters.values())
    key = None if same is None else (id(call.plan.keep), sizes, same)
    if key is not None and key in _checked.entries:
        return True
    faults = tuple(value_faults(call, tables_for(call.plan.tables, call.tables), narrow=narrow))
    if call.q.device.type == "cpu" or os.environ.get("SPDSL_VERIFY") == "1":
        for fault in faults:
            if bool(fault.flag):
                raise fault.error()
        _checked.get(key, (call.plan.keep, weakly(*tables)), lambda: True)
    elif faults:
        defer(faults)
        _checked.get(key, (call.plan.keep, weakly(*tables)), lambda: True)
    # What is asked on the CPU may depend on values.
    return bool(faults) or call.q.device.type == "cpu"


def _wrong(code: str, message: str, help: str) -> SpatError:
    return error(code, message, help=help)


def _type(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
