"""How a call is computed: walks, tiles, and the pairs kept over the pairs computed.  Counts are exact."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from spdsl import walks
from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.wording import describe as word
from spdsl.arguments import first_query
from spdsl.costs import Prediction, device_for, predict
from spdsl.counting import count_pairs
from spdsl.kernels import plan_like
from spdsl.pipeline import Value, values_of
from spdsl.planning import Chosen
from spdsl.runtime.calls import Call
from spdsl.runtime.checks import check_call, check_tensors
from spdsl.runtime.deferred import raise_pending
from spdsl.runtime.evaluate import with_batch
from spdsl.runtime.parts import parts_of, settled


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReport:
    """One kernel: tile sizes, its walk in words, and how many tiles it visits over batch and heads.

    ``pairs`` are those kept by the set that it computes: all of the pattern's, or those of ``part`` of its union.
    ``metadata`` is the size in bytes of the tensors that a call makes so that the kernel finds its tiles.  ``warps``
    says how they share the work where that is not all alike, or why it is.
    """

    kind: str
    part: int
    pairs: int
    block_q: int
    block_k: int
    walk: tuple[str, ...]
    notes: tuple[str, ...]
    touched: int
    full: int
    metadata: int
    warps: str

    @property
    def partial(self) -> int:
        """Tiles that are masked."""
        return self.touched - self.full

    @property
    def computed(self) -> int:
        """Pairs whose logits are computed, kept or not."""
        return self.touched * self.block_q * self.block_k

    def as_dict(self) -> dict[str, object]:
        """The report for `--json`."""
        return asdict(self) | {"partial": self.partial, "computed": self.computed, "useful": self.useful}

    @property
    def useful(self) -> float:
        """Pairs kept over pairs computed."""
        return self.pairs / self.computed if self.computed else 1.0

    def lines(self, before: Sequence[KernelReport]) -> list[str]:
        """The report as lines to read, after those of the kernels ``before``."""
        like = next((each.kind for each in before if replace(each, kind=self.kind) == self), None)
        if like is not None:
            return [f"{self.kind}: tiles and walks are those of `{like}`"]
        if not self.touched:
            return [f"{self.kind}: no tile is touched", *(f"  {line}" for line in self.notes)]
        head = (
            f"{self.kind}: tiles of {self.block_q} queries × {self.block_k} keys, {self.touched:,} touched: "
            f"{self.full:,} full, {self.partial:,} partial; "
            f"{_percent(self.useful)} of the pairs computed are kept"
        )
        metadata = [f"{self.metadata:,} bytes of metadata"] if self.metadata else []
        warps = [self.warps] if self.warps else []
        return [head, *(f"  {line}" for line in (*self.walk, *self.notes, *warps, *metadata))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """A parameter that is a constant of the kernels, and why."""

    name: str
    value: Value
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `Attention.explain` tells.  ``pairs`` are kept by the pattern, over ``batch`` and ``heads``.

    ``stages`` are the names of tables that are computed before the kernels start, with their sizes in bytes.
    ``cost`` is what the call is predicted to take, None for the CPU.
    ``open`` are the parameters that kernels take at run time, ``fixed`` those that are constants of the kernels.
    ``sets`` are the disjoint parts of a union that are computed one after the other, in words; empty for a set that is
    computed as a whole.
    """

    pattern: str
    target: str
    shape: str
    batch: int
    heads: int
    nq: int
    n: int
    pairs: int
    open: dict[str, int]
    fixed: tuple[Fixed, ...]
    kernels: tuple[KernelReport, ...]
    stages: tuple[tuple[str, int], ...] = ()
    sets: tuple[str, ...] = ()
    cost: Prediction | None = None

    @property
    def kept(self) -> float:
        """Pairs kept over all pairs."""
        return self.pairs / max(1, self.batch * self.heads * self.nq * self.n)

    @property
    def metadata(self) -> int:
        """Bytes of all that a call and its backward pass make besides results: lists of tiles and tables of stages.

        Of the two ways back it is the one that runs by default.
        """
        fused = {kernel.part for kernel in self.kernels if kernel.kind == "fused"}
        lists = sum(
            kernel.metadata for kernel in self.kernels if kernel.kind not in ("dq", "dkdv") or kernel.part not in fused
        )
        return lists + sum(size for _, size in self.stages)

    def useful(self, direction: Literal["fwd", "bwd"]) -> float:
        """Pairs kept over pairs computed by the kernels that run by default; of two that go back, half of their sum."""
        fused = {kernel.part for kernel in self.kernels if kernel.kind == "fused"}
        computed = 0.0
        for kernel in self.kernels:
            if direction == "fwd":
                computed += kernel.computed * (kernel.kind == "forward")
            elif kernel.kind == "fused":
                computed += kernel.computed
            elif kernel.kind in ("dq", "dkdv") and kernel.part not in fused:
                computed += kernel.computed / 2
        return self.pairs / computed if computed else 1.0

    @property
    def is_fused(self) -> bool:
        """Whether one kernel computes all gradients."""
        return any(kernel.kind == "fused" for kernel in self.kernels)

    def as_dict(self) -> dict[str, object]:
        """The report for `--json`."""
        kernels = [kernel.as_dict() for kernel in self.kernels]
        plain = asdict(replace(self, cost=None))
        cost = None if self.cost is None else self.cost.as_dict()
        return plain | {"cost": cost} | {"kernels": kernels, "kept": self.kept, "metadata": self.metadata}

    def text(self) -> str:
        """The report as lines to read."""
        total = self.batch * self.heads * self.nq * self.n
        sequences = "" if self.batch == 1 else f"{self.batch} sequences, "
        lines = [
            f"{self.pattern} for {self.target}: {sequences}{self.heads} heads, {self.nq:,} queries, {self.n:,} keys",
            f"pairs kept: {self.pairs:,} of {total:,} ({_percent(self.kept)})",
        ]
        if self.open:
            given = ", ".join(f"{name} = {value}" for name, value in self.open.items())
            lines.append(f"at run time: {given}; other values run the same kernels")
        lines += _constants(self.fixed)
        if self.is_fused:
            lines.append("gradients come from `fused`; where not all are wanted, from `dq` and `dkdv`")
        if self.sets:
            lines.append(f"{len(self.sets)} sets without common pairs, one after the other:")
        for part in dict.fromkeys(kernel.part for kernel in self.kernels):
            kernels = [kernel for kernel in self.kernels if kernel.part == part]
            if self.sets:
                lines.append(f"set {part + 1}: {self.sets[part]}; {kernels[0].pairs:,} pairs")
            for place, kernel in enumerate(kernels):
                lines += kernel.lines(kernels[:place])
        lines += [f"computed before the kernels start: {value}, {size:,} bytes" for value, size in self.stages]
        lines.append(f"metadata: {self.metadata:,} bytes")
        lines += [] if self.cost is None else self.cost.lines()
        return "\n".join(lines)


