"""Patterns with stages as torch operators, for `torch.compile` and `torch.export`: `spdsl::attend_staged`.

What is chosen is not known while a graph is traced, so the compiler sees one operator for a call.  Such a call keeps
nothing but its tensors: its backward carries the call out again, as a checkpoint of activations does.  Calls outside of
a graph do not come here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from spdsl import prepare
from spdsl.diagnostics import placed
from spdsl.pipeline import bound, lives_of, order_of, softmax_key
from spdsl.runtime.checks import check_inputs
from spdsl.runtime.direct import Direct, plain
from spdsl.runtime.evaluate import with_batch
from spdsl.runtime.notices import is_watched
from spdsl.runtime.operator import no_autocast
from spdsl.runtime.settled import is_settled, settled
from spdsl.runtime.tile_order import in_tiles, out_of_tiles, tables_in_tiles
from spdsl.runtime.transforms import second_derivative
from spdsl.semantics.nodes import Table
from spdsl.semantics.tilewise import Tilewise

_AUTOGRAD = ("AutogradCPU", "AutogradCUDA", "AutogradOther", "ADInplaceOrView")


def attend(
    q: Tensor, k: Tensor, v: Tensor, tables: Mapping[str, Tensor], places: Tensor | None, key: str, start: int
) -> tuple[Tensor, Tensor | None]:
    """Output ``[batch, heads, nq, dv]``, and LSE ``[batch, heads, nq]`` unless arithmetic follows the softmax.

    Args:
        q: ``[batch, heads, nq, d]``.
        k: ``[batch, groups, n, d]``.
        v: ``[batch, groups, n, dv]``.
        tables: the inputs of the pattern.
        places: None, or int32 ``[batch, 3]``: q_start, k_start, k_len.
        key: the key of a pattern with stages, its parameters given.
        start: the position of the first query.
    """
    from spdsl.runtime import graphs  # loads torch's compiler, in a second or two

    key, (q, k, v), tables, order = in_order(key, q, k, v, tables, places, start)
    if order is not None:
        out, lse = attend(q, k, v, tables, None, key, start)
        return out_of_tiles(out, 2, order), None if lse is None else out_of_tiles(lse, 2, order)
    kernels = prepare.choose_backend(json.loads(key)["backend"], q.device) == "triton"
    place = bound(key, q.shape[1], k.shape[1], q.shape[3]).span
    with placed("SP510", place), no_autocast(q.device.type):
        key, tables = with_lifetimes(key, q, k, v, tables, places, start)
        made = bound(key, q.shape[1], k.shape[1], q.shape[3])
        return graphs.attend_anywhere(made, q, k, v, tables, places, start, partial(softmax_key, key), kernels)


def in_order(
    key: str, q: Tensor, k: Tensor, v: Tensor, tables: Mapping[str, Tensor], places: Tensor | None, start: int
) -> tuple[str, tuple[Tensor, Tensor, Tensor], Mapping[str, Tensor], Tilewise | None]:
    """The key, tensors and inputs of the same call over tokens in the order of their tiles, and that order.

    All as they are, and None, where more of a position counts than its tile, or queries are not all of the tokens.
    """
    sizes = q.shape[1], k.shape[1], q.shape[3]
    found = order_of(key, *sizes)
    if found is None or places is not None or start != 0 or not q.shape[2] == k.shape[2] == found[1].tokens:
        return key, (q, k, v), tables, None
    own, order = found
    pattern = bound(key, *sizes)
    check_inputs(
        pattern.tables, {each.name: with_batch(each, tables[each.name]) for each in pattern.tables}, q, k, v, start
    )
    moved = in_tiles(q, 2, order), in_tiles(k, 2, order), in_tiles(v, 2, order)
    return own, moved, tables_in_tiles(tables, pattern.tables, order), order


def with_lifetimes(
    key: str, q: Tensor, k: Tensor, v: Tensor, tables: Mapping[str, Tensor], places: Tensor | None, start: int
) -> tuple[str, Mapping[str, Tensor]]:
    """The key and the inputs of the same call by the lifetimes of keys, where these are all that a selection says.

    As they are where keys have none, or queries are not all of the tokens.
    """
    sizes = q.shape[1], k.shape[1], q.shape[3]
    found = lives_of(key, *sizes)
    if found is None or places is not None or start != 0 or q.shape[2] != k.shape[2]:
        return key, tables
    from spdsl.runtime import graphs
    from spdsl.runtime.lives import lives

    own, how = found
    call = graphs.Inputs(q=q, k=k, v=v, tables=tables, q_start=0)
    with torch.no_grad():
        until, alive = lives(graphs.numbers(bound(key, *sizes), call, how.value, (*how.heads, "k")), how.most)
    return own, {**tables, how.until: until, how.alive: alive}


def attend_again(
    calls: Direct,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Mapping[str, Tensor],
    places: Tensor | None,
    key: str,
    start: int,
) -> tuple[Tensor, Tensor | None]:
    """As `attend`, or as one of the ``calls`` before: by kernels, where no value of an input is checked but of those
    that say what tokens are, which have one content in all calls of a kind.

    Values of lists are checked on the CPU alone, by who finds that they are lists.
    """
    pattern = bound(key, q.shape[1], k.shape[1], q.shape[3])
    unchecked = all(_is_unchecked(table) or is_settled(table) for table in pattern.tables)
    by_kernels = prepare.choose_backend(json.loads(key)["backend"], q.device) == "triton"
    ours = by_kernels and plain((q, *tables.values())) and not is_watched()
    if places is not None or not unchecked or not ours:
        return attend(q, k, v, tables, places, key, start)
    own = settled(pattern, tables)
    if own is None:
        return attend(q, k, v, tables, places, key, start)
    names = tuple(name for name in tables if name not in own.tables)

    def make(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        q, k, v, *inputs = tensors
        own.trust()
        return attend(q, k, v, {**dict(zip(names, inputs, strict=True)), **own.tables}, None, key, start)

    beside = own if own.tables else None
    return calls.whole(make, (q, k, v, *(tables[name] for name in names)), start, beside)


def _is_unchecked(table: Table) -> bool:
    """Whether nothing is asked about the values of an input."""
    return table.listed or table.dtype == "bool" or (table.dtype == "float" and table.bounds is None)


def _named(key: str, tables: Sequence[Tensor]) -> dict[str, Tensor]:
    pattern = bound(key, 1, 1, 64)
    return {table.name: given for table, given in zip(pattern.tables, tables, strict=True)}


@torch.library.custom_op("spdsl::attend_staged", mutates_args=())
def attend_staged(
    q: Tensor, k: Tensor, v: Tensor, tables: Sequence[Tensor], places: Tensor | None, key: str, start: int
) -> tuple[Tensor, Tensor]:
    """As `attend`; where there is no LSE, nothing may be read of the second."""
    out, lse = attend(q, k, v, _named(key, tables), places, key, start)
    # Results may not be memory of the inputs.
    return out.clone(), out.new_zeros(out.shape[:3], dtype=torch.float32) if lse is None else lse.clone()


@attend_staged.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, tables: Sequence[Tensor], places: Tensor | None, key: str, start: int
) -> tuple[Tensor, Tensor]:
    return q.new_empty((*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("spdsl::attend_staged_backward", mutates_args=())
def attend_staged_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor],
    places: Tensor | None,
    d_out: Tensor,
    d_lse: Tensor | None,
    key: str,
    start: int,
    wanted: Sequence[int],
) -> list[Tensor]:
    """The gradients asked for: 0, 1, 2 are q, k, v and 3 + i is table i, in this order."""
    with _recording():
        tensors = [each.detach() for each in (q, k, v, *tables)]
        leaves = [tensors[number].requires_grad_() for number in wanted]
        given = _named(key, tensors[3:])
        out, lse = attend(tensors[0], tensors[1], tensors[2], given, places, key, start)
        results, gradients = [out], [d_out]
        if lse is not None and d_lse is not None:
            results, gradients = [out, lse], [d_out, d_lse]
        found: tuple[Tensor | None, ...] = torch.autograd.grad(results, leaves, gradients, allow_unused=True)
    return [torch.zeros_like(leaf) if each is None else each for leaf, each in zip(leaves, found, strict=True)]


@attend_staged_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor],
    places: Tensor | None,
    d_out: Tensor,
    d_lse: Tensor | None,
    key: str,
    start: int,
    wanted: Sequence[int],
) -> list[Tensor]:
    tensors = [q, k, v, *tables]
    return [torch.empty_like(tensors[each]) for each in wanted]


@contextmanager
def _recording() -> Iterator[None]:
    """While this lasts, autograd records, which it does not inside of an operator."""
    # torch has no public names for these.
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()  # noqa: SLF001
    for name in _AUTOGRAD:
        excluded = excluded.remove(getattr(torch._C.DispatchKey, name))  # noqa: SLF001
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():  # noqa: SLF001
        yield


def _setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:  # type: ignore[type-arg]
    q, k, v, tables, places, key, start = inputs
    ctx.save_for_backward(q, k, v, *([] if places is None else [places]), *tables)
    ctx.has_places, ctx.settings = places is not None, (key, start)  # type: ignore[attr-defined]
    ctx.set_materialize_grads(False)


def _backward(ctx, d_out: Tensor | None, d_lse: Tensor | None):  # type: ignore[no-untyped-def]
    q, k, v, *rest = ctx.saved_tensors
    places = rest.pop(0) if ctx.has_places else None
    needs = ctx.needs_input_grad
    of_tables = list(needs[3]) if isinstance(needs[3], (list, tuple)) else [bool(needs[3])] * len(rest)
    wanted = [position for position, need in enumerate([*needs[:3], *of_tables]) if need]
    if not wanted or (d_out is None and d_lse is None):
        return None, None, None, [None] * len(rest), None, None, None
    if d_out is None:
        d_out = q.new_zeros((*q.shape[:3], v.shape[3]))
    found = attend_staged_backward(q, k, v, rest, places, d_out, d_lse, *ctx.settings, wanted)
    by = dict(zip(wanted, found, strict=True))
    return by.get(0), by.get(1), by.get(2), [by.get(3 + i) for i in range(len(rest))], None, None, None


def _refuse(ctx, *gradients):  # type: ignore[no-untyped-def]
    raise second_derivative()


attend_staged.register_autograd(_backward, setup_context=_setup)
attend_staged_backward.register_autograd(_refuse)
