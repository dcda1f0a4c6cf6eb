"""What calls on a GPU promise beside numbers: repeatability, checks that do not wait, strides, sizes, whole graphs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

import spdsl
from tests.library.compare import relative_error

pytestmark = pytest.mark.gpu


def tensors(n: int = 1500, d: int = 64, heads: int = 4, groups: int = 2) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((1, heads, n, d), (1, groups, n, d), (1, groups, n, d))
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]


@contextmanager
def nothing_waits() -> Iterator[None]:
    """To wait for the device is an error here."""
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype feature")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("ordered", [False, True], ids=["default", "deterministic"])
@pytest.mark.parametrize("name", ["alibi", "documents", "streaming", "bigbird"])
def test_what_repeats_bitwise(name: str, ordered: bool) -> None:
    leaves = tensors()
    inputs: dict[str, Tensor] = {}
    if name == "alibi":
        inputs["slope"] = torch.rand(4, device="cuda", requires_grad=True)
        leaves.append(inputs["slope"])
    if name == "documents":
        inputs["doc"] = torch.arange(1500, device="cuda") // 400
    attn = spdsl.compile(name, deterministic=ordered)

    def once() -> list[Tensor]:
        out, lse = attn(*leaves[:3], return_lse=True, **inputs)
        return [out, lse, *torch.autograd.grad(out.float().square().sum(), leaves)]

    one, two = once(), once()
    assert relative_error(one[2], two[2]) <= 1e-3
    alike = [torch.equal(first, second) for first, second in zip(one, two, strict=True)]
    if not ordered:
        del alike[2]  # without an order a fused kernel sums dQ as its programs come
    assert all(alike)


def test_values_are_checked_without_waiting() -> None:
    q, k, v = (each.detach() for each in tensors(n=300))
    attn = spdsl.compile("documents")
    wrong = torch.arange(300, device="cuda").flip(0).int()
    attn(q, k, v, doc=wrong)
    with pytest.raises(spdsl.SpatError) as caught:
        spdsl.raise_pending()
    assert caught.value.code == "SP350"
    spdsl.raise_pending()


def test_any_strides() -> None:
    q, k, v = (torch.randn(2, 700, heads, 64, device="cuda", dtype=torch.float16) for heads in (4, 2, 2))
    attn = spdsl.compile("sliding_window", window=100)
    turned = [each.transpose(1, 2) for each in (q, k, v)]
    assert torch.equal(attn(*turned), attn(*(each.contiguous() for each in turned)))


def test_more_elements_than_32_bits_count() -> None:
    n, window = 300_000, 64
    q, k, v = (torch.randn(1, 60, n, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    assert q.numel() > 2**31
    out = spdsl.compile("sliding_window", window=window)(q, k, v)
    for row in (0, n // 2, n - 1):
        keys = slice(max(0, row - window + 1), row + 1)
        logits = q[0, -1, row].double() @ k[0, -1, keys].double().T / 128**0.5
        assert relative_error(out[0, -1, row], torch.softmax(logits, -1) @ v[0, -1, keys].double()) < 1e-2


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own use
def test_whole_graphs_compile() -> None:
    leaves = tensors(n=512)
    attn = spdsl.compile("streaming", window=100, sinks=4)

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.nn.functional.gelu(attn(q * 2, k, v)).float().sum()

    expected = torch.autograd.grad(loss(*leaves), leaves)
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*leaves), leaves)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 2e-2


@pytest.fixture
def composed(tmp_path: Path) -> spdsl.Attention:
    path = tmp_path / "composed.spat"
    path.write_text(
        "pattern composed() {\n  input doc: int[token] sorted\n"
        "  keep causal and (q - k < 300 or k < 20 or (q - k) % 128 == 0) and doc[q] == doc[k]\n}\n"
    )
    return spdsl.compile(str(path))


def documents(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, generator=generator) < 6 / n).cumsum(0).int().cuda()


def test_new_documents_wait_for_nothing(composed: spdsl.Attention) -> None:
    """The first call compiles; later ones, with other documents and lengths, never synchronise."""
    calls = [(tensors(n=n), documents(n, n)) for n in (1500, 1700, 900)]
    torch.autograd.grad(composed(*calls[0][0], doc=calls[0][1]).float().square().sum(), calls[0][0])
    with nothing_waits():
        found = [composed(*leaves, doc=doc) for leaves, doc in calls]
        gradients = [
            torch.autograd.grad(out.float().square().sum(), leaves)
            for out, (leaves, _) in zip(found, calls, strict=True)
        ]
    for out, grads, (leaves, doc) in zip(found, gradients, calls, strict=True):
        expected = composed.reference(*leaves, doc=doc)
        assert relative_error(out, expected) <= 1e-2
        wanted = torch.autograd.grad(expected.square().sum(), leaves)
        assert all(relative_error(one, other) <= 3e-2 for one, other in zip(grads, wanted, strict=True))
    spdsl.raise_pending()


TABLES: dict[str, Callable[[int, str], dict[str, Tensor]]] = {
    "sliding_window": lambda n, device: {},
    "longformer": lambda n, device: {"is_global": torch.arange(n, device=device) % 500 == 3},
    "documents": lambda n, device: {"doc": torch.arange(n, device=device) // 300},
    "bigbird": lambda n, device: {},
}


@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("name", TABLES)
def test_known_calls_wait_for_nothing(name: str, d: int) -> None:
    """Calls that are played from a tape, on other tensors than the first: the results of calls that are not."""
    attn, given = spdsl.compile(name, deterministic=True), TABLES[name](1500, "cuda")
    first, second = tensors(d=d), [torch.randn_like(each).requires_grad_() for each in tensors(d=d)]

    def both(attn: spdsl.Attention, leaves: list[Tensor]) -> list[Tensor]:
        out, lse = attn(*leaves, return_lse=True, **given)
        return [out, lse, *torch.autograd.grad((out, lse), leaves, (leaves[0].detach(), torch.ones_like(lse)))]

    both(attn, first)
    with nothing_waits():
        found = both(attn, second)
    expected = both(spdsl.compile(name, deterministic=True), second)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", TABLES)
def test_known_calls_in_a_graph(name: str) -> None:
    """A call that is played while a graph is captured."""
    attn, given = spdsl.compile(name), TABLES[name](1500, "cuda")
    q, k, v = (each.detach() for each in tensors())
    attn(q, k, v, **given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attn(q, k, v, **given)
    for each in (q, k, v):
        each.copy_(torch.randn_like(each))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, spdsl.compile(name)(q, k, v, **given))  # type: ignore[arg-type]


def test_a_captured_graph_follows_its_documents(composed: spdsl.Attention) -> None:
    """Intervals are found anew in every replay."""
    q, k, v = (each.detach() for each in tensors(n=1000))
    doc = documents(1000, 0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        composed(q, k, v, doc=doc)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = composed(q, k, v, doc=doc)
    for seed in (1, 2):
        doc.copy_(documents(1000, seed))
        graph.replay()
        torch.cuda.synchronize()
        assert relative_error(out, composed.reference(q, k, v, doc=doc)) <= 1e-2
