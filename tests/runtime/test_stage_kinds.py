"""What single stages compute, by hand: ranks, budgets of several axes, neighbours, prefixes, vectors, segments."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl import reference
from spdsl.diagnostics import SpatError
from tests.library.compare import relative_error

N, D = 23, 8


def exported(body: str, q: Tensor, k: Tensor, v: Tensor, **inputs: Tensor) -> Tensor:
    """The export `x` of a pattern, which is that of the reference, too."""
    attn = spdsl.compile(spdsl.loads("pattern one() {\n" + body + "\n  keep causal\n}"))
    found = attn.exports(q, k, v, **inputs)["x"]
    bound = attn.bind(q.shape[1], k.shape[1], D)
    wanted = reference.exports(bound, q, k, v, tables=inputs, q_start=k.shape[2] - q.shape[2])["x"]
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-5, atol=1e-5)
    return found


def tensors(heads: int = 4, groups: int = 2, nq: int = N) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(nq)
    q = torch.randn(1, heads, nq, D, generator=generator)
    return q, *torch.randn(2, 1, groups, N, D, generator=generator).unbind(0)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT / math.sqrt(D)


@pytest.mark.parametrize("nq", [N, 9])
def test_rank(nq: int) -> None:
    q, k, v = tensors(nq=nq)
    found = exported("let s = score(Q, K) |> only(causal)\n export x = s |> top(3, rank = a)", q, k, v)
    value = scores(q, k)[0]
    assert found.shape == (1, 4, 3, nq, N)
    for h in range(4):
        for row in range(nq):
            t = row + N - nq
            order = value[h, row, : t + 1].argsort(descending=True)[:3].tolist()
            chosen = [found[0, h, place, row].nonzero().flatten().tolist() for place in range(3)]
            assert chosen == [[j] for j in order] + [[]] * (3 - len(order))


def test_whole_parts_of_candidates() -> None:
    """What is removed stays removed, and ties of floors go to the smaller index."""
    q, k, v = tensors()
    found = exported("let s = score(Q, K) |> only(causal)\n export x = floor(s) |> top(2)", q, k, v)[0]
    value = scores(q, k)[0].floor()
    for h in range(4):
        for t in range(N):
            best = sorted(range(t + 1), key=lambda j, h=h, t=t: (-value[h, t, j].item(), j))[:2]
            assert found[h, t].nonzero().flatten().tolist() == sorted(best)


def test_several_axes_have_one_budget() -> None:
    q, k, v = tensors()
    found = exported("export x = score(Q, K) |> only(causal) |> top(7, over = (h, k))", q, k, v)[0]
    value = scores(q, k)[0]
    for t in range(N):
        pairs = [(-value[h, t, j].item(), h, j) for h in range(4) for j in range(t + 1)]
        wanted = {(h, j) for _, h, j in sorted(pairs)[:7]}
        assert {tuple(x) for x in found[:, t].nonzero().tolist()} == wanted


def test_queries_compete() -> None:
    q, k, v = tensors(nq=9)
    mu = torch.randn(4, 3, D, generator=torch.Generator().manual_seed(5))
    body = "input mu: float[h, c: 3, d]\n export x = score(Q, mu) |> top(2, over = q)"
    found = exported(body, q, k, v, mu=mu)[0]
    wanted = torch.zeros(4, 3, 9, dtype=torch.bool).scatter(-1, (mu @ q[0].mT).topk(2).indices, True)
    assert torch.equal(found, wanted)


def test_a_least_number() -> None:
    q, k, v = tensors()
    text = "export x = score(Q, K) |> only(causal) |> softmax |> top_p(0.3, least = 4)"
    found = exported(text, q, k, v)[0]
    share = scores(q, k)[0].masked_fill(~torch.ones(N, N).tril().bool(), -torch.inf).softmax(-1)
    for h in range(4):
        for t in range(N):
            order = share[h, t].argsort(descending=True).tolist()
            taken, number = 0.0, 0
            while number < t + 1 and (taken < 0.3 or number < 4):
                taken += share[h, t, order[number]].item()
                number += 1
            assert set(found[h, t].nonzero().flatten().tolist()) == set(order[:number])


@pytest.mark.parametrize("width", [1, 3, 7])
def test_neighbours(width: int) -> None:
    q, k, v = tensors()
    found = exported(f"export x = score(Q, K) |> only(k != 4) |> smooth({width})", q, k, v)[0]
    value = scores(q, k)[0].clone()
    value[..., 4] = 0
    for j in range(N):
        near = range(max(0, j - width // 2), min(N, j + width // 2 + 1))
        wanted = value[..., list(near)].sum(-1) / width * (j != 4)
        torch.testing.assert_close(found[..., j], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nq", [N, 6])
def test_prefixes_and_their_gradients(nq: int) -> None:
    q, k, v = tensors(nq=nq)
    found = exported("export x = mean(V, upto = q)", q, k, v)[0]
    wanted = torch.stack([v[0, :, : t + 1].mean(1) for t in range(N - nq, N)], 1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    attn = spdsl.compile(spdsl.loads("pattern p1() { return attend { keep causal } + mean(V, upto = q) }"))
    leaf = v.clone().requires_grad_()
    weight = torch.randn(1, 4, nq, D, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((attn(q, k, leaf) * weight).sum(), leaf)
    (other,) = torch.autograd.grad((attn.reference(q, k, leaf) * weight).sum(), leaf)
    assert relative_error(gradient, other) <= 2e-5


def test_vectors() -> None:
    q, k, v = tensors()
    q[0, 0, 3] = 0
    assert torch.equal(exported("export x = norm(Q)", q, k, v)[0, 0, 3], torch.tensor(0.0))
    torch.testing.assert_close(exported("export x = norm(Q)", q, k, v), q.norm(dim=-1))
    torch.testing.assert_close(exported("export x = unit(Q)", q, k, v), torch.nn.functional.normalize(q, dim=-1))
    share = scores(q, k).masked_fill(~torch.ones(N, N).tril().bool(), -torch.inf).softmax(-1)
    mixed = exported("export x = mix(score(Q, K) |> only(causal) |> softmax, V)", q, k, v)
    torch.testing.assert_close(mixed, share @ v.repeat_interleave(2, 1), rtol=1e-5, atol=1e-5)


def test_gradients_of_vectors_of_length_0() -> None:
    text = "pattern p1() { return attend { keep causal  bias norm(K) } + attend(unit(Q), unit(K), V) { keep causal } }"
    attn = spdsl.compile(spdsl.loads(text))
    q, k, v = tensors()
    q[0, 0, 3] = k[0, 0, 3] = 0
    leaves = [x.requires_grad_() for x in (q, k, v)]
    found = torch.autograd.grad(attn(*leaves).square().sum(), leaves)
    wanted = torch.autograd.grad(attn.reference(*leaves).square().sum(), leaves)
    for one, two in zip(found, wanted, strict=True):
        assert bool(torch.isfinite(one).all())
        assert relative_error(one, two) <= 2e-5


def test_members_of_segments() -> None:
    cut = torch.tensor([0] * 4 + [1] * 1 + [3] * 10 + [4] * (N - 15))
    body = "input cut: int[token] sorted\n axis part = token by cut\n"
    q, k, v = tensors()
    value = "if k.part.first <= q and k.part.last >= q - 3 then k.part.size else 0"
    found = exported(f"{body} export x = score(Q, mean(K, per = k.part)) * 0.0 + ({value})", q, k, v, cut=cut)[0, 0]
    for t in range(N):
        for part in (0, 1, 3, 4):
            inside = (cut == part).nonzero().flatten().tolist()
            assert found[t, part] == (len(inside) if inside[0] <= t and inside[-1] >= t - 3 else 0)


@pytest.mark.parametrize("width", [0, 2, -1])
def test_even_numbers_of_neighbours(width: int) -> None:
    text = "pattern p1(width: int) { keep causal  export x = score(Q, K) |> smooth(width) }"
    with pytest.raises(SpatError) as caught:
        spdsl.compile(spdsl.loads(text), width=width).bind(1, 1, 8)
    assert caught.value.code == "SP333"


def test_a_rank_of_no_fixed_length() -> None:
    text = "pattern p1() { keep causal  export x = score(Q, K) |> top(n // 2, rank = a) }"
    with pytest.raises(SpatError) as caught:
        spdsl.compile(spdsl.loads(text)).bind(1, 1, 8)
    assert caught.value.code == "SP333"


def test_shares_of_merges_are_constants_where_it_is_said() -> None:
    """Gradients of queries and keys through the weights of a merge are left out, those through its parts are not."""
    base = "return merge(attend {{ keep q - k < 4 and causal }}, attend {{ keep q - k >= 4 }}{0})"
    stopped, whole = (
        spdsl.compile(spdsl.loads("pattern p1() { " + base.format(more) + " }")) for more in (", grad = stop", "")
    )
    q, k, v = (x.double().requires_grad_() for x in tensors(2, 2))
    near = torch.ones(N, N).tril().bool() & ~torch.ones(N, N).tril(-4).bool()
    far = torch.ones(N, N).tril(-4).bool()
    value = scores(q, k)
    parts = [value.masked_fill(~keep, -torch.inf) for keep in (near, far)]
    lses = torch.stack([part.logsumexp(-1) for part in parts]).detach()
    shares = lses.softmax(0)[..., None]
    outs = [torch.nan_to_num(part.softmax(-1)) @ v for part in parts]
    outs[1] = torch.cat([torch.zeros_like(outs[1][:, :, :4]), outs[1][:, :, 4:]], 2)
    weight = torch.randn(1, 2, N, D, generator=torch.Generator().manual_seed(1)).double()
    wanted = torch.autograd.grad(((shares[0] * outs[0] + shares[1] * outs[1]) * weight)[:, :, 4:].sum(), (q, k, v))
    leaves = [x.detach().float().requires_grad_() for x in (q, k, v)]
    found = torch.autograd.grad((stopped(*leaves) * weight.float())[:, :, 4:].sum(), leaves)
    other = torch.autograd.grad((whole(*leaves) * weight.float())[:, :, 4:].sum(), leaves)
    for one, two in zip(found, wanted, strict=True):
        assert relative_error(one, two) <= 2e-5
    assert relative_error(other[0], wanted[0]) > 1e-3


LAYERS = """pattern by_layer(block: int in 1.. = 4) {
  axis blk = token by block
  let coarse = attend(Q, mean(K, per = k.blk), mean(V, per = k.blk)) { keep k.blk.last <= q }
  return if layer % 2 == 0 then coarse else attend { keep causal  softcap 5.0 }
}
"""


@pytest.mark.parametrize("layer", [0, 1])
def test_a_choice_by_layer_runs_one_branch(layer: int) -> None:
    attn = spdsl.compile(spdsl.loads(LAYERS), layer=layer)
    graph = attn.bind(4, 2, D).graph
    assert graph is not None
    (taken,) = graph.attentions
    assert taken.columns == ("k.blk" if layer == 0 else "k")
    q, k, v = tensors()
    if layer == 0:
        keys, values = (x[:, :, :20].unflatten(2, (5, 4)).mean(3).repeat_interleave(2, 1) for x in (k, v))
        logits = q @ keys.mT / math.sqrt(D)
        there = 4 * torch.arange(5) + 3 <= torch.arange(N)[:, None]
    else:
        keys, values = (x.repeat_interleave(2, 1) for x in (k, v))
        logits = 5 * torch.tanh(q @ keys.mT / math.sqrt(D) / 5)
        there = torch.ones(N, N).tril().bool()
    wanted = torch.nan_to_num(logits.masked_fill(~there, -torch.inf).softmax(-1)) @ values
    torch.testing.assert_close(attn(q, k, v), wanted, rtol=1e-4, atol=1e-5)


def test_a_choice_by_request_visits_the_branch_of_each() -> None:
    """A sequence that streams costs its window; one that does not, the triangle."""
    q, k, v = torch.randn(3, 2, 1, 1024, D)
    attn = spdsl.compile("flux", sinks=64, window=64)
    counts = []
    for full in (False, True):
        text = attn.explain(q, k, v, full=torch.tensor([full, full]))
        found = re.search(r"pairs kept: ([\d,]+) of .*?, ([\d,]+) touched", text, re.DOTALL)
        assert found is not None
        counts.append(tuple(int(each.replace(",", "")) for each in found.groups()))
    streaming = sum(len({*range(max(0, t - 63), t + 1), *range(min(64, t + 1))}) for t in range(1024))
    # Tiles of 64 × 64: two sequences, of 16 rows each.
    assert counts == [(2 * streaming, 2 * (1 + 2 + 14 * 3)), (1024 * 1025, 2 * 16 * 17 // 2)]


DEEP = """pattern deep() {
  input cut: int[token] sorted
  axis chunk = token by cut
  axis pair = chunk by 2
  let chosen = score(Q, mean(K, per = k.pair)) |> top(1)
  keep causal and chosen
}"""


@pytest.mark.parametrize("pattern", ["dhsa", spdsl.loads(DEEP)], ids=["dhsa", "divided again"])
def test_all_sequences_share_the_axes_of_stages(pattern: str | spdsl.Pattern) -> None:
    q, k, v = torch.randn(3, 2, 1, 12, D)
    cut = torch.arange(12, dtype=torch.int32) // 4
    attn = spdsl.compile(pattern)
    wanted = attn.reference(q, k, v, cut=cut[None])
    torch.testing.assert_close(attn(q, k, v, cut=cut[None]).double(), wanted, rtol=1e-4, atol=1e-5)
    for call in (attn, attn.reference):
        with pytest.raises(spdsl.SpatError, match=r"makes the axis `(chunk|pair)` of a stage") as caught:
            call(q, k, v, cut=torch.stack([cut, cut]))
        assert caught.value.code == "SP346"
