"""Arguments as users write them, made plain: parameters, inputs, and where queries and keys stand.

From: what Python callers give.  To: plain values and tensors, or an error that names the argument.  What depends on a
pattern's declarations (types, shapes, values) is checked later, by `spdsl.runtime.checks`.
"""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from spdsl.analysis.few import ROWS
from spdsl.diagnostics import error
from spdsl.pipeline import Value
from spdsl.runtime.checks import check_tensors
from spdsl.runtime.transforms import refuse_paged
from spdsl.semantics.nodes import Attend, CheckedPattern
from spdsl.semantics.rewrite import free_indices


def plain_values(parameters: Mapping[str, Any]) -> dict[str, Value]:
    """Parameters in plain Python.

    Raises:
        SpatError: a value that is no number, bool or tuple of these (SP332).
    """
    return {name: _number(name, value) for name, value in parameters.items()}


def _number(name: str, value: Any) -> Value:
    """A parameter in plain Python: NumPy's numbers and tensors of one element are taken as their numbers."""
    if isinstance(value, list | tuple):
        items = tuple(_number(name, item) for item in value)
        if not any(isinstance(item, tuple) for item in items):
            return items  # type: ignore[return-value]  # no item is a tuple
    elif isinstance(value, bool | int | float | str | None):
        return value  # type: ignore[return-value]  # texts and None are refused by name later
    elif getattr(value, "shape", None) == () and hasattr(value, "item"):
        return _number(name, value.item())
    raise error(
        "SP332",
        f"`{name}` is a number, a bool or a tuple of these, but {value!r:.80} is a {type(value).__name__}",
        help="pass plain Python values; tensors are inputs, which are given at the call",
    )


