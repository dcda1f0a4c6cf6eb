"""Patterns in a small model of transformers, against its own eager attention under masks of pairs made by hand."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl import models

transformers = pytest.importorskip("transformers")

WINDOW, SINKS, N = 6, 2, 20
LEFT = (7, 0, 3)
IDS = torch.randint(3, 64, (3, N), generator=torch.Generator().manual_seed(1))
TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": None,
    "pad_token_id": 0,
}  # fmt: skip


def tiny() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY)).eval()


@pytest.fixture
def model() -> Iterator[Any]:
    made = tiny()
    models.use(made, "streaming", window=WINDOW, sinks=SINKS)
    yield made
    torch._dynamo.reset()


def padding(side: str) -> Tensor:
    """1 where there is a token; sequences lack 7, 0 and 3 of them."""
    mask = torch.ones(3, N, dtype=torch.long)
    for row, count in enumerate(LEFT):
        if side == "left":
            mask[row, :count] = 0
        elif side == "right" and count:
            mask[row, -count:] = 0
    return mask


def pairs(padding: Tensor) -> Tensor:
    """What `streaming` keeps, [batch, 1, query, key]: positions count each sequence's own tokens."""
    at = padding.cumsum(1) - 1
    q, k = at[:, None, :, None], at[:, None, None, :]
    kept = (k <= q) & ((q - k < WINDOW) | (k < SINKS))
    return kept & padding[:, None, None, :].bool() & padding[:, None, :, None].bool()


def expected(mask: Tensor, like: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of transformers' own attention."""
    own = copy.deepcopy(like)
    own.set_attn_implementation("eager")
    added = torch.where(pairs(mask), 0.0, torch.finfo(torch.float32).min)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = own(IDS, attention_mask=added, position_ids=positions, use_cache=False).logits
    loss(logits, mask).backward()
    return logits.detach(), {name: each.grad for name, each in own.named_parameters()}


def loss(logits: Tensor, mask: Tensor) -> Tensor:
    each = torch.nn.functional.cross_entropy(logits[:, :-1].mT.float(), IDS[:, 1:], reduction="none")
    return (each * mask[:, :-1]).sum() / mask.sum()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # its new name is not in 5.0
@pytest.mark.parametrize(
    ("side", "checkpointing"),
    [
        ("left", False),
        pytest.param("right", False, marks=pytest.mark.slow),
        pytest.param("none", False, marks=pytest.mark.slow),
        pytest.param("left", True, marks=pytest.mark.slow),
    ],
)
def test_logits_and_gradients(model: Any, side: str, checkpointing: bool) -> None:
    mask = padding(side)
    truth, gradients = expected(mask, model)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    given = {} if side == "none" else {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    logits = model(IDS, use_cache=False, **given).logits
    torch.testing.assert_close(logits * mask[..., None], truth * mask[..., None], atol=1e-5, rtol=1e-5)
    loss(logits, mask).backward()
    for name, each in model.named_parameters():
        torch.testing.assert_close(each.grad, gradients[name], atol=1e-6, rtol=1e-4)


def test_autocast(model: Any) -> None:
    truth = model(IDS).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(IDS).logits
        loss(logits, padding("none")).backward()
    assert logits.dtype == torch.bfloat16
    assert (logits - truth).norm() <= 2e-2 * truth.norm()


@pytest.mark.parametrize(
    ("side", "cache"),
    [
        ("left", None),
        pytest.param("none", None, marks=pytest.mark.slow),
        pytest.param("left", "static", marks=pytest.mark.slow),
    ],
)
def test_generation_is_that_without_a_cache(model: Any, side: str, cache: str | None) -> None:
    mask, count = padding(side), 5
    found = model.generate(
        IDS,
        attention_mask=mask,
        max_new_tokens=count,
        do_sample=False,
        cache_implementation=cache,
        disable_compile=True,
    )
    ids = IDS
    for _ in range(count):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    assert torch.equal(found, ids)


def test_prefill_in_chunks(model: Any) -> None:
    cache = transformers.DynamicCache(config=model.config)
    parts = [model(part, past_key_values=cache).logits for part in IDS.split([9, 4, 7], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(IDS).logits, atol=1e-5, rtol=1e-5)


def test_layers_may_differ(model: Any) -> None:
    models.use(model, [spdsl.compile("causal"), "sliding_window"])
    assert [layer.self_attn.spdsl_attention.pattern.name for layer in model.model.layers] == [
        "causal",
        "sliding_window",
    ]
    models.use(model, [spdsl.compile("causal"), spdsl.compile("sliding_window", window=3)])
    several = model(IDS).logits
    models.use(model, spdsl.loads("pattern mine(w: int) { keep causal and (layer == 0 or q - k < w) }"), w=3)
    torch.testing.assert_close(model(IDS).logits, several)


def test_inputs_are_arguments_of_the_model(model: Any) -> None:
    models.use(model, "documents")
    doc = torch.arange(N) // 8
    logits = model(IDS, doc=doc, use_cache=False).logits
    torch.testing.assert_close(logits[:, :8], model(IDS[:, :8], doc=doc[:8]).logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits[:, 8:16], model(IDS[:, :16], doc=0 * doc[:16]).logits[:, 8:])


@pytest.mark.slow
@pytest.mark.parametrize("side", ["none", "left"])
def test_whole_graph_is_compiled(model: Any, side: str) -> None:
    given = {} if side == "none" else {"attention_mask": padding(side)}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    logits = compiled(IDS, use_cache=False, **given).logits
    torch.testing.assert_close(logits, model(IDS, use_cache=False, **given).logits)
    loss(logits, padding(side)).backward()
    assert model.lm_head.weight.grad.norm() > 0


def test_models_are_copied_and_stored(model: Any) -> None:
    truth = model(IDS).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        torch.testing.assert_close(other(IDS).logits, truth)


def test_back_to_what_was_before(model: Any) -> None:
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(model(IDS).logits, tiny()(IDS).logits)


def holes() -> Tensor:
    mask = padding("none")
    mask[1, 4] = 0
    return mask


def mistral() -> Any:
    made = transformers.MistralForCausalLM(transformers.MistralConfig(**TINY, sliding_window=4)).eval()
    models.use(made, "causal")
    return made


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda model: models.use(torch.nn.Linear(2, 2), "causal"), "SP642"),
        (lambda model: models.use("llama", "causal"), "SP642"),
        (lambda model: models.use(model, ["causal"]), "SP642"),
        (lambda model: models.use(model, spdsl.compile("streaming"), window=4), "SP642"),
        (lambda model: models.use(model, "streamin"), "SP601"),
        (lambda model: models.use(model, "streaming", windw=4), "SP330"),
        (lambda model: model(IDS, attention_mask=holes()), "SP642"),
        (lambda model: model(IDS, attention_mask=pairs(padding("none"))), "SP642"),
        (lambda model: model(IDS, position_ids=torch.arange(N)[None] % 7, use_cache=False), "SP642"),
        (lambda model: mistral().generate(IDS, max_new_tokens=3), "SP642"),
        (lambda model: models.attend(model, *[torch.zeros(1, 1, 1, 8)] * 3, None), "SP642"),
    ],
)
def test_refused(model: Any, call: Callable[[Any], object], code: str) -> None:
    with pytest.raises(spdsl.SpatError) as caught:
        call(model)
    assert caught.value.code == code
    assert caught.value.help


