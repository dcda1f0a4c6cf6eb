"""What Python users call: `load`, `loads`, `names`, `compile`, `Pattern` and `Attention`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spdsl import foresight as _foresight  # noqa: F401  # what it begins takes longer than the other imports
from spdsl import prepare as _prepare  # installs the planner of the operators
from spdsl import reference, staged
from spdsl.arguments import (
    autocast,
    checked_pages,
    first_query,
    gathered,
    place,
    place_pages,
    plain_values,
    tables_of,
)
from spdsl.choices import mode
from spdsl.diagnostics import SpatError, error
from spdsl.library import names
from spdsl.loading import Pattern, load, loads
from spdsl.pipeline import Value, bound, key_of, listed_key, opened
from spdsl.reuse import given_as_lists, written_out
from spdsl.runtime import operator
from spdsl.runtime.checks import check_inputs, check_tensors
from spdsl.runtime.deferred import raise_pending
from spdsl.runtime.direct import Direct
from spdsl.runtime.evaluate import with_batch
from spdsl.runtime.requests import PAGED
from spdsl.runtime.shortened import shortened
from spdsl.runtime.transforms import refuse_paged, refuse_transforms
from spdsl.semantics.nodes import BoundPattern

if TYPE_CHECKING:
    from spdsl.explain import Report
    from spdsl.selecting import GraphReport

__all__ = ["Attention", "Pattern", "SpatError", "compile", "load", "loads", "names", "raise_pending"]


class Attention:
    """A pattern with its parameters: a function of q, k and v.

    Made by `compile`.  Kernels are planned and written at the first call of a new shape class; lengths do not matter.
    """

    def __init__(
        self,
        pattern: Pattern,
        parameters: Mapping[str, Value],
        *,
        layer: int | None = None,
        backend: str | None = None,
        deterministic: bool | None = None,
        lists: tuple[str, ...] = (),
    ) -> None:
        """As `compile`; ``lists`` names inputs that are given as lists (see `spdsl.reuse`)."""
        self.pattern = pattern
        self.parameters = dict(parameters)
        self.layer = layer
        self.backend = backend
        self.deterministic = deterministic
        self._key = key_of(pattern.checked, self.parameters, layer, backend, bool(deterministic))
        if lists:
            self._key = listed_key(self._key, lists)
        bound(self._key, 1, 1, 64)
        # What the operators are given: one key for all values of the free parameters.
        self._open_key, self._values = opened(self._key)
        self._direct = Direct(self._open_key, self._values, pattern.inputs)
        # Inputs that are given as lists, and the same pattern for calls that do so.
        self._lists = lists
        self._listed: dict[tuple[str, ...], Attention] = {}
        self._merged: set[tuple[int, int, int]] = set()

    def __repr__(self) -> str:
        settings = {"layer": self.layer, "backend": self.backend}
        given = self.parameters | {name: value for name, value in settings.items() if value is not None}
        return f"<attention {self.pattern.name}({', '.join(f'{name}={value!r}' for name, value in given.items())})>"

    def _repr_html_(self) -> str:
        """What notebooks show: a picture of the mask, and the text."""
        from spdsl.showing import html

        return html(self.pattern, self.parameters, layer=self.layer)

    def __call__(
        self,
        /,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        return_lse: bool = False,
        q_start: int | Tensor | None = None,
        k_start: int | Tensor | None = None,
        k_len: int | Tensor | None = None,
        pages: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of ``q`` over ``k`` and ``v`` restricted to the pattern.

        Args:
            q: ``[batch, heads, nq, d]``; bfloat16, float16 or float32, any strides.
            k: ``[batch, groups, n, d]`` with ``heads`` a multiple of ``groups``.
            v: ``[batch, groups, n, dv]``.
            return_lse: also return the log-sum-exp of the logits.
            q_start: position of the first query; the queries are the last ``nq`` positions by default.  An int, or
                int32 ``[batch]``.
            k_start: row of ``k`` and ``v`` that is position 0 (padding on the left).
            k_len: number of existing keys from ``k_start`` on (padding on the right, caches).
            pages: int32 ``[batch, pages]``: keys lie in pages.  ``k`` is then ``[pages, page, groups, d]`` and ``v``
                ``[pages, page, groups, dv]``; the keys of a sequence are the rows of the pages that its row names, the
                first ``k_len`` of them.  Without gradients.
            inputs: the declared inputs; each may have one extra leading axis of size 1 or batch.

        Returns:
            ``[batch, heads, nq, dv]`` in the type of ``q``; with ``return_lse`` also float32 ``[batch, heads, nq]``,
            natural log.  A query that keeps nothing gives zeros and −inf.

        Raises:
            SpatError: shapes, types, devices or values that do not fit (SP3xx), or a pattern that cannot be run
            (SP4xx).
        """
        traced = torch.compiler.is_compiling()
        if not traced:
            known = self._known(q, k, v, pages, (q_start, k_start, k_len), inputs)
            if known is not None and (known[1] is not None or not return_lse):
                return known if return_lse else known[0]
        q, k, v = autocast(q, k, v)
        if pages is not None:
            return self._paged(q, k, v, pages, (q_start, k_start, k_len), inputs, return_lse=return_lse)
        check_tensors(q, k, v)
        given = tables_of(self.pattern.checked, inputs, q.device)
        refuse_transforms((q, k, v, *given.values()))
        lists = () if traced else given_as_lists(self.pattern.checked.tables, given)
        if set(lists) - set(self._lists):
            places_given: dict[str, Any] = {"q_start": q_start, "k_start": k_start, "k_len": k_len, "pages": pages}
            return self._of_lists(lists)(q, k, v, return_lse=return_lse, **places_given, **given)
        if not traced and mode() == "first":
            from spdsl.tuning import on_first_use

            on_first_use(self._key, q, k, v, given)
        if q_start is None and k_start is None and k_len is None and q.shape[2] > k.shape[2]:
            q_start = first_query(self.pattern.checked.attend, q.shape[2], k.shape[2])
        rows = k.shape[2]
        k, v, places, shape, start = place(q, k, v, q_start, k_start, k_len)
        given = self._shortened(given, q, k, rows)
        if self.pattern.checked.graph is not None:
            return self._staged(q, k, v, given, places, start, return_lse=return_lse)
        tables = list(given.values())
        operator.foresee_gradients(q, k, v, tables, self._open_key, shape, self._values)
        if traced:
            out, lse = operator.attend(q, k, v, tables, places, self._open_key, shape, start, self._values)
        else:
            out, lse = self._direct.attend(q, k, v, tables, places, shape, start)
        return (out, lse) if return_lse else out

    def _known(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pages: Tensor | None,
        given: tuple[int | Tensor | None, int | Tensor | None, int | Tensor | None],
        inputs: Mapping[str, Any],
    ) -> tuple[Tensor, Any] | None:
        """The results of a call of a kind that is known."""
        if pages is None and all(each is None for each in given):
            return self._direct.recall(q, k, v, inputs)
        tensors: tuple[object, ...] = (q, k, v)
        if self._direct.is_new or any(not isinstance(each, Tensor) or each.dim() != 4 for each in tensors):
            return None
        if pages is not None:
            k, v, places = place_pages(q, k, v, pages, *given)
            return self._direct.recall(q, k, v, inputs, places, 0)
        k, v, found, _, start = place(q, k, v, *given)
        # Inputs of a part of the keys may be cut first.
        return None if inputs and found is None else self._direct.recall(q, k, v, inputs, found, start)

    def _paged(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pages: Tensor,
        given: tuple[int | Tensor | None, int | Tensor | None, int | Tensor | None],
        inputs: Mapping[str, Any],
        *,
        return_lse: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """A call whose keys lie in pages."""
        if self.pattern.checked.graph is not None:
            raise refuse_paged("stages by queries and keys")
        k, v, places = checked_pages(q, k, v, pages, given)
        tables = list(tables_of(self.pattern.checked, inputs, q.device).values())
        refuse_transforms((q, k, v, *tables))
        if torch.compiler.is_compiling():
            out, lse = operator.attend(q, k, v, tables, places, self._open_key, PAGED, 0, self._values)
        else:
            out, lse = self._direct.attend(q, k, v, tables, places, PAGED, 0)
        return (out, lse) if return_lse else out

    def _of_lists(self, names: tuple[str, ...]) -> Attention:
        """The same for calls that give these inputs as lists."""
        if names not in self._listed:
            settings: dict[str, Any] = {
                "layer": self.layer,
                "backend": self.backend,
                "deterministic": self.deterministic,
            }
            self._listed[names] = Attention(self.pattern, self.parameters, lists=names, **settings)
        return self._listed[names]

    def _staged(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        given: Mapping[str, Tensor],
        places: Tensor | None,
        start: int,
        *,
        return_lse: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """A call of a pattern with stages."""
        if return_lse:
            reference.refuse_no_lse(self.pattern.checked)
        if torch.compiler.is_compiling():
            out, lse = staged.attend_staged(q, k, v, list(given.values()), places, self._open_key, start)
        else:
            sizes = q.shape[1], k.shape[1], q.shape[3]
            if sizes not in self._merged:
                self.bind(*sizes)  # refuses what must not be merged
                self._merged.add(sizes)
            out, lse = staged.attend_again(self._direct, q, k, v, given, places, self._open_key, start)
        return (out, lse) if return_lse else out

    def _shortened(self, given: dict[str, Tensor], q: Tensor, k: Tensor, rows: int) -> dict[str, Tensor]:
        """The inputs of a call that uses the keys ``k`` of so many ``rows``."""
        if k.shape[2] == rows or not given:
            return given
        tables = bound(self._key, q.shape[1], k.shape[1], q.shape[3]).tables
        return {table.name: shortened(table, given[table.name], rows, k.shape[2]) for table in tables}

    def reference(
        self,
        /,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        return_lse: bool = False,
        q_start: int | Tensor | None = None,
        k_start: int | Tensor | None = None,
        k_len: int | Tensor | None = None,
        pages: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The meaning of a call: dense, in float64, differentiable by autograd.  Arguments and result as in a call."""
        if pages is not None:
            k, v, found = checked_pages(q, k, v, pages, (q_start, k_start, k_len), any_type=True)
            q_start, _, k_len = found[:, :3].unbind(1)
            k, v = gathered(k, found, 3), gathered(v, found, 3)
        check_tensors(q, k, v, any_type=True)
        if q_start is None and k_start is None and k_len is None and q.shape[2] > k.shape[2]:
            q_start = first_query(self.pattern.checked.attend, q.shape[2], k.shape[2])
        pattern = self.bind(q.shape[1], k.shape[1], q.shape[3])
        if return_lse:
            reference.refuse_no_lse(pattern)
        tables = tables_of(self.pattern.checked, inputs, q.device)
        tables = written_out(pattern, tables, q, k)
        rows = k.shape[2]
        kept_k, kept_v, places, _, start = place(q, k, v, q_start, k_start, k_len)
        if places is None:
            tables = self._shortened(tables, q, kept_k, rows)
            k, v, q_start, k_start, k_len = kept_k, kept_v, start, None, None
        given = {table.name: with_batch(table, tables[table.name]) for table in pattern.tables}
        check_inputs(pattern.tables, given, q, k, v, start, any_type=True)
        out, lse = reference.attend(pattern, q, k, v, tables=tables, q_start=q_start, k_start=k_start, k_len=k_len)
        return (out, lse) if return_lse and lse is not None else out

    def exports(
        self,
        /,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        q_start: int | None = None,
        compact: bool = False,
        **inputs: Any,
    ) -> dict[str, Tensor]:
        """What the pattern exports, by name: ``[batch, axis, …]`` in the order of heads, queries, keys.

        Floats are float32 and differentiable in tensors and inputs; they are 0 where a value is absent.  With
        ``compact`` sets of pairs are lists: int32, in place of the last axis the keys of each row, ascending, and then
        2³¹ − 1.  Inputs that are sets take them.

        Raises:
            SpatError: as a call with these tensors would.
        """
        pattern = self.bind(q.shape[1], k.shape[1], q.shape[3])
        if pattern.graph is None:
            return {}
        check_tensors(q, k, v)
        given = tables_of(self.pattern.checked, inputs, q.device)
        given = written_out(pattern, given, q, k)
        k, v, _, _, start = place(q, k, v, q_start, None, None)
        from spdsl.runtime import graphs

        call = graphs.Inputs(q=q, k=k, v=v, tables=given, q_start=start)
        with operator.no_autocast(q.device.type):
            return graphs.exports(pattern, call, compact=compact)

    def bind(self, heads: int, groups: int, head_dim: int) -> BoundPattern:
        """The pattern as the compiler sees it for these sizes.

        Raises:
            SpatError: parameters that do not fit these sizes (SP3xx), or merged softmaxes that share pairs (SP415).
        """
        found = bound(self._key, heads, groups, head_dim)
        if found.graph is not None:
            from spdsl.merging import refuse_overlap

            refuse_overlap(found)
        return found

    def kernels(self, q: Tensor, k: Tensor, v: Tensor) -> dict[str, str]:
        """The sources that are generated for tensors like these, by file name."""
        from spdsl.kernels import sources

        return sources(self._key, q, k, v)

    def explain(self, /, q: Tensor, k: Tensor, v: Tensor, **inputs: Any) -> str:
        """How a call with tensors like these is computed: walks, tiles touched and full, pairs kept over pairs
        computed.

        Raises:
            SpatError: as a call with these tensors would.
        """
        return self.report(q, k, v, **inputs).text()

    def report(self, /, q: Tensor, k: Tensor, v: Tensor, **inputs: Any) -> Report | GraphReport:
        """What `explain` tells, in numbers.

        Raises:
            SpatError: as a call with these tensors would.
        """
        given = tables_of(self.pattern.checked, inputs, q.device)
        lists = given_as_lists(self.pattern.checked.tables, given)
        if set(lists) - set(self._lists):
            return self._of_lists(lists).report(q, k, v, **inputs)
        if self.pattern.checked.graph is not None:
            from spdsl.selecting import explain_stages

            return explain_stages(self._key, q, k, v, given)
        from spdsl.explain import explain

        return explain(self._key, q, k, v, given)


def compile(
    pattern: str | Path | Pattern,
    *,
    layer: int | None = None,
    backend: str | None = None,
    deterministic: bool | None = None,
    **parameters: Any,
) -> Attention:
    """Make attention from a pattern: a library name, a path to a `.spat` file, or a `Pattern`.

    Args:
        pattern: the name, path or `Pattern`.
        layer: the value of `layer`, for patterns that use it.
        backend: ``cpu`` or ``triton``; by default the best for the tensors of a call.
        deterministic: ask for gradients that repeat bitwise.  By default the fastest kernels run, and on Hopper one of
            them sums the gradient of q in no fixed order; ``torch.use_deterministic_algorithms(True)`` asks for the
            same.  Outputs always repeat bitwise.
        parameters: the pattern's parameters by name.

    Raises:
        SpatError: an unknown pattern or parameter, or a value that does not fit.
    """
    made = pattern if isinstance(pattern, Pattern) else load(pattern)
    if backend is not None and backend not in _prepare.BACKENDS:
        raise error("SP311", f"there is no back end `{backend}`", help=f"use one of {', '.join(_prepare.BACKENDS)}")
    return Attention(made, plain_values(parameters), layer=layer, backend=backend, deterministic=deterministic)
