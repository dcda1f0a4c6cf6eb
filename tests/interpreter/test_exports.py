"""What patterns export, chosen by kernels in Triton's interpreter: the sets of the reference.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl import reference
from spdsl.runtime import graphs
from tests.interpreter.test_chains import dense

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

CASES = {
    "sparsed_build": {"ratio": 0.2, "rows": 16, "columns": 8},
    "delta": {"layer": 14, "page": 8, "picks": 3, "recent": 1},
    "snapkv": {"cap": 12, "probe": 4, "width": 3},
}


def tensors(n: int, nq: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    q = torch.randn(2, 4, nq, 16, generator=generator)
    return [q, *torch.randn(2, 2, 2, n, 16, generator=generator)]


def inputs(name: str, n: int, nq: int) -> dict[str, Tensor]:
    if name == "sparsed_build":
        return {"prompt": torch.tensor([20, 70], dtype=torch.int32)}
    return {"reused": torch.zeros(nq, -(-n // 8), dtype=torch.bool)} if name == "delta" else {}


@pytest.mark.parametrize("odd", [pytest.param(False, marks=pytest.mark.slow), True], ids=["numbers", "and others"])
@pytest.mark.parametrize(
    ("name", "n", "nq"),
    [
        pytest.param("sparsed_build", 75, 75, marks=pytest.mark.slow),
        pytest.param("delta", 75, 75, marks=pytest.mark.slow),
        ("delta", 30, 13),
        ("snapkv", 33, 33),
    ],
)
def test_sets_are_chosen_by_kernels(name: str, n: int, nq: int, odd: bool) -> None:
    """Also where the tensors want gradients, and by no operation on all pairs."""
    q, k, v = tensors(n, nq)
    if odd:
        q[0, 1, ::7], k[1, 0, 5], k[0, 1, 9] = torch.nan, torch.inf, -torch.inf
    attn, given = spdsl.compile(name, **CASES[name]), inputs(name, n, nq)  # type: ignore[arg-type]
    pattern = attn.bind(4, 2, 16)
    largest: list[int] = []

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            largest.extend(each.numel() for each in (result,) if isinstance(each, Tensor))
            return result

    wanted = reference.exports(pattern, q, k, v, tables=given, q_start=n - nq)["chosen"]
    for each in (q, k, v):
        each.requires_grad_()
    call = graphs.Inputs(q=q, k=k, v=v, tables=given, q_start=n - nq, kernels=True)
    with Watching(), torch.no_grad():
        (found,) = graphs.exports(pattern, call, compact=True).values()
    found = found if found.dtype == torch.bool else dense(found, wanted.shape[-1])
    assert torch.equal(found.expand(wanted.shape), wanted)
    assert max(largest) < 2 * 4 * nq * n
