"""Decoding on a GPU: few queries, places of each sequence, pages; the same bits in every run, and in a captured graph
that is replayed for other lengths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.runtime import operator
from tests.library.cases import CASES, Case, Sizes
from tests.library.compare import relative_error, sizes_for

pytestmark = pytest.mark.gpu

DTYPE, TOLERANCE = torch.bfloat16, 1e-2


def tensors(heads: int, groups: int, nq: int, n: int, batch: int = 3, d: int = 128) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, nq), (groups, n), (groups, n))
    made = (torch.randn(batch, *shape, d, generator=generator).to("cuda", DTYPE) for shape in shapes)
    return tuple(made)  # type: ignore[return-value]


NAMES = ("streaming", "documents", "dilated", "strided", "longformer", "power", "alibi", "head_modes")
SOME = [next(case for case in CASES if case.name == name) for name in NAMES]


@pytest.mark.parametrize("case", SOME, ids=NAMES)
def test_library(case: Case) -> None:
    sizes = sizes_for(case, Sizes(batch=3, heads=6, groups=2, nq=3, n=1500))
    inputs = {name: each.cuda() for name, each in case.inputs(sizes, torch.Generator().manual_seed(0)).items()}
    q, k, v = tensors(6, 2, sizes.nq, sizes.n)
    attn = spdsl.compile(case.name, **case.parameters)
    out, lse = attn(q, k, v, return_lse=True, **inputs)
    expected, expected_lse = attn.reference(q, k, v, return_lse=True, **inputs)
    assert relative_error(out, expected) <= TOLERANCE
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-3, rtol=1e-4)
    assert torch.equal(out, attn(q, k, v, **inputs))


@pytest.mark.parametrize(
    ("heads", "groups", "nq", "d"), [(8, 8, 1, 128), (32, 8, 1, 256), (28, 4, 2, 128), (32, 1, 1, 64), (8, 2, 16, 128)]
)
def test_groups(heads: int, groups: int, nq: int, d: int) -> None:
    q, k, v = tensors(heads, groups, nq, 3000, d=d)
    attn = spdsl.compile("streaming", window=500, sinks=40)
    assert relative_error(attn(q, k, v), attn.reference(q, k, v)) <= TOLERANCE  # type: ignore[arg-type]


@pytest.mark.parametrize("page", [0, 16, 48, 64, 256])
def test_a_captured_step(page: int) -> None:
    q, k, v = tensors(8, 2, 1, 3072)
    attn = spdsl.compile("streaming", window=700, sinks=40)
    lengths = torch.tensor([3072, 1500, 17], dtype=torch.int32, device="cuda")
    given, expected_of = (q, k, v), lambda: attn.reference(q, k, v, k_len=lengths)
    more: dict[str, Tensor] = {}
    if page:
        order = torch.randperm(3 * 3072 // page, device="cuda")
        pages = [x.transpose(1, 2).reshape(-1, page, *x.shape[1::2])[order].contiguous() for x in (k, v)]
        given, more = (q, *pages), {"pages": order.argsort().view(3, -1).int()}
    out = attn(*given, k_len=lengths, **more)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = attn(*given, k_len=lengths, **more)
    for changed in ([3072, 1500, 17], [40, 3000, 1], [900, 64, 2048]):
        lengths.copy_(torch.tensor(changed))
        graph.replay()
        assert relative_error(found, expected_of()) <= TOLERANCE  # type: ignore[arg-type]
    lengths.copy_(torch.tensor([3072, 1500, 17]))
    graph.replay()
    assert torch.equal(found, out)  # type: ignore[arg-type]


def test_places_outside_of_the_cache_stay_in_bounds() -> None:
    q, k, v = tensors(8, 2, 1, 640)
    attn = spdsl.compile("causal")
    lengths = torch.tensor([640, 9999, -3], dtype=torch.int32, device="cuda")
    out = attn(q, k, v, k_len=lengths, q_start=torch.full_like(lengths, 639))
    expected = attn.reference(q, k, v, k_len=lengths.clamp(0, 640), q_start=torch.full_like(lengths, 639))
    assert relative_error(out, expected) <= TOLERANCE  # type: ignore[arg-type]
    pages = k.transpose(1, 2).reshape(-1, 64, 2, 128)
    table = torch.full((3, 10), 1 << 20, dtype=torch.int32, device="cuda")
    assert torch.isfinite(attn(q, pages, pages, pages=table, k_len=lengths.clamp(0, 640))).all()  # type: ignore[arg-type]
    torch.cuda.synchronize()


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize(("name", "parameters"), [("streaming", {"window": 700, "sinks": 40}), ("strided", {})])
def test_a_growing_cache(name: str, parameters: dict[str, int], padding: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps with one more key each, as from an attention that has seen no other length, and hardly ever planned."""
    forward, recorded = operator.forward, []
    monkeypatch.setattr(operator, "forward", lambda *given: (recorded.append(given[1].shape[2]), forward(*given))[1])
    q, k, v = tensors(32, 8, 1, 3072, batch=8)
    more = {"k_start": torch.arange(8, dtype=torch.int32, device="cuda")} if padding else {}
    attn = spdsl.compile(name, **parameters)
    for n in range(2049, 2100):
        out = attn(q, k[:, :, :n].contiguous(), v[:, :, :n], **more)
        fresh = spdsl.compile(name, **parameters)(q, k[:, :, :n], v[:, :, :n], **more)
        assert torch.equal(out, fresh)  # type: ignore[arg-type]
    assert len(recorded) == 52  # all of the others, and one
    expected = attn.reference(q, k[:, :, :n], v[:, :, :n], **more)
    assert relative_error(out, expected) <= TOLERANCE  # type: ignore[arg-type]
