"""The Triton back end: runs the generated kernels of a plan on a GPU, or in Triton's interpreter on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spdsl.runtime.calls import Call
from spdsl.runtime.launch import call_values, empty, lined, loaded, tensor_values


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonEngine:
    """Runs plans through generated Triton kernels."""

    name: str = "triton"

    @torch.no_grad()
    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        """Output ``[batch, heads, nq, dv]`` in the type of ``q`` and LSE ``[batch, heads, nq]`` in fp32."""
        call = replace(call, q=lined(call.q), k=lined(call.k), v=lined(call.v))
        batch, heads, nq, _ = call.q.shape
        out = empty((batch, heads, nq, call.v.shape[3]), call.q, call.q.dtype)
        lse = empty((batch, heads, nq), call.q)
        values = call_values(call, "forward") | tensor_values(Q=call.q, K=call.k, V=call.v, O=out) | {"LSE": lse}
        loaded(call.plan).launch("forward", nq, heads, batch, values)
        return out, lse
