"""Mistakes in calls from Python: each is answered by its code and a remedy, and odd but right values are taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

import spdsl

Q = torch.zeros(1, 2, 16, 16)


def causal(q: torch.Tensor = Q, **places: Any) -> Any:
    return spdsl.compile("causal")(q, Q, Q, **places)


def documents(**inputs: Any) -> object:
    return spdsl.compile("documents")(Q, Q, Q, **inputs)


def forward_mode() -> object:
    with forward_ad.dual_level():
        return causal(q=forward_ad.make_dual(Q, Q))


def twice_differentiated() -> object:
    q = Q.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(causal(q=q).sum(), q, create_graph=True)
    return torch.autograd.grad(gradient.sum(), q)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, in forward mode
@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: spdsl.compile("streamin"), "SP601"),
        (lambda: spdsl.compile("nothing.spat"), "SP601"),
        (lambda: spdsl.compile("pattern p() { keep causal }"), "SP601"),
        (lambda: spdsl.compile(None), "SP601"),
        (lambda: spdsl.loads(b"pattern p() { keep causal }"), "SP601"),
        (lambda: spdsl.compile("streaming", windw=4), "SP330"),
        (lambda: spdsl.compile("streaming", window=1.5), "SP332"),
        (lambda: spdsl.compile("streaming", window="5"), "SP332"),
        (lambda: spdsl.compile("streaming", window={5}), "SP332"),
        (lambda: spdsl.compile("streaming", window=torch.ones(2)), "SP332"),
        (lambda: spdsl.compile("streaming", window=0), "SP333"),
        (lambda: spdsl.compile("neighborhood_2d", extents=(4, 4), window=3), "SP334"),
        (lambda: spdsl.compile("causal", backend="gpu"), "SP311"),
        (lambda: spdsl.compile(spdsl.loads("pattern p() { keep layer == 1 }")), "SP335"),
        (lambda: spdsl.load("causal").mask(-1, 4), "SP303"),
        (lambda: spdsl.load("causal").mask(2, 4, heads=3, groups=2), "SP338"),
        (lambda: spdsl.load("documents").mask(4, 4), "SP302"),
        (lambda: spdsl.compile("causal")(Q[0], Q, Q), "SP340"),
        (lambda: spdsl.compile("causal")(Q.numpy(), Q, Q), "SP341"),
        (lambda: spdsl.compile("causal")(Q.double(), Q.double(), Q.double()), "SP341"),
        (lambda: spdsl.compile("causal")(Q, Q[:, :, :4], Q[:, :, :4]), "SP304"),
        (lambda: spdsl.compile("causal")(Q, Q, Q[..., :0]), "SP344"),
        (lambda: spdsl.compile("causal").reference(Q[0], Q, Q), "SP340"),
        (lambda: spdsl.compile("causal").reference(Q, Q, 3), "SP341"),
        (lambda: torch.func.vmap(spdsl.compile("causal"))(Q[None], Q[None], Q[None]), "SP349"),
        (lambda: torch.func.grad(lambda q: causal(q=q).sum())(Q), "SP349"),
        (lambda: torch.func.jvp(lambda q: causal(q=q), (Q,), (Q,)), "SP349"),
        (forward_mode, "SP349"),
        (twice_differentiated, "SP349"),
        (lambda: causal(q_start=1.5), "SP303"),
        (lambda: causal(q_start=torch.tensor([1, 2])), "SP303"),
        (lambda: causal(k_len=17), "SP303"),
        (lambda: causal(k_len=torch.tensor([17])), "SP303"),
        (lambda: causal(k_len=torch.tensor([-1])), "SP303"),
        (lambda: causal(k_len=torch.tensor([2.5])), "SP303"),
        (lambda: causal(k_len=torch.tensor([True])), "SP303"),
        (lambda: causal(k_start=torch.tensor([3]), k_len=16), "SP303"),
        (documents, "SP302"),
        (lambda: documents(docs=torch.zeros(16)), "SP301"),
        (lambda: documents(doc=torch.zeros(16)), "SP347"),
        (lambda: documents(doc=None), "SP347"),
        (lambda: documents(doc="0011"), "SP347"),
        (lambda: documents(doc=[[0, 1], [2]]), "SP347"),
        (lambda: documents(doc=torch.zeros(15, dtype=torch.int64)), "SP346"),
        (lambda: documents(doc=torch.arange(16).flip(0)), "SP350"),
    ],
)
def test_mistakes(call: Callable[[], object], code: str) -> None:
    with pytest.raises(spdsl.SpatError) as caught:
        call()
    assert caught.value.code == code
    assert caught.value.help


def test_numbers_of_numpy_are_numbers() -> None:
    attend = spdsl.compile("streaming", window=np.int64(4), sinks=torch.tensor(1))
    assert attend.parameters == {"window": 4, "sinks": 1}
    same = spdsl.compile("neighborhood_2d", extents=np.array([4, 4]).tolist(), window=(np.int32(3), 3))
    assert same(Q, Q, Q).shape == Q.shape


def test_inputs_may_be_lists() -> None:
    assert spdsl.load("documents").mask(3, 3, doc=[0, 0, 1]).sum() == 4


def test_nothing_in_nothing_out() -> None:
    for batch, queries, keys in ((0, 4, 4), (2, 0, 4), (2, 4, 0)):
        q = torch.zeros(batch, 2, queries, 16, requires_grad=True)
        k = torch.zeros(batch, 2, keys, 16, requires_grad=True)
        out = spdsl.compile("causal")(q, k, k, q_start=0)
        assert out.shape == q.shape
        out.sum().backward()
        assert q.grad is not None
        assert not q.grad.any()


def test_shown_in_a_line() -> None:
    pattern = spdsl.load("streaming")
    assert repr(pattern) == "<pattern streaming(window, sinks)>"
    assert repr(spdsl.compile(pattern, window=4, backend="cpu")) == "<attention streaming(window=4, backend='cpu')>"


def test_on_meta_shapes_alone_count() -> None:
    q = Q.to("meta")
    assert spdsl.compile("causal")(q, q, q).shape == Q.shape


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: spdsl.compile("documents").explain(Q, Q, Q, doc=torch.zeros(4, dtype=torch.int32)), "SP346"),
        (lambda: spdsl.compile("documents").explain(Q, Q, Q, doc=torch.arange(16).flip(0)), "SP350"),
        (lambda: spdsl.compile("causal").explain(Q, Q[:, :, :4], Q[:, :, :4]), "SP304"),
        (lambda: spdsl.compile("causal").explain(Q[0], Q, Q), "SP340"),
        (lambda: spdsl.compile("neighborhood_2d", extents=(4, 5), window=(3, 3)).explain(Q, Q, Q), "SP324"),
    ],
)
def test_what_cannot_be_called_is_not_explained(call: Callable[[], object], code: str) -> None:
    with pytest.raises(spdsl.SpatError) as caught:
        call()
    assert caught.value.code == code


def test_more_queries_than_keys_are_explained_as_they_are_called() -> None:
    assert "pairs kept: 128 of 128" in spdsl.compile("full").explain(Q, Q[:, :, :4], Q[:, :, :4])


def test_mistakes_are_placed_in_the_file_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "mine.spat"
    file.write_text(
        "# Packed.\n\npattern packed() {\n  # Which text.\n  input ids: int[token]\n  keep ids[q] == ids[k]\n}\n"
    )
    with pytest.raises(spdsl.SpatError) as caught:
        spdsl.compile(file)(Q, Q, Q, ids=torch.zeros(16))
    assert caught.value.place == f"{file}:5:3"


def test_an_input_may_have_any_name_that_the_language_allows() -> None:
    pattern = spdsl.loads("pattern own() { input self: int[token]  keep self[q] == self[k] }")
    numbers = torch.arange(16) // 5
    found = spdsl.compile(pattern)(Q, Q, Q, self=numbers)
    assert torch.equal(found.double(), spdsl.compile(pattern).reference(Q, Q, Q, self=numbers))
    assert pattern.mask(3, 3, self=[0, 0, 1]).sum() == 5
    assert spdsl.compile(pattern).explain(Q, Q, Q, self=numbers)


def test_an_input_may_be_called_like_a_stage() -> None:
    pattern = spdsl.loads("""pattern drawn() {
      input stage0: int[token]
      axis blk = token by 4
      keep (noise(1, per = (q.blk, k.blk)) |> top(2)) and stage0[q] == stage0[k]
    }""")
    q, numbers = torch.randn(1, 2, 16, 16), torch.arange(16) % 3
    attend = spdsl.compile(pattern)
    expected = attend.reference(q, q, q, stage0=numbers)
    torch.testing.assert_close(attend(q, q, q, stage0=numbers), expected.float())


@pytest.mark.parametrize("elements", [12, 20])
def test_tables_of_a_cache_have_its_rows_or_the_keys_in_use(elements: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 20, 8), torch.randn(1, 2, 20, 8)
    doc = torch.arange(20)[:elements] // 5
    attn = spdsl.compile("documents")
    out = attn(q, k, v, k_len=12, doc=doc)
    torch.testing.assert_close(out, attn(q, k[:, :, :12], v[:, :, :12], doc=doc[:12]))
    torch.testing.assert_close(out.double(), attn.reference(q, k, v, k_len=12, doc=doc))


IMPORTED = """pattern imported() {
  axis blk = token by 4
  input set: bool[g, q, k.blk]
  keep causal and set
}
"""

CHOSEN = IMPORTED.replace("causal and set", "score(Q, mean(K, per = k.blk)) |> only(k.blk < q.blk and set) |> top(2)")


@pytest.mark.parametrize("text", [IMPORTED, CHOSEN], ids=["imported", "chosen"])
@pytest.mark.parametrize(
    ("k_len", "blocks", "fits"),
    [(10, 5, True), (10, 3, True), (10, 4, False), ((10, 14), 5, True), ((10, 10), 3, False), ((3, 14), 5, True)],
)
def test_sets_of_blocks_of_a_cache_have_its_blocks_or_those_in_use(
    text: str, k_len: int | tuple[int, ...], blocks: int, fits: bool
) -> None:
    """Of queries before position 0, too, the reference says what the engines do."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, n, 8, generator=generator) for heads, n in ((2, 6), (1, 18), (1, 18)))
    chosen = torch.rand(1, 6, blocks, generator=generator) < 0.7
    attn = spdsl.compile(spdsl.loads(text), backend="cpu")
    places = {"k_len": k_len if isinstance(k_len, int) else torch.tensor(k_len)}
    if fits:
        torch.testing.assert_close(
            attn(q, k, v, **places, set=chosen), attn.reference(q, k, v, **places, set=chosen).float()
        )
        return
    for call in (attn, attn.reference):
        with pytest.raises(spdsl.SpatError, match=f"`set` has {blocks} elements on axis `k.blk`") as caught:
            call(q, k, v, **places, set=chosen)
        assert caught.value.code == "SP346"


def test_what_cannot_be_trained_is_refused_before_any_work() -> None:
    attn = spdsl.compile(spdsl.loads("pattern p() { input w: float[40]  keep causal  bias w[q + k] }"))
    q = torch.randn(1, 1, 16, 8)
    w = torch.zeros(40, requires_grad=True)
    with pytest.raises(spdsl.SpatError) as caught:
        attn(q, q, q, w=w)
    assert caught.value.code == "SP402"
    with torch.no_grad():
        attn(q, q, q, w=w)