def _percent(share: float) -> str:
    """A share with one decimal, or as many as two digits need; never 100% where something is left out."""
    if share >= 0.9995:
        return "100%" if share >= 1 else f"{min(share, 0.99999):.3%}"
    return f"{share:.1%}" if share >= 0.01 else f"{float(f'{share * 100:.2g}'):.10f}".rstrip("0").rstrip(".") + "%"


def _constants(fixed: Sequence[Fixed]) -> list[str]:
    """A line for each reason, with the parameters that it makes constants."""
    by_reason: dict[str, list[str]] = {}
    for each in fixed:
        by_reason.setdefault(each.reason, []).append(f"{each.name} = {_value(each.value)}")
    return [
        f"in the kernels: {', '.join(names)}, because {_of(reason, len(names))}" for reason, names in by_reason.items()
    ]


def _of(reason: str, parameters: int) -> str:
    """A reason that speaks of one parameter, said of so many."""
    if parameters == 1:
        return reason
    for one, many in ((r"^it\b", "each"), (r"\bit$", "them"), (r"\bthe value\b", "each value")):
        reason = re.sub(one, many, reason)
    return reason


def _value(value: Value) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_value(item) for item in value)})"
    return str(value).lower() if isinstance(value, bool) else str(value)


def explain(
    key: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Mapping[str, Tensor],
    target: str | None = None,
    *,
    gpu: str | None = None,
    q_start: int | None = None,
) -> Report:
    """Count what the kernels for tensors like these visit, and predict their time on the GPU that is named ``gpu``.

    The queries are the last positions, unless ``q_start`` is that of the first.

    Raises:
        SpatError: as a call with these tensors would.
    """
    target = target or ("cpu" if q.device.type == "cpu" else "sm_90")
    check_tensors(q, k, v)
    chosen = plan_like(key, q, k, v, target, q_start=q_start)
    call = _call(chosen, q, k, v, tables, q_start)
    raise_pending()
    plan = call.plan
    parts = [(part, count_pairs(part)) for part in parts_of(call, lambda _: ())]
    pairs = sum(each for _, each in parts)
    return Report(
        pattern=plan.problem.pattern.name,
        target=target,
        shape=plan.problem.shape,
        batch=q.shape[0],
        heads=q.shape[1],
        nq=q.shape[2],
        n=k.shape[2],
        pairs=pairs,
        open=chosen.values,
        fixed=tuple(
            Fixed(name=name, value=value, reason=chosen.fixed[name])
            for name, value in values_of(key).items()
            if name in chosen.fixed
        ),
        kernels=tuple(_kernel(part, kernel, pairs) for part, pairs in parts for kernel in part.plan.kernels),
        stages=tuple(
            (word(each.value, 160), part.tables[each.name].nbytes) for part, _ in parts for each in part.plan.stages
        ),
        sets=tuple(word(part.problem.pattern.attend.keep, 160) for part in plan.parts) if plan.more else (),
        cost=None if target == "cpu" else predict(call, device_for(target, gpu or _name(q)), pairs=pairs),
    )


