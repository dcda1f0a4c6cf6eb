"""Selections among candidates, means over blocks and joint softmaxes in Triton's interpreter.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os

import pytest
import torch

import spdsl
from spdsl.runtime import graphs, mean_kernels, plain
from spdsl.runtime.join_kernels import put_together
from spdsl.runtime.mean_kernels import of_blocks
from spdsl.semantics.graph import Select
from tests.interpreter.test_chains import dense
from tests.library.cases import Case, Sizes
from tests.library.test_selections import check

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

TEXT = """pattern among() {{
  axis fine = token by {fine}
  axis coarse = fine by {ratio}
  let wide = score({one}Q{two}, mean(K, per = k.coarse)) {wide}|> top({outer})
  let chosen = score({one}Q{three}, mean(K, per = k.fine)) {head}|> only(wide{more}) |> top({inner})
  keep chosen
}}
"""

LATER = " and k.fine.first <= q.{0}.first"
CASES = (
    {"one": "mean(", "two": ", per = q.coarse)", "three": ", per = q.fine)", "wide": "", "head": ""},
    {"one": "mean(", "two": ", per = q.fine)", "three": ", per = q.fine)", "wide": "|> max(per = g) ", "head": ""},
    {"one": "", "two": "", "three": "", "wide": "|> sum(over = h) ", "head": "|> mean(per = g) "},
)


@pytest.mark.parametrize(
    ("shape", "more"),
    [
        pytest.param(CASES[0], "", id="pyramid"),
        pytest.param(CASES[1], LATER, id="groups-causal"),
        pytest.param(CASES[2], "", id="queries"),
        pytest.param(CASES[0], LATER, id="pyramid-causal", marks=pytest.mark.slow),
        pytest.param(CASES[1], "", id="groups", marks=pytest.mark.slow),
        pytest.param(CASES[2], LATER, id="queries-causal", marks=pytest.mark.slow),
    ],
)
def test_candidates(shape: dict[str, str], more: str) -> None:
    """What kernels choose among candidates is the set of the reference, ragged and with ties."""
    n, rows = 61, "fine" if "fine" in shape["three"] else ""
    more = more.format(rows) if rows else more.replace("q.{0}.first", "q")
    text = TEXT.format(fine=4, ratio=4, outer=3, inner=5, more=more, **shape)
    pattern = spdsl.compile(spdsl.loads(text)).bind(4, 2, 16)
    generator = torch.Generator().manual_seed(n)
    # Whole numbers: means over blocks of 4 and 16 are exact, and there are ties.
    q = torch.randint(-2, 3, (2, 4, n, 16), generator=generator).float()
    k = torch.randint(-2, 3, (2, 2, n, 16), generator=generator).float()
    call = graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=True)
    words = graphs.makers(pattern, call)
    assert words
    assert all(each.startswith("by kernels") for each in words.values()), words
    assert pattern.graph is not None
    *_, chosen = (stage for stage in pattern.graph.stages if isinstance(stage, Select))
    found = graphs.selections(pattern, call)[chosen.name]
    plain = graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=False)
    wanted = graphs.selections(pattern, plain)[chosen.name]
    columns = -(-n // 4)
    assert torch.equal(dense(found, columns), dense(wanted, columns).expand_as(dense(found, columns)))
    assert bool(dense(found, columns).any())


def test_candidates_with_queries_elsewhere() -> None:
    """Queries that begin in the middle of a block leave the selection to torch, with the same sets."""
    text = TEXT.format(fine=4, ratio=4, outer=2, inner=3, more="", **CASES[2])
    pattern = spdsl.compile(spdsl.loads(text)).bind(2, 2, 16)
    q, k = torch.randn(1, 2, 9, 16), torch.randn(1, 2, 70, 16)
    call = graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=61, kernels=True)
    assert pattern.graph is not None
    *_, chosen = (stage for stage in pattern.graph.stages if isinstance(stage, Select))
    found = graphs.selections(pattern, call)[chosen.name]
    plain = graphs.selections(pattern, graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=61, kernels=False))[chosen.name]
    assert torch.equal(dense(found, 18), dense(plain, 18))


@pytest.mark.parametrize(("nq", "n"), [(20, 40), (8, 40), (17, 33)])
def test_means_of_fewer_queries_than_keys(nq: int, n: int) -> None:
    """Blocks of queries are as many as of keys; the later ones hold none."""
    text = "axis blk = token by 8  let QM = mean(Q, per = q.blk)  export found = score(QM, mean(K, per = k.blk))"
    pattern = spdsl.compile(spdsl.loads(f"pattern program() {{ {text}  keep causal }}")).bind(2, 2, 8)
    q, (k, v) = torch.randn(1, 2, nq, 8).half(), torch.randn(2, 1, 2, n, 8).half()
    one, two = (
        graphs.exports(pattern, graphs.Inputs(q=q, k=k, v=v, tables={}, q_start=0, kernels=kernels))["found"]
        for kernels in (True, False)
    )
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize(
    ("size", "step", "each", "n"),
    [(4, 4, 1, 30), (100, 100, 1, 250), (4, 4, 16, 333), (1, 1, 1, 5), (32, 16, 1, 250), (7, 3, 1, 40), (3, 5, 1, 90)],
)
def test_means_of_blocks(size: int, step: int, each: int, n: int, mean: bool) -> None:
    """And of windows, weighted by the positions that exist, with gradients."""
    entries = -(-n // each)
    x = torch.randn(2, 3, entries, 10, dtype=torch.float32, requires_grad=True)
    blocks = -(-entries // step)
    found = of_blocks(x.transpose(1, 2).contiguous().transpose(1, 2), size, step, blocks, each, n, mean)
    weights = (n - torch.arange(entries) * each).clamp(max=each).double()
    apart = torch.arange(entries) - torch.arange(blocks)[:, None] * step
    inside = torch.where((apart >= 0) & (apart < size), weights, 0.0)
    total = inside @ x.double()
    if mean:
        total = total / inside.sum(-1, keepdim=True)
    torch.testing.assert_close(found.double(), total, rtol=1e-5, atol=1e-5)
    weight = torch.randn(total.shape, dtype=torch.float64)
    (one,) = torch.autograd.grad((found * weight.float()).sum(), x, retain_graph=True)
    (two,) = torch.autograd.grad((total * weight).sum(), x)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


UNITS = """pattern units(size: int in 1.. = 16) {
  axis blk = token by size
  let rows = mean(unit(Q), per = q.blk)
  let columns = sum(unit(K), per = k.blk)
  let chosen = score(rows, columns) |> top(2)
  export found = columns
  keep chosen
}
"""


def test_means_of_vectors_of_length_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, n = spdsl.compile(spdsl.loads(UNITS)).bind(2, 1, 24), 70
    q, k = torch.randn(2, 2, n, 24).half(), torch.randn(2, 1, n, 24).half()
    q[:, :, 5], k[:, :, 6] = 0.0, 0.0  # no direction
    calls = [graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=way) for way in (True, False)]
    started = list[plain.Launch]()

    def start(launch: plain.Launch) -> None:
        started.append(launch)
        plain.start(launch)

    monkeypatch.setattr(mean_kernels, "start", start)
    one, two = (graphs.exports(pattern, call)["found"] for call in calls)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    one, two = (dense(next(iter(graphs.selections(pattern, call).values())), 5) for call in calls)
    assert torch.equal(one, two)
    assert len(started) == 3


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_outputs_put_together(count: int) -> None:
    outs = torch.randn(count, 2, 3, 37, 24)
    lses = torch.randn(count, 2, 3, 37) * 3
    lses[:, 0, 0, 5] = -torch.inf
    lses[0, 1, :, 7] = -torch.inf
    out, lse = put_together(list(outs), list(lses))
    wanted = lses.logsumexp(0)
    shares = torch.where(wanted > -torch.inf, torch.exp(lses - wanted), 0.0)
    torch.testing.assert_close(lse, wanted)
    torch.testing.assert_close(out, (outs * shares[..., None]).sum(0) if count > 1 else outs[0])


@pytest.mark.parametrize("block", [4, 16])
def test_llsa(block: int) -> None:
    """The whole pyramid with all gradients; its runs of 16 queries that have picked alike have tiles of their own."""
    case = Case(name="llsa", parameters={"block": block, "picks": (3, 2)})
    attn = spdsl.compile("llsa", **case.parameters)  # type: ignore[arg-type]
    q = torch.randn(1, 2, 600, 8)
    words = graphs.makers(attn.bind(2, 2, 8), graphs.Inputs(q=q, k=q, v=q, tables={}, q_start=0, kernels=True))
    assert all(each.startswith("by kernels") for each in words.values()), words
    n = 90 if block == 4 else 600
    check(case, Sizes(batch=1, heads=2, groups=2, nq=n, n=n), dtype=torch.float16, backend="triton")


@pytest.mark.parametrize(("block", "nq", "n"), [(16, 90, 90), (12, 50, 50), (16, 21, 70)])
def test_blocks_of_queries_are_folded(block: int, nq: int, n: int) -> None:
    """Sums and maxima over the queries of a block, which are rows of one tile where they are a power of two."""
    pattern = spdsl.compile("flashprefill", block=block, alpha=0.1).bind(2, 1, 16)
    assert pattern.graph is not None
    generator = torch.Generator().manual_seed(n)
    q = torch.randint(-2, 3, (1, 2, nq, 16), generator=generator).half()
    k = torch.randint(-2, 3, (1, 1, n, 16), generator=generator).half()
    calls = [graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=n - nq, kernels=way) for way in (True, False)]
    assert all(each.startswith("by kernels") for each in graphs.makers(pattern, calls[0]).values())
    (found,), (wanted,) = (graphs.selections(pattern, call).values() for call in calls)
    columns = -(-n // block)
    assert torch.equal(dense(found, columns), dense(wanted, columns))
    assert bool(dense(found, columns).any())


REDUCED = """pattern reduced() {{
  axis blk = token by 8
  let seen = score(Q, K) |> only(k <= q)
  let row = seen |> max(over = k) |> {over}(per = q.blk)
  let whole = seen |> {over}(per = q.blk)
  keep abs(whole) >= row / 4
}}
"""


@pytest.mark.parametrize("over", ["sum", "mean", "min", "max"])
def test_reductions_of_folded_rows(over: str) -> None:
    """Every reduction of numbers, with a NaN among them."""
    pattern = spdsl.compile(spdsl.loads(REDUCED.format(over=over))).bind(1, 1, 16)
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randint(-2, 3, (2, 1, 1, 37, 16), generator=generator).half()
    if over in ("min", "max"):
        q[0, 0, 9, 3] = float("nan")
    calls = [graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=way) for way in (True, False)]
    assert all(each.startswith("by kernels") for each in graphs.makers(pattern, calls[0]).values())
    (found,), (wanted,) = (graphs.selections(pattern, call).values() for call in calls)
    assert torch.equal(dense(found, 37), dense(wanted, 37))
    assert bool(dense(found, 37).any())
