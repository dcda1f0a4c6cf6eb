"""Patterns in small models of diffusers with random weights: beside their own attention, dense and under masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl import models

diffusers = pytest.importorskip("diffusers")

SIDE = 8
ATTENTION = torch.nn.functional.scaled_dot_product_attention


def unet() -> Any:
    """Self-attention over 8 × 8 and 4 × 4 tokens."""
    torch.manual_seed(0)
    levels = {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2}
    sizes = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 4}
    return diffusers.UNet2DModel(sample_size=SIDE, in_channels=3, out_channels=3, **levels, **sizes).eval()


def video() -> Any:
    """Self-attention over 3 × 4 × 4 tokens, and attention over a text."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "attention_head_dim": 12, "rope_max_seq_len": 32, "num_layers": 2}
    sizes = {"in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32}
    return diffusers.WanTransformer3DModel(patch_size=(1, 2, 2), **heads, **sizes).eval()


def image(model: Any) -> Tensor:
    noise = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return model(noise, torch.tensor([3, 70])).sample  # type: ignore[no-any-return]


def frames(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise, text = torch.randn(1, 4, 3, 8, 8, generator=generator), torch.randn(1, 5, 16, generator=generator)
    return model(noise, torch.tensor([3]), text).sample  # type: ignore[no-any-return]


MODELS: dict[str, tuple[Callable[[], Any], Callable[[Any], Tensor]]] = {"unet": (unet, image), "video": (video, frames)}


@contextmanager
def masked(masks: dict[int, Tensor]) -> Iterator[None]:
    """While this lasts, torch's attention over so many tokens is masked; by hand, without a pattern."""

    def attend(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
        if query.shape[-2] == key.shape[-2]:
            given["attn_mask"] = masks[query.shape[-2]]
        return ATTENTION(query, key, value, **given)

    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attend):
        yield


def near(sizes: tuple[int, ...], window: tuple[int, ...]) -> Tensor:
    """Which tokens of a grid are in the window around each, which stays inside of the grid."""
    axes = [torch.arange(size) for size in sizes]
    at = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(sizes))
    first = torch.stack(
        [(at[:, i] - window[i] // 2).clamp(0, max(0, sizes[i] - window[i])) for i in range(len(sizes))], dim=-1
    )
    inside = (at[None] >= first[:, None]) & (at[None] < first[:, None] + torch.tensor(window))
    return inside.all(-1)


@pytest.mark.parametrize("name", MODELS)
def test_full_is_the_models_own(name: str) -> None:
    make, run = MODELS[name]
    model = make()
    expected = run(model)
    models.use(model, "full")
    found = run(model)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    kinds = {(m.is_cross_attention, type(m.processor).__name__) for m in model.modules() if hasattr(m, "set_processor")}
    assert (False, "Processor") in kinds
    assert not kinds & {(True, "Processor"), (False, "AttnProcessor2_0"), (False, "WanAttnProcessor")}


def processors(model: Any) -> dict[str, Any]:
    return {name: m.processor for name, m in model.named_modules() if hasattr(m, "set_processor")}


def test_a_grid_on_every_level() -> None:
    model = unet()
    with masked({64: near((8, 8), (3, 3)), 16: near((4, 4), (3, 3))}):
        expected = image(model)
    dense = image(model)
    models.use(model, "neighborhood_2d", extents=(SIDE, SIDE), window=(3, 3))
    found = image(model)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - dense).abs().max() > 1e-3


def test_a_grid_of_frames_beside_a_text() -> None:
    model = video()
    with masked({48: near((3, 4, 4), (1, 3, 3))}):
        expected = frames(model)
    dense = frames(model)
    models.use(model, "neighborhood_3d", extents=(3, 4, 4), window=(1, 3, 3))
    found = frames(model)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - dense).abs().max() > 1e-4


def test_a_pattern_of_ones_own_with_plain_sizes() -> None:
    text = """pattern rows(height: int, width: int, reach: int = 1) {
      grid (y: height, x: width)
      keep abs(q.y - k.y) <= reach
    }"""
    model = unet()
    masks = {side * side: (torch.arange(side * side)[:, None] // side - torch.arange(side * side) // side).abs() <= 1
             for side in (8, 4)}  # fmt: skip
    with masked(masks):
        expected = image(model)
    models.use(model, spdsl.loads(text), height=SIDE, width=SIDE)
    torch.testing.assert_close(image(model), expected, atol=1e-5, rtol=1e-5)


def test_gradients() -> None:
    model, other = unet(), unet()
    models.use(model, "neighborhood_2d", extents=(SIDE, SIDE), window=(3, 3))
    image(model).square().sum().backward()
    with masked({64: near((8, 8), (3, 3)), 16: near((4, 4), (3, 3))}):
        image(other).square().sum().backward()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=1e-3, rtol=1e-3)


def test_some_layers_and_back() -> None:
    model = unet()
    before, expected = processors(model), image(model)
    models.use(
        model, "neighborhood_2d", extents=(SIDE, SIDE), window=(3, 3), layers=lambda name, _: name.startswith("up")
    )
    changed = [name for name, each in processors(model).items() if type(each).__name__ == "Processor"]
    assert len(changed) == 4
    assert all(name.startswith("up") for name in changed)
    models.use(model, "full")  # in the place of ours, not around it
    torch.testing.assert_close(image(model), expected, atol=1e-5, rtol=1e-5)
    assert not any(type(each.inner).__name__ == "Processor" for each in processors(model).values())
    models.restore(model)
    assert processors(model) == before
    assert torch.equal(image(model), expected)


def _refused(run: Callable[[], object], words: str) -> None:
    with pytest.raises(spdsl.SpatError) as caught:
        run()
    assert caught.value.code == "SP642"
    assert words in str(caught.value)


def test_mistakes() -> None:
    model = unet()
    models.use(model, "neighborhood_2d", extents=(9, 9), window=(3, 3))
    _refused(lambda: image(model), "64 tokens, but the grid of `neighborhood_2d` is 9 × 9")
    _refused(lambda: models.use(model, "full", layers=lambda name, _: False), "`layers` chooses")
    _refused(lambda: models.use(model, spdsl.compile("full")), "takes one pattern")
    _refused(lambda: models.use(torch.nn.Linear(2, 2), "full", layers=lambda name, _: True), "for models of diffusers")
    model = unet()
    for module in model.modules():
        if hasattr(module, "set_processor"):
            module.set_processor(diffusers.models.attention_processor.AttnProcessor())
    models.use(model, "full")
    _refused(lambda: image(model), "does not call torch's")
    model = unet()
    model.mid_block.attentions[0].set_processor(torch.nn.Identity())
    _refused(lambda: models.use(model, "full"), "has weights of its own")


@torch.no_grad()  # torch's compiler asks tensors between graphs for gradients, and warns
def test_compiled_around_attention() -> None:
    model = video()
    models.use(model, "neighborhood_3d", extents=(3, 4, 4), window=(1, 3, 3))
    expected = frames(model)
    torch.testing.assert_close(frames(torch.compile(model, backend="aot_eager")), expected, atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()