def _name(q: Tensor) -> str | None:
    return torch.cuda.get_device_name(q.device) if q.device.type == "cuda" else None


def call_like(
    key: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Mapping[str, Tensor],
    target: str,
    *,
    q_start: int | None = None,
) -> Call:
    """The call with tensors like these, checked, the tables of its stages made.

    The queries are the last positions, unless ``q_start`` is that of the first.

    Raises:
        SpatError: as a call with these tensors would.
    """
    check_tensors(q, k, v)
    return _call(plan_like(key, q, k, v, target, q_start=q_start), q, k, v, tables, q_start)


def _call(
    chosen: Chosen, q: Tensor, k: Tensor, v: Tensor, tables: Mapping[str, Tensor], q_start: int | None = None
) -> Call:
    pattern = chosen.plan.problem.pattern
    given = {table.name: with_batch(table, tables[table.name]) for table in pattern.tables}
    start = first_query(pattern.attend, q.shape[2], k.shape[2]) if q_start is None else q_start
    call = Call(plan=chosen.plan, q=q, k=k, v=v, q_start=start, tables=given, parameters=chosen.variables)
    return settled(check_call(call))


def _kernel(call: Call, kernel: KernelPlan, pairs: int) -> KernelReport:
    found = walks.visits(call, kernel)
    return KernelReport(
        kind=kernel.kind,
        part=call.plan.place,
        pairs=pairs,
        block_q=kernel.block_q,
        block_k=kernel.block_k,
        walk=walks.describe(kernel, call.plan, call),
        notes=kernel.notes,
        touched=found.touched,
        full=found.full,
        metadata=found.metadata,
        warps=_warps(kernel),
    )


def _warps(kernel: KernelPlan) -> str:
    if kernel.specialised:
        groups = "a group of four computes" if kernel.groups == 1 else f"{kernel.groups} groups of four compute"
        return f"in Gluon: one warp copies tiles, {groups}"
    return f"in Triton and not in Gluon: {kernel.plain}" if kernel.plain else ""
