"""The arithmetic on what softmaxes return, by a kernel of its own, and its gradients by another.

From: the expression that a pattern returns, and the tensors that it reads.  To: the output in the type of the call, or
None where torch computes it.  Nothing is kept for the gradients but what is read, which attention keeps anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.codegen.load import load
from spdsl.codegen.returned import ROWS, Read, Returned, emit_returned, returned
from spdsl.runtime.arrays import Arrays
from spdsl.runtime.lines import Lines
from spdsl.runtime.memo import Memo
from spdsl.runtime.plain import start_given
from spdsl.runtime.run_means import of_runs
from spdsl.runtime.runs import Runs
from spdsl.runtime.transforms import second_derivative
from spdsl.semantics.free_sums import FEATURES, written_out
from spdsl.semantics.graph import Pool, Stage, is_free
from spdsl.semantics.nodes import Axis, BoundPattern, Const, Expr, Index

_MOST = 512
"""Results whose kernels are remembered."""

_known: dict[tuple[int, tuple[int, ...]], tuple[Expr, Returned | str, Any]] = {}


def by_kernel(arrays: Arrays, result: Expr, dtype: torch.dtype) -> Tensor | None:
    """``result`` over heads, queries and features, after all softmaxes have run; None where torch has to compute it."""
    plan, module = _plan(arrays, result)
    if isinstance(plan, str) or arrays.lines.q_start < 0:
        return None
    if arrays.lines.q_start and any(read.every > 1 for read in plan.reads):
        return None  # blocks are counted from position 0
    if arrays.lines.nq > arrays.lines.n and any(read.every > 1 for read in plan.reads):
        return None  # there are as many blocks as keys have
    runs = {read.runs for read in plan.reads if read.runs}
    if runs and arrays.lines.q_start + arrays.lines.nq > arrays.lines.n:
        return None  # a table has a run for each token
    tables = tuple(dict.fromkeys(read.table for read in plan.reads))
    every = {**arrays.tensors, **arrays.attended}
    # What there is for each query, such as the shares of members, is made for all at once, as torch would have it.
    others = [name for name in tables if name in arrays.stages and name not in every]
    every |= {name: arrays.array(name, None, Memo()) for name in others}
    if not all(name in every for name in tables):
        return None
    lines, tensors = arrays.lines, [every[name] for name in tables]
    widths = {every[read.table].shape[1 + read.places.index("d")] for read in plan.reads if read.wide}
    if len(widths) != 1:
        return None
    call = _Call(
        plan=plan,
        module=module,
        tables=tables,
        shape=(lines.batch, lines.heads, lines.nq, widths.pop()),
        n=lines.n,
        q_start=lines.q_start,
        dtype=dtype,
        runs={name: _runs(lines, name) for name in runs},
    )
    return _Arithmetic.apply(call, *tensors)  # type: ignore[no-any-return, no-untyped-call]


def _plan(arrays: Arrays, result: Expr) -> tuple[Returned | str, Any]:
    sizes = tuple(arrays.lines.size(each.over) for each in arrays.stages.values() if _is_of_members(each))
    # By identity: hashing an expression takes longer than a launch.  The entry keeps it alive.
    key = id(result), sizes
    if key not in _known:
        if len(_known) >= _MOST:
            _known.clear()
        pattern = arrays.lines.pattern
        labels = {table.name: arrays.lines.labels(table.name) for table in pattern.tables}
        labels |= {name: stage.axes for name, stage in arrays.stages.items()}
        ratio = pattern.heads // pattern.groups
        plan = returned(written_out(result, arrays.stages, arrays.lines.size), labels, _blocks(pattern), ratio)
        module = None if isinstance(plan, str) else load(emit_returned(plan, pattern.name))
        _known[key] = result, plan, module
    return _known[key][1:]


def _is_of_members(stage: Stage) -> TypeGuard[Pool]:
    """Whether a stage is a sum over a free axis that may be written out."""
    return isinstance(stage, Pool) and stage.kind == "sum" and is_free(stage.over) and stage.over not in FEATURES


def _blocks(pattern: BoundPattern) -> dict[str, int | str]:
    """The axes of queries whose members are blocks of one size, and that size, or runs by a table, and which."""
    found: dict[str, int | str] = {}
    for axis in pattern.axes:
        match axis:
            case Axis(of=(Index(name="k"),), table=str(), step=None):
                found[f"q.{axis.name}"] = axis.name
            case Axis(of=(Index(name="k"),), size=(Const(value=int() as size),), step=None):
                found[f"q.{axis.name}"] = size
            case _:
                pass
    return found


def _runs(lines: Lines, name: str) -> Runs:
    found = lines.runs(name)
    assert found is not None
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """What kernels are told beside tensors: ``shape`` is that of the result, ``runs`` the runs of tokens of
    axes by a table."""

    plan: Returned
    module: Any
    tables: tuple[str, ...]
    shape: tuple[int, int, int, int]
    n: int
    q_start: int
    dtype: torch.dtype
    runs: Mapping[str, Runs]

    def view(self, read: Read, tensor: Tensor) -> Tensor:
        """A table, which has an axis for the batch, as it is read: along ``read.along`` behind that axis."""
        for dim in reversed(range(len(read.places))):
            place = read.places[dim]
            size = tensor.shape[1 + dim]
            if isinstance(place, int):
                tensor = tensor.select(1 + dim, min(max(place, 0), size - 1))
            elif place == "q" and read.every == 1 and not read.runs and size != self.shape[2]:
                tensor = tensor.narrow(1 + dim, self.q_start, self.shape[2])
        return tensor

    def strides(self, read: Read, view: Tensor) -> tuple[int, ...]:
        """The strides of a view along batch, heads, queries and features: 0 where it has one for all."""
        own = dict(zip(read.along, view.stride()[1:], strict=True))
        return view.stride(0) if view.shape[0] > 1 else 0, *(own.get(axis, 0) for axis in ("h", "q", "d"))

    @property
    def floats(self) -> tuple[Read, ...]:
        """What may have a gradient."""
        return tuple(read for read in self.plan.reads if read.slope is not None)

    def memory(self, name: str, tensor: Tensor) -> Tensor:
        """A place for the gradient of a table, filled with zeros unless all of it is written."""
        reads = [read for read in self.floats if read.table == name]
        gradient = torch.empty_like(tensor)
        views = [self.view(read, gradient) for read in reads]
        alone = all(self.owns(read, view) for read, view in zip(reads, views, strict=True))
        whole = alone and sum(view.numel() for view in views) == gradient.numel()
        return gradient if whole else gradient.zero_()

    def owns(self, read: Read, view: Tensor) -> bool:
        """Whether each number that is read belongs to one of the result, or to one row of it."""
        others = [each for each in self.floats if each.table == read.table and each != read]
        apart = all(_fixed(each) != _fixed(read) for each in others)
        whole = read.every == read.share == 1 and not read.runs and {"h", "q"} <= set(read.along)
        return apart and whole and view.shape[0] == self.shape[0]

    def target(self, read: Read, gradient: Tensor) -> _Target:
        """Where the kernel writes the gradient of what is read."""
        view = self.view(read, gradient)
        if self.owns(read, view):
            return _Target(tensor=view, strides=self.strides(read, view), own=True)
        # Several numbers of the result belong to one that is read.
        whole = torch.empty(self.shape if read.wide else self.shape[:3], device=gradient.device)
        strides = whole.stride()
        return _Target(tensor=whole, strides=(*strides[:3], strides[3] if read.wide else 0), own=False)

    def add(self, read: Read, whole: Tensor, gradient: Tensor) -> None:
        """Add what belongs to each number of the result to the gradient of what is read."""
        axes = ("h", "q", "d")[: whole.dim() - 1]
        view = self.view(read, gradient)
        if read.every > 1:
            missing = view.shape[1 + read.along.index("q")] * read.every - whole.shape[2]
            if missing:
                whole = torch.nn.functional.pad(whole, (*(0, 0) * (whole.dim() - 3), 0, missing))
            whole = whole.unflatten(2, (-1, read.every)).sum(3)
        if read.runs:
            count = view.shape[1 + read.along.index("q")]
            columns = whole if whole.dim() == 4 else whole[..., None]
            summed = of_runs(columns, self.runs[read.runs], self.q_start, "sum")[:, :, :count]
            # A table may have more rows than there are runs.
            summed = torch.nn.functional.pad(summed, (0, 0, 0, count - summed.shape[2]))
            whole = summed if whole.dim() == 4 else summed[..., 0]
        if read.share > 1:
            whole = whole.unflatten(1, (-1, read.share)).sum(2)
        if view.shape[0] < whole.shape[0]:
            whole = whole.sum(0, keepdim=True)
        gone = [1 + place for place, axis in enumerate(axes) if axis not in read.along]
        left = [axis for axis in axes if axis in read.along]
        whole = whole.sum(gone) if gone else whole
        view.add_(whole.permute(0, *(1 + left.index(axis) for axis in read.along)))

    def start(self, name: str, device: torch.device, *arguments: object, **constants: object) -> None:
        """Launch one of the kernels."""
        batch, heads, nq, width = self.shape
        grid = -(-nq // ROWS) * heads * batch, 1, 1  # other dimensions end at 65,535
        if 0 in (grid[0], width):
            return
        function = getattr(self.module, name)
        sizes = {"ROWS": ROWS, "WIDTH": 1 << (width - 1).bit_length(), **constants}
        # Gradients that are not wanted have `d_out` in their place, which is not written.
        gradients = (f"D_{each.removeprefix('WANTS_')}" for each, wanted in constants.items() if wanted)
        writes = ("out",) if name == "forward" else tuple(gradients)
        given = (*arguments, nq, self.n, self.q_start, width, heads)
        start_given(function, grid, given, sizes, writes, options_of(), device)

    def given(self, tensors: Mapping[str, Tensor]) -> list[object]:
        """What is read, with strides."""
        found: list[object] = []
        for read in self.plan.reads:
            view = self.view(read, tensors[read.table])
            found += [view, *self.strides(read, view)]
            if read.runs:
                last = view.shape[1 + read.along.index("q")] - 1
                some = self.runs[read.runs].table[self.q_start : self.q_start + self.shape[2]]
                found.append(some.clamp(0, max(last, 0)))
        return found


def _fixed(read: Read) -> tuple[int | None, ...]:
    """The numbers at which a table is read."""
    return tuple(place if isinstance(place, int) else None for place in read.places)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """Where a kernel writes a gradient; ``own``: its place in the gradient of the table itself."""

    tensor: Tensor
    strides: tuple[int, ...]
    own: bool


class _Arithmetic(torch.autograd.Function):
    """The result, differentiable in every tensor that it reads."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        out = torch.empty(call.shape, dtype=call.dtype, device=tensors[0].device)
        call.start("forward", out.device, out, *call.given(dict(zip(call.tables, tensors, strict=True))))
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise second_derivative()
        call: _Call = ctx.call
        tensors = dict(zip(call.tables, ctx.saved_tensors, strict=True))
        # In a fixed order, so that calls of a kind ask for memory alike.
        wanted = tuple(name for name, needs in zip(call.tables, ctx.needs_input_grad[1:], strict=True) if needs)
        found = {name: call.memory(name, tensors[name]) for name in wanted}
        targets = {read.name: call.target(read, found[read.table]) for read in call.floats if read.table in wanted}
        arguments = [d_out, *d_out.stride(), *call.given(tensors)]
        for read in call.floats:
            target = targets.get(read.name)
            arguments += [d_out, 0, 0, 0, 0] if target is None else [target.tensor, *target.strides]
        wants = {f"WANTS_{read.name.upper()}": read.name in targets for read in call.floats}
        call.start("backward", d_out.device, *arguments, **wants)
        for read in call.floats:
            if read.name in targets and not targets[read.name].own:
                call.add(read, targets[read.name].tensor, found[read.table])
        return None, *(found.get(name) for name in call.tables)
