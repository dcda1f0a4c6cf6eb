"""Models of diffusers with random weights on a GPU, each beside itself with torch's attention under a mask by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl import models
from tests.library.compare import relative_error
from tests.models.test_diffusers import masked, near

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.gpu

WORDS = 77
AMONG_WORDS = """pattern among_words(words: int, height: int, width: int, reach: int) {
  grid picture (y: height, x: width) from words
  keep q < words or k < words or abs(q.y - k.y) <= reach and abs(q.x - k.x) <= reach
}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, a call of it, a pattern with parameters, and by hand the masks of its attentions by their tokens."""

    make: Callable[[], Any]
    run: Callable[[Any], Tensor]
    pattern: str
    parameters: dict[str, Any]
    masks: Callable[[], dict[int, Tensor]]


def unet() -> Any:
    """Self-attention over 32 × 32 and 16 × 16 tokens."""
    levels = {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2}
    sizes = {"layers_per_block": 1, "block_out_channels": (64, 128), "norm_num_groups": 4, "attention_head_dim": 32}
    return diffusers.UNet2DModel(sample_size=32, in_channels=3, out_channels=3, **levels, **sizes)


def picture(model: Any) -> Tensor:
    return model(noise(model, 2, 3, 32, 32), torch.tensor([3, 70], device="cuda")).sample  # type: ignore[no-any-return]


def video() -> Any:
    """Self-attention over 4 × 16 × 16 tokens, and attention over a text."""
    heads = {"num_attention_heads": 2, "attention_head_dim": 64, "rope_max_seq_len": 32, "num_layers": 2}
    sizes = {"in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32}
    return diffusers.WanTransformer3DModel(patch_size=(1, 2, 2), **heads, **sizes)


def frames(model: Any) -> Tensor:
    at = torch.tensor([3], device="cuda")
    return model(noise(model, 1, 4, 4, 32, 32), at, noise(model, 1, 5, 16)).sample  # type: ignore[no-any-return]


def flux() -> Any:
    """Joint attention over 77 words and, after them, 24 × 24 tokens."""
    heads = {"num_attention_heads": 2, "attention_head_dim": 64, "axes_dims_rope": (16, 24, 24)}
    sizes = {"in_channels": 4, "num_layers": 1, "num_single_layers": 1}
    return diffusers.FluxTransformer2DModel(joint_attention_dim=32, pooled_projection_dim=32, **heads, **sizes)


def words_and_picture(model: Any) -> Tensor:
    y, x = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    places = torch.stack((torch.zeros_like(x), y, x), -1).flatten(0, 1).cuda()
    given = {
        "hidden_states": noise(model, 1, 24 * 24, 4),
        "encoder_hidden_states": noise(model, 1, WORDS, 32),
        "pooled_projections": noise(model, 1, 32),
        "img_ids": places,
        "txt_ids": torch.zeros(WORDS, 3, device="cuda"),
    }
    return model(**given, timestep=noise(model, 1).abs()).sample  # type: ignore[no-any-return]


def noise(model: Any, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to("cuda", model.dtype)


def beside_words() -> dict[int, Tensor]:
    mask = torch.ones(WORDS + 24 * 24, WORDS + 24 * 24, dtype=torch.bool)
    at = torch.cartesian_prod(torch.arange(24), torch.arange(24))
    mask[WORDS:, WORDS:] = ((at[:, None] - at).abs() <= 3).all(-1)
    return {len(mask): mask.cuda()}


CASES = {
    "unet": Case(
        make=unet,
        run=picture,
        pattern="neighborhood_2d",
        parameters={"extents": (32, 32), "window": (7, 7)},
        masks=lambda: {side * side: near((side, side), (7, 7)).cuda() for side in (32, 16)},
    ),
    "video": Case(
        make=video,
        run=frames,
        pattern="neighborhood_3d",
        parameters={"extents": (4, 16, 16), "window": (3, 7, 7)},
        masks=lambda: {4 * 16 * 16: near((4, 16, 16), (3, 7, 7)).cuda()},
    ),
    "flux": Case(
        make=flux,
        run=words_and_picture,
        pattern=AMONG_WORDS,
        parameters={"words": WORDS, "height": 24, "width": 24, "reach": 3},
        masks=beside_words,
    ),
}


@pytest.fixture(autouse=True)
def whole_floats() -> Iterator[None]:
    """Convolutions and products of fp32 in fp32, or they differ by more than attention does."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def made(case: Case, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return case.make().to("cuda", dtype).eval()


def sparse(case: Case, model: Any) -> None:
    pattern = spdsl.loads(case.pattern) if case.pattern.startswith("pattern") else case.pattern
    models.use(model, pattern, **case.parameters)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_outputs(name: str) -> None:
    case = CASES[name]
    model = made(case)
    dense = case.run(model)
    with masked(case.masks()):
        expected = case.run(model)
    sparse(case, model)
    found = case.run(model)
    assert relative_error(found, expected) < 1e-4
    assert relative_error(dense, expected) > 1e-2, "a pattern that changes nothing shows nothing"
    models.use(model, "full")
    assert relative_error(case.run(model), dense) < 1e-4


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_bfloat16_is_as_good_as_torchs(name: str) -> None:
    case = CASES[name]
    with masked(case.masks()):
        expected, own = case.run(made(case)), case.run(made(case, torch.bfloat16))
    model = made(case, torch.bfloat16)
    sparse(case, model)
    assert relative_error(case.run(model), expected) < 1.5 * relative_error(own, expected)


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    case = CASES[name]
    model, other = made(case), made(case)
    sparse(case, model)
    case.run(model).square().sum().backward()
    with masked(case.masks()):
        case.run(other).square().sum().backward()
    found, expected = (
        torch.cat([each.grad.flatten() for each in one.parameters() if each.grad is not None]) for one in (model, other)
    )
    assert relative_error(found, expected) < 1e-3
