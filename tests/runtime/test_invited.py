"""Members that invite queries and keys: what gathered rows give, against members one by one and the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.runtime import graphs, invited
from spdsl.runtime.invited import invited as invited_of

CLUSTERS = """pattern clusters(picks: int = 7) {
  input mu: float[%(axes)s, d]
  let asks = score(Q, mu) |> top(picks, over = q)
  let answers = score(K, mu) |> only(k %% 3 != 0) |> top(picks, over = k)
  return mean(attend { keep %(keep)s %(more)s }, over = c)
}
"""
PAIRS = "causal and asks and answers"


def compiled(axes: str = "h, c: 5", keep: str = PAIRS, more: str = "") -> spdsl.Attention:
    return spdsl.compile(spdsl.loads(CLUSTERS % {"axes": axes, "keep": keep, "more": more}))


def call(attn: spdsl.Attention, q: Tensor, k: Tensor, v: Tensor, mu: Tensor) -> list[Tensor]:
    """Output and gradients."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = attn(*leaves, mu=mu)
    assert isinstance(out, Tensor)
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, leaves, d_out)]


@pytest.mark.parametrize(("nq", "n"), [(31, 31), (9, 31), (3, 3)])
@pytest.mark.parametrize("axes", ["h, c: 5", "c: 5"])
def test_gathered_rows(axes: str, nq: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(nq)
    q, k, v = (torch.randn(2, heads, rows, 16, generator=generator) for heads, rows in ((4, nq), (2, n), (2, n)))
    mu = torch.randn(*((4,) if "h" in axes else ()), 5, 16, generator=generator)
    attn = compiled(axes)
    graph = attn.bind(4, 2, 16).graph
    assert graph is not None
    assert len(invited_of(graph)) == 1
    found = [call(attn, q, k, v, mu)]
    monkeypatch.setattr(invited, "_PAIRS", 1)  # one member at once
    found.append(call(attn, q, k, v, mu))
    monkeypatch.setattr(graphs, "invited", lambda graph: {})
    one_by_one = call(attn, q, k, v, mu)
    expected = attn.reference(q, k, v, mu=mu)
    assert torch.allclose(one_by_one[0], expected.float(), atol=1e-5)
    # Nobody has invited some queries, or nothing that they may see.
    assert nq == 9 or bool((one_by_one[0] == 0).all(-1).any())
    for each in found:
        for one, other in zip(each, one_by_one, strict=True):
            assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("keep", "more"),
    [
        ("causal and asks", ""),
        ("causal and (asks or answers)", ""),
        (PAIRS, "bias 0.1 * (k - q)"),
        (PAIRS, "softcap 5.0"),
        ("h < 2 and asks and answers", ""),
    ],
)
def test_other_sets_are_walked_one_by_one(keep: str, more: str) -> None:
    graph = compiled(keep=keep, more=more).bind(4, 2, 16).graph
    assert graph is not None
    assert invited_of(graph) == {}


@pytest.mark.parametrize(("nq", "n"), [(0, 31), (0, 0)])
def test_nothing_to_invite(nq: int, n: int) -> None:
    q, k = torch.zeros(1, 4, nq, 16), torch.zeros(1, 2, n, 16)
    out = compiled()(q, k, k, mu=torch.zeros(4, 5, 16))
    assert isinstance(out, Tensor)
    assert out.shape == q.shape
