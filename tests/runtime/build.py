"""Expressions and plans by hand, and dense float64 attention to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from spdsl.analysis.plans import KernelPlan, Plan, Problem, Stage, TableGradient
from spdsl.analysis.tiles import ListWalk, Shape, Walk
from spdsl.runtime.evaluate import evaluate, tables_for
from spdsl.semantics.nodes import (
    Apply,
    Attend,
    BoundPattern,
    Const,
    Dtype,
    Expr,
    FreeParam,
    Index,
    Load,
    Table,
    TableAxis,
)
from spdsl.semantics.ops import OPS
from spdsl.semantics.rewrite import walk

Q, K, H, G, B = (Index(name=name) for name in "qkhgb")
_BOOLS = {"compare", "equal", "logic", "test"}


def const(value: bool | int | float | Expr) -> Expr:
    return Const(value=value) if isinstance(value, (bool, int, float)) else value


def op(name: str, *args: Any) -> Expr:
    """An operation with its type filled in."""
    parts = tuple(const(arg) for arg in args)
    signature = OPS[name].signature
    dtype: Dtype = "int"
    if signature in _BOOLS:
        dtype = "bool"
    elif signature in ("divide", "real"):
        dtype = "float"
    elif signature == "where":
        dtype = parts[1].dtype
    elif signature == "arith" and any(part.dtype == "float" for part in parts):
        dtype = "float"
    return Apply(op=name, args=parts, dtype=dtype)


def every(*conditions: Expr) -> Expr:
    found = conditions[0]
    for condition in conditions[1:]:
        found = op("and", found, condition)
    return found


def load(table: str, *indices: Any, dtype: Dtype = "int") -> Expr:
    return Load(table=table, dtype=dtype, indices=tuple(const(index) for index in indices))


def table(name: str, dtype: Dtype, *kinds: str, sorted: bool = False) -> Table:
    """A declaration; kinds are ``token q h g b`` or the sizes of own axes."""
    axes = tuple(
        TableAxis(kind="own", size=Const(value=int(kind)), label=kind)
        if kind.isdigit()
        else TableAxis(kind=kind, size=Const(value=0), label=kind)  # type: ignore[arg-type]
        for kind in kinds
    )
    return Table(name=name, dtype=dtype, axes=axes, bounds=None, sorted=sorted)


CAUSAL = op("le", K, Q)


def window(size: int) -> Expr:
    return every(CAUSAL, op("lt", op("sub", Q, K), size))


def plan(
    keep: Expr,
    *,
    bias: Expr | None = None,
    sink_logit: Expr | None = None,
    softcap: float | None = None,
    scale: float = 0.125,
    tables: tuple[Table, ...] = (),
    stages: tuple[Stage, ...] = (),
    gradients: tuple[TableGradient, ...] = (),
    walks: tuple[Walk, Walk] | None = None,
    blocks: tuple[int, int] = (128, 128),
    shape: Shape = "square",
    heads: int = 1,
    groups: int = 1,
    head_dim: int = 64,
    pattern: BoundPattern | None = None,
) -> Plan:
    """A plan with tile lists, or with the walks given (by query, by key)."""
    by_query, by_key = walks or (ListWalk(reason="test"), ListWalk(reason="test"))

    def kernel(kind: Literal["forward", "dq", "dkdv"]) -> KernelPlan:
        walk = by_key if kind == "dkdv" else by_query
        return KernelPlan(kind=kind, block_q=blocks[0], block_k=blocks[1], warps=4, stages=2, walk=walk)

    if pattern is None:
        pattern = BoundPattern(
            name="test", parameters=(), tables=tables, axes=(), grids=(), attend=Attend(keep=keep), layer=0,
            heads=heads, groups=groups, head_dim=head_dim, text="",
            free=tuple(dict.fromkeys(node for node in walk(keep) if isinstance(node, FreeParam))),
        )  # fmt: skip
    return Plan(
        problem=Problem(pattern=pattern, dtype="fp32", value_dim=head_dim, shape=shape),
        keep=keep, bias=bias, scale=scale, softcap=softcap, sink_logit=sink_logit, tables=tables, stages=stages,
        gradients=gradients, forward=kernel("forward"), dq=kernel("dq"), dkdv=kernel("dkdv"),
    )  # fmt: skip


def dense(
    chosen: Plan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    q_start: int = 0,
    tables: Mapping[str, Tensor] | None = None,
    batches: range | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and LSE in float64, differentiable, by the definition."""
    batch, heads, nq, _ = q.shape
    groups, n = k.shape[1:3]
    head = torch.arange(heads).view(-1, 1, 1)
    numbers = batches or range(batch)
    env: dict[str, Tensor | int] = {
        "b": torch.tensor(list(numbers)).view(-1, 1, 1, 1), "h": head, "g": head // (heads // groups),
        "q": (torch.arange(nq) + q_start).view(-1, 1), "k": torch.arange(n).view(1, -1),
        "n": n, "nq": nq, "q_start": q_start,
    }  # fmt: skip
    given = tables_for(chosen.tables, tables or {})
    keep = evaluate(chosen.keep, env, given) & (env["q"] >= 0)
    k, v = (x.repeat_interleave(heads // groups, 1).double() for x in (k, v))
    logits = chosen.scale * q.double() @ k.transpose(-1, -2)
    if chosen.softcap is not None:
        logits = chosen.softcap * torch.tanh(logits / chosen.softcap)
    if chosen.bias is not None:
        logits = logits + evaluate(chosen.bias, env, given)
    logits = logits.masked_fill(~keep, -torch.inf)
    if chosen.sink_logit is not None:
        sink = evaluate(chosen.sink_logit, env | {"k": 0}, given).expand(batch, heads, nq, 1)
        logits = torch.cat([logits, sink], -1)
        v = torch.cat([v, torch.zeros_like(v[:, :, :1])], 2)
    empty = (logits == -torch.inf).all(-1, keepdim=True)
    lse = torch.logsumexp(logits.masked_fill(empty, 0.0), -1, keepdim=True).masked_fill(empty, -torch.inf)
    weights = (logits - lse.masked_fill(empty, 0.0)).exp()
    return weights @ v, lse.squeeze(-1)


def error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over that of what is expected."""
    expected = expected.detach()
    assert not found.isnan().any()
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))
