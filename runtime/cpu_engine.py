"""The CPU back end: the walks of a plan with torch operations on whole groups of tiles.

Cost and memory follow the tiles kept.  Everything is computed in fp32 and in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.runtime.calls import Call, Gradients
from spdsl.runtime.cpu_backward import Incoming, incoming, key_gradients, query_gradient
from spdsl.runtime.cpu_forward import forward
from spdsl.runtime.cpu_gradients import TableSums, table_sums
from spdsl.runtime.cpu_parts import Part, parts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuEngine:
    """Runs plans on the CPU."""

    name: str = "cpu"

    @torch.no_grad()
    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        """Output ``[batch, heads, nq, dv]`` in the type of ``q`` and LSE ``[batch, heads, nq]`` in fp32."""
        found = [forward(part) for part in parts_of(call)]
        if len(found) == 1:
            return found[0][0].to(call.q.dtype).contiguous(), found[0][1].contiguous()
        return torch.cat([out for out, _ in found]).to(call.q.dtype), torch.cat([lse for _, lse in found])

    @torch.no_grad()
    def backward(
        self, call: Call, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor | None, wanted: frozenset[str]
    ) -> Gradients:
        """Gradients of those among ``q k v`` and the names of tables that are in ``wanted``."""
        sums = table_sums(call.plan.gradients, wanted, call.tables)
        d_q = torch.zeros_like(call.q, dtype=torch.float32) if "q" in wanted else None
        d_k = torch.zeros_like(call.k, dtype=torch.float32) if "k" in wanted else None
        d_v = torch.zeros_like(call.v, dtype=torch.float32) if "v" in wanted else None
        for part in parts_of(call):
            given = incoming(part, out, lse, d_out, d_lse)
            if d_q is not None or any(each.of == "bias" for each in sums.gradients):
                found = query_gradient(part, given, sums)
                if d_q is not None:
                    part.queries(d_q).copy_(found)
            if d_k is not None or d_v is not None:
                for total, gradient in zip((d_k, d_v), key_gradients(part, given), strict=True):
                    if total is not None:
                        part.keys(total).copy_(gradient)
            _sinks(part, given, sums)
        return Gradients(
            q=_typed(d_q, call.q),
            k=_typed(d_k, call.k),
            v=_typed(d_v, call.v),
            tables={name: sums.of(name, call.tables[name]) for name in sums.sums},
        )


def _sinks(part: Part, given: Incoming, sums: TableSums) -> None:
    """The sink has no value, so the gradient of its logit is its weight times minus delta."""
    sink = part.call.plan.sink_logit
    if sink is None or not any(each.of == "sink_logit" for each in sums.gradients):
        return
    logits = part.logits(part.call.plan.dq)
    lse, delta = given.lse.flatten(0, 1).squeeze(-1), given.delta.flatten(0, 1).squeeze(-1)
    weight = (logits.at_queries(sink, torch.arange(lse.shape[0]), lse.shape[1]) - lse).exp()
    sums.add_sink(logits, -weight * delta)


def _typed(gradient: Tensor | None, like: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(like.dtype)