@pytest.mark.parametrize("given", [{"dropout": 0.1}, {"softcap": 30.0}, {"s_aux": torch.zeros(4)}])
def test_what_the_pattern_does_not_do_is_refused(model: Any, given: dict[str, Any]) -> None:
    q = torch.zeros(1, 4, 8, 8)
    with pytest.raises(spdsl.SpatError, match="SP642"):
        models.attend(model.model.layers[0].self_attn, q, q, q, None, **given)


def test_another_factor_of_the_logits(model: Any) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 4, 8, 8)
    out, _ = models.attend(model.model.layers[0].self_attn, q, k, v, None, scaling=0.9)
    kept = pairs(torch.ones(1, 8, dtype=torch.long))
    truth = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=kept, scale=0.9)
    torch.testing.assert_close(out.transpose(1, 2), truth)


@pytest.mark.slow
def test_packed_texts_are_seen_in_a_compiled_graph(model: Any) -> None:
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), pytest.raises(RuntimeError, match="several texts in one row"):
        compiled(IDS, position_ids=torch.arange(N)[None] % 7, use_cache=False)


def test_back_to_what_it_was() -> None:
    model = tiny()
    before, expected = model.config._attn_implementation, model(IDS).logits
    models.use(model, "streaming", window=WINDOW, sinks=SINKS)
    models.use(model, "sliding_window", window=3)
    assert not torch.allclose(model(IDS).logits, expected, atol=1e-3)
    for _ in range(2):
        models.restore(model)
        assert model.config._attn_implementation == before
        assert torch.equal(model(IDS).logits, expected)