def tables_of(pattern: CheckedPattern, given: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The inputs of ``pattern`` in the order of their declarations, as tensors.

    Raises:
        SpatError: an unknown or missing input (SP301, SP302), or one that is no tensor and cannot become one (SP347).
    """
    declared = {table.name: table for table in pattern.tables}
    for name in given:
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            known = f"its inputs are {', '.join(f'`{each}`' for each in declared)}" if declared else "it has none"
            raise error(
                "SP301",
                f"`{pattern.name}` has no input `{name}`",
                help=f"did you mean `{close[0]}`?" if close else known,
            )
    for name, table in declared.items():
        if name not in given:
            help = f"give it as a keyword: `{name}=tensor`"
            raise error("SP302", f"`{pattern.name}` needs the input `{name}`", table.span, help=help)
    return {name: _tensor(name, given[name], device) for name in declared}


def _tensor(name: str, value: Any, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError):
        found = f"`{name}` is a {type(value).__name__}, of which no tensor can be made: {value!r:.80}"
        raise error("SP347", found, help="pass a tensor, an array, or numbers in lists of equal length") from None


def autocast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors in the type that `torch.autocast` asks for.

    Raises:
        SpatError: something that is no tensor (SP341).
    """
    given: dict[str, object] = {"q": q, "k": k, "v": v}
    for name, x in given.items():
        if not isinstance(x, Tensor):
            found = f"`{name}` is a {type(x).__name__}, not a tensor"
            raise error("SP341", found, help="convert it with `torch.as_tensor`")
    if q.device.type != "meta" and torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        return q.to(dtype), k.to(dtype), v.to(dtype)
    return q, k, v


def place(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_start: int | Tensor | None,
    k_start: int | Tensor | None,
    k_len: int | Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, str, int]:
    """Keys that exist, places for each sequence (or None), the shape class, and the position of the first query.

    Raises:
        SpatError: positions that are no ints, or outside of ``k`` (SP303).
    """
    nq, n = q.shape[2], k.shape[2]
    if any(isinstance(each, Tensor) for each in (q_start, k_start, k_len)):
        return k, v, _places(q, n, q_start, k_start, k_len), "batched", 0
    start = 0 if k_start is None else whole("k_start", k_start)
    length = n - start if k_len is None else whole("k_len", k_len)
    if (start, length) != (0, n):
        if start < 0 or length < 0 or start + length > n:
            raise error(
                "SP303",
                f"k_start={start} and k_len={length} reach outside the {n} rows of k",
                help="0 <= k_start and k_start + k_len <= number of keys must hold",
            )
        k, v = k.narrow(2, start, length), v.narrow(2, start, length)
    first = length - nq if q_start is None else whole("q_start", q_start)
    return k, v, None, "square" if first == 0 and nq == length else "offset", first


def place_pages(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Tensor,
    q_start: int | Tensor | None,
    k_start: int | Tensor | None,
    k_len: int | Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values ``[pages, groups, page, d]``, and places of each sequence with its pages after them.

    Raises:
        SpatError: a table that is no ints ``[batch, pages]``, or positions that do not fit (SP303, SP352).
    """
    given: object = pages
    if not isinstance(given, Tensor) or pages.dim() != 2 or pages.shape[0] != q.shape[0] or not pages.shape[1]:
        shown = f"of shape {list(pages.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        found = f"`pages` is {shown}, but there are {q.shape[0]} sequences"
        raise error("SP303", found, help=f"pass the numbers of each sequence's pages, int32 [{q.shape[0]}, pages]")
    if pages.is_floating_point() or pages.is_complex() or pages.dtype == torch.bool:
        raise error("SP303", "`pages` are numbers of pages, int32", help="convert with `.int()`")
    if k_start is not None:
        raise refuse_paged("sequences that begin at `k_start`")
    if torch.is_grad_enabled() and any(each.requires_grad for each in (q, k, v)):
        raise refuse_paged("gradients")
    table = pages.to(device=q.device, dtype=torch.int32)
    head = _places(q, pages.shape[1] * k.shape[1], q_start, None, k_len)
    return k.transpose(1, 2), v.transpose(1, 2), torch.cat((head, table), dim=1)


def checked_pages(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Tensor,
    given: tuple[int | Tensor | None, int | Tensor | None, int | Tensor | None],
    *,
    any_type: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `place_pages`, of tensors that have not been looked at; ``given`` are q_start, k_start and k_len.

    Raises:
        SpatError: tensors that do not fit (SP340 to SP345), or what `place_pages` refuses.
    """
    for name, x in (("k", k), ("v", v)):
        if x.dim() != 4:
            raise error("SP340", f"`{name}` has {x.dim()} dimensions", help="pages are [pages, page, heads, dim]")
    check_tensors(q, k.transpose(1, 2), v.transpose(1, 2), any_type=any_type, paged=True)
    return place_pages(q, k, v, pages, *given)


def gathered(x: Tensor, places: Tensor, first: int) -> Tensor:
    """Keys ``[batch, groups, n, d]`` of sequences whose pages of ``x`` are those of ``places`` from ``first`` on."""
    found: Tensor = x[places[:, first:].long().clamp(0, x.shape[0] - 1)].transpose(1, 2).flatten(2, 3)
    return found


def first_query(attend: Attend, nq: int, n: int) -> int:
    """The position of the first query where nothing says where the queries stand: they are the last positions.

    Raises:
        SpatError: there are more queries than keys, and the pattern asks where they stand (SP304).
    """
    if nq <= n:
        return n - nq
    clauses = [clause for clause in (attend.keep, attend.bias, attend.sink_logit) if clause is not None]
    if any("q" in free_indices(clause) for clause in clauses):
        raise error(
            "SP304",
            f"there are {nq} queries but {n} keys, so the queries cannot be the last positions",
            help="say where the first query stands: `q_start=0`",
        )
    return 0


def whole(name: str, value: object) -> int:
    """``value`` if it is an int, of Python or NumPy.

    Raises:
        SpatError: it is not (SP303).
    """
    # Ints first: this is traced by torch.compile, which does not know the abstract kinds of numbers.
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise error("SP303", f"`{name}` is {value!r:.80}, but must be an int", help="pass an int")
    return int(value)


Weights: TypeAlias = tuple[int, int, int]


def _places(
    q: Tensor, n: int, q_start: int | Tensor | None, k_start: int | Tensor | None, k_len: int | Tensor | None
) -> Tensor:
    """int32 ``[batch, 3]``: first query, first key, and number of keys of each sequence."""
    if torch.compiler.is_compiling():
        starts = _column(0 if k_start is None else k_start, q)
        lengths = n - starts if k_len is None else _column(k_len, q)
        firsts = lengths - q.shape[2] if q_start is None else _column(q_start, q)
        return torch.stack((firsts, starts, lengths), dim=1)
    # All three are sums of what is given, each with a weight.  One launch for each keeps steps of decoding short, in
    # which the host has more to do than the device.
    length: Weights = (1, 0, 1) if q_start is None else (0, 0, 1)
    start: Weights = (0, 1, 0) if k_len is not None else (-length[0], 1, -1)
    last = (q_start, (1, 0, 0)) if q_start is not None else (-q.shape[2], (1, 0, 0))
    numbers: list[tuple[int | Tensor, Weights]] = [last, (n if k_len is None else k_len, length)]
    numbers += [] if k_start is None else [(k_start, start)]
    found: Tensor | None = None
    for value, weights in sorted(numbers, key=lambda each: isinstance(each[0], Tensor)):
        vector = _vector(weights, q.device)
        if isinstance(value, Tensor):
            column = _column(value, q)
            found = torch.outer(column, vector) if found is None else torch.addr(found, column, vector)
        else:
            number = whole("q_start, k_start or k_len", value)
            if found is None:
                a, b, c = (number * weight for weight in weights)
                # The numbers of queries in a step are few enough to be kept.
                found = _vector((a, b, c), q.device) if abs(number) <= ROWS[-1] else vector * number
            else:
                found = torch.add(found, vector, alpha=number)
    assert found is not None
    return found if found.dim() == 2 else found.expand(q.shape[0], 3).contiguous()


_vectors: dict[tuple[Weights, torch.device], Tensor] = {}


def _vector(weights: Weights, device: torch.device) -> Tensor:
    """Weights on a device, which are never given back: captured graphs read them."""
    found = _vectors.get((weights, device))
    if found is None:
        # What is made in inference mode could not be used outside of it, and what is captured is not there yet.
        with torch.inference_mode(False):
            found = torch.stack([torch.full((), weight, dtype=torch.int32, device=device) for weight in weights])
        if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            _vectors[weights, device] = found
    return found


def _column(value: int | Tensor, q: Tensor) -> Tensor:
    batch = q.shape[0]
    if isinstance(value, Tensor):
        if value.shape != (batch,):
            raise error(
                "SP303",
                f"q_start, k_start and k_len must be ints or have shape [{batch}], not {list(value.shape)}",
                help="give one number for each sequence of the batch",
            )
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            found = str(value.dtype).removeprefix("torch.")
            raise error("SP303", f"q_start, k_start and k_len are ints, not {found}", help="convert with `.int()`")
        return value.to(device=q.device, dtype=torch.int32)
    number = whole("q_start, k_start or k_len", value)
    return torch.full((batch,), number, dtype=torch.int32, device=q.device)
