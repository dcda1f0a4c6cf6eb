"""The reference's mask of every library pattern equals the mask written in numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from spdsl import reference
from spdsl.diagnostics import SpatError
from spdsl.library import names
from tests.library.bound import library
from tests.library.definitions import DEFINITIONS
from tests.library.masks import MASKS, radial_share
from tests.library.routed import ROUTED


@dataclass(frozen=True, kw_only=True)
class Example:
    name: str
    n: int
    heads: int = 1
    groups: int = 1
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        given = "-".join(str(value).replace(" ", "") for value in self.parameters.values())
        return f"{self.name}-{self.n}-{given}".strip("-")


def example(name: str, n: int, /, *, heads: int = 1, groups: int = 1, **given: Any) -> Example:
    arrays = {key: value for key, value in given.items() if isinstance(value, (np.ndarray, np.generic))}
    rest = {key: value for key, value in given.items() if key not in arrays}
    return Example(name=name, n=n, heads=heads, groups=groups, parameters=rest, inputs=arrays)


def ids(n: int, seed: int, mean: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).random(n).__lt__(1 / mean).cumsum()


def flags(n: int, seed: int, share: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < share


def windows(*rows: tuple[int, int, int]) -> np.ndarray:
    return np.array(rows)


EXAMPLES = (
    *(example(name, n) for name in ("full", "causal", "log_sparse") for n in (1, 2, 33)),
    *(example("sliding_window", 40, window=window) for window in (1, 7, 40, 64)),
    *(example("streaming", 40, window=window, sinks=sinks) for window, sinks in ((1, 0), (5, 3), (8, 50))),
    *(example("prefix_lm", 20, prefix=np.array([p])[0]) for p in (-3, 0, 1, 11, 20, 25)),
    *(example("documents", n, doc=ids(n, n)) for n in (1, 31, 64)),
    *(example("block_local", n, block=8) for n in (1, 7, 8, 29)),
    *(example("dilated", 50, span=span, dilation=d) for span, d in ((1, 3), (20, 1), (20, 4), (64, 7))),
    *(example("strided", 50, local=local, stride=stride) for local, stride in ((1, 1), (1, 60), (5, 8), (9, 4))),
    *(example("longformer", 40, window=window, is_global=flags(40, 3)) for window in (0, 1, 2, 9, 100)),
    example("bigbird", 60, heads=4, groups=2, block=4, window_blocks=3, global_blocks=2, random_blocks=3),
    example(
        "bigbird", 57, heads=2, groups=1, block=4, window_blocks=2, global_blocks=0, random_blocks=2, seed=2**40 + 5
    ),
    example("bigbird", 30, heads=2, groups=2, block=2, window_blocks=1, global_blocks=1, random_blocks=0, seed=1),
    example("bigbird", 30, block=2, window_blocks=1, global_blocks=0, random_blocks=40),
    example("bigbird", 3, block=64),
    *(example("power", n, block=4, local_blocks=local) for n, local in ((3, 0), (75, 0), (75, 3))),
    *(
        example("s2", 70, heads=heads, groups=groups, block=4, local_blocks=2, stride=stride)
        for heads, groups, stride in ((1, 1, 5), (4, 4, 8), (8, 2, 6), (6, 3, 2))
    ),
    *(example("block_diffusion", 2 * half, half=half, block=4) for half in (1, 4, 12, 15)),
    example("blockrank", 40, segment=ids(40, 5), last=ids(40, 5)[-1]),
    example("blockrank", 40, segment=ids(40, 6)[::-1].copy(), last=np.int64(2)),
    *(
        example("neighborhood_1d", extent, extents=(extent,), window=(w,), stride=(s,), dilation=(d,), causal_axes=(c,))
        for extent in (1, 13, 20)
        for w, s, d in ((1, 1, 1), (4, 1, 1), (5, 1, 2), (5, 5, 1), (6, 4, 3), (4, 2, 5), (30, 3, 1))
        for c in (False, True)
    ),
    example("neighborhood_1d", 24, extents=(24,), window=(7,)),
    example("neighborhood_2d", 30, extents=(5, 6), window=(3, 4)),
    example(
        "neighborhood_2d", 42, extents=(6, 7), window=(4, 3), stride=(2, 3), dilation=(1, 2), causal_axes=(False, True)
    ),
    example("neighborhood_3d", 60, extents=(3, 4, 5), window=(2, 3, 3)),
    example(
        "neighborhood_3d",
        84,
        extents=(4, 3, 7),
        window=(2, 3, 3),
        stride=(2, 1, 3),
        dilation=(2, 1, 2),
        causal_axes=(True, False, False),
    ),
    *(
        example(
            "sliding_tile_3d",
            n,
            heads=2,
            groups=1,
            extents=(4, 6, 4),
            tile=(2, 2, 2),
            window=windows((1, 3, 1), (3, 1, 5)),
        )
        for n in (96, 101, 90)
    ),
    example("sliding_tile_3d", 110, extents=(3, 5, 7), tile=(2, 2, 3), window=windows((1, 3, 3))),
    *(
        example("radial", n, frames=frames, frame_tokens=tokens, block=block, rho=rho, sink=sink)
        for n, frames, tokens, block, rho in (
            (96, 6, 16, 4, 0.95),
            (96, 6, 16, 4, 0.2),
            (130, 5, 24, 8, 0.5),
            (123, 9, 13, 4, 0.3),
            (100, 9, 13, 4, 0.3),
            (60, 3, 20, 7, 0.9),
        )
        for sink in (False, True)
    ),
    *(example(name, 21, slope=np.ones(2), heads=2, groups=2) for name in ("alibi",)),
    example("softcap", 21, cap=3.0),
    example("head_modes", 40, heads=6, groups=3, full=np.array([True, False, True]), sinks=2, window=5),
)

WITHOUT_BATCH = [each for each in EXAMPLES if each.name != "prefix_lm"]


def tables_of(each: Example) -> dict[str, torch.Tensor]:
    """The inputs as a call gives them; `prefix` has a number for each sequence."""
    return {name: torch.as_tensor(np.array(value)) for name, value in each.inputs.items()}


def expected_mask(each: Example) -> np.ndarray:
    inputs = {name: value for name, value in each.inputs.items() if name != "slope"}
    return MASKS[each.name](each.n, each.heads, each.groups, **each.parameters, **inputs)


def found_mask(each: Example, **places: Any) -> torch.Tensor:
    pattern = library(each.name, heads=each.heads, groups=each.groups, **each.parameters)
    tables = tables_of(each)
    if each.name == "prefix_lm":
        return reference.mask(pattern, each.n, each.n, tables={"prefix": tables["prefix"].reshape(1)}, **places)[0]
    return reference.mask(pattern, each.n, each.n, tables=tables, **places)


@pytest.mark.parametrize("each", EXAMPLES, ids=lambda each: each.id)
def test_mask(each: Example) -> None:
    np.testing.assert_array_equal(found_mask(each).numpy(), expected_mask(each))


def test_every_pattern_has_an_example_and_a_mask() -> None:
    assert {each.name for each in EXAMPLES} == set(names()) - set(DEFINITIONS) - set(ROUTED) == set(MASKS)


@pytest.mark.parametrize("each", WITHOUT_BATCH[::3], ids=lambda each: each.id)
def test_later_queries_are_the_last_rows(each: Example) -> None:
    pattern = library(each.name, heads=each.heads, groups=each.groups, **each.parameters)
    rows = min(5, each.n)
    last = reference.mask(pattern, rows, each.n, tables=tables_of(each))
    np.testing.assert_array_equal(last.numpy(), expected_mask(each)[:, each.n - rows :])
    first = reference.mask(pattern, rows, each.n, tables=tables_of(each), q_start=0)
    np.testing.assert_array_equal(first.numpy(), expected_mask(each)[:, :rows])


@pytest.mark.parametrize("each", WITHOUT_BATCH[1::4], ids=lambda each: each.id)
def test_padding_moves_the_mask(each: Example) -> None:
    pattern = library(each.name, heads=each.heads, groups=each.groups, **each.parameters)
    left, right = 3, 2
    found = reference.mask(
        pattern, each.n, each.n + left + right, tables=tables_of(each), k_start=left, k_len=each.n, q_start=0
    ).numpy()
    expected = np.pad(expected_mask(each), ((0, 0), (0, 0), (left, right)))
    np.testing.assert_array_equal(found, expected)


def test_ragged_batch() -> None:
    pattern = library("streaming", window=3, sinks=1)
    starts, lengths = torch.tensor([0, 2, 5]), torch.tensor([8, 6, 1])
    found = reference.mask(pattern, 4, 8, k_start=starts, k_len=lengths).numpy()
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        expected = np.zeros((4, 8), bool)
        whole = MASKS["streaming"](length, 1, 1, window=3, sinks=1)[0]
        rows = min(4, length)
        expected[4 - rows :, start : start + length] = whole[length - rows :]
        np.testing.assert_array_equal(found[row, 0], expected)


def test_even_tile_windows_act_as_the_next_odd_size() -> None:
    pattern = library("sliding_tile_3d", extents=(4, 6, 4), tile=(1, 2, 2))
    even, odd = (
        reference.mask(pattern, 96, 96, tables={"window": torch.tensor([sizes])}) for sizes in ((2, 2, 2), (3, 3, 3))
    )
    assert torch.equal(even, odd)


def test_tile_windows_are_neighborhoods_with_the_stride_of_a_tile() -> None:
    tiles = library("sliding_tile_3d", extents=(4, 6, 8), tile=(2, 2, 4))
    found = reference.mask(tiles, 192, 192, tables={"window": torch.tensor([[1, 3, 1]])})
    same = library("neighborhood_3d", extents=(4, 6, 8), window=(2, 6, 4), stride=(2, 2, 4))
    assert torch.equal(found, reference.mask(same, 192, 192))


def test_text_does_not_change_what_the_video_keeps() -> None:
    pattern = library("radial", frames=5, frame_tokens=22, block=8, rho=0.4)
    video = reference.mask(pattern, 110, 110)
    assert not video.all()
    assert torch.equal(reference.mask(pattern, 141, 141)[:, :110, :110], video)


@pytest.mark.parametrize(
    ("frames", "rho", "sink", "share"), [(30, 0.95, False, 0.275), (18, 0.2, True, 0.287), (128, 0.95, False, 0.110)]
)
def test_radial_keeps_the_published_share_of_blocks(frames: int, rho: float, sink: bool, share: float) -> None:
    assert radial_share(frames, 3840, rho, sink) == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize("sink", [False, True])
def test_radial_share_is_that_of_the_mask(sink: bool) -> None:
    mask = MASKS["radial"](7 * 64, 1, 1, frames=7, frame_tokens=64, rho=0.5, block=16, sink=sink)[0]
    assert mask[::16, ::16].mean() == radial_share(7, 64, 0.5, sink, block=16)


def test_both_halves_must_be_there() -> None:
    pattern = library("block_diffusion", half=8, block=4)
    with pytest.raises(SpatError, match="16 places, but there are 17 keys"):
        reference.mask(pattern, 17, 17)


def test_a_grid_must_cover_the_sequence() -> None:
    pattern = library("neighborhood_2d", extents=(3, 4), window=(3, 3))
    with pytest.raises(SpatError, match="3 × 4 = 12 places, but there are 13 keys"):
        reference.mask(pattern, 13, 13)
