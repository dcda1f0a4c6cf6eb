"""Pictures: tile counts against brute force, and files that are pictures."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spdsl.cli.drawing import walked as walk
from spdsl.diagnostics import SpatError
from spdsl.loading import load
from spdsl.picture import Walked, count_tiles, draw
from spdsl.pipeline import key_of
from spdsl.samples import Sizes, drawn
from spdsl.showing import chosen
from tests.cli.conftest import Answer


def brute(mask: np.ndarray, block_q: int, block_k: int) -> np.ndarray:
    rows, columns = -(-mask.shape[0] // block_q), -(-mask.shape[1] // block_k)
    state = np.zeros((rows, columns), np.int8)
    for i in range(rows):
        for j in range(columns):
            tile = mask[i * block_q : (i + 1) * block_q, j * block_k : (j + 1) * block_k]
            state[i, j] = 2 if tile.all() else 1 if tile.any() else 0
    return state


SIZES = [(64, 64, 16, 16), (50, 70, 16, 32), (1, 9, 4, 2), (7, 7, 9, 3)]


@pytest.mark.parametrize(("nq", "nk", "block_q", "block_k"), SIZES)
def test_tiles_are_counted(nq: int, nk: int, block_q: int, block_k: int) -> None:
    rng = np.random.default_rng(0)
    mask = np.kron(rng.random((nq, nk)) < 0.4, np.ones((3, 3), bool))[:nq, :nk]
    mask[:, : nk // 2] |= np.tri(nq, nk // 2, dtype=bool)
    tiles = count_tiles(mask, block_q, block_k)
    expected = brute(mask, block_q, block_k)
    assert (tiles.state == expected).all()
    assert tiles.kept_pairs == mask.mean()
    assert tiles.kept_tiles == (expected > 0).mean()
    assert tiles.full_tiles == (expected == 2).mean()


@pytest.mark.parametrize("shape", [(1, 1), (20, 70), (1500, 1500)])
def test_a_picture_is_a_png(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = tmp_path / "mask.png"
    draw(np.tri(*shape, dtype=bool), path, title="causal", subtitle="n=20")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    assert width > height > 600


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpatError) as caught:
        draw(np.tri(4, dtype=bool), tmp_path / "no" / "mask.png", title="causal")
    assert caught.value.code == "SP605"


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(SpatError) as caught:
        draw(np.zeros((0, 4), bool), tmp_path / "mask.png", title="nothing")
    assert caught.value.code == "SP609"


def test_rows_are_named_by_their_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    limits: list[tuple[float, ...]] = []
    monkeypatch.setattr(Axes, "set_ylim", lambda axes, *ends, **more: limits.append(ends))
    draw(np.ones((4, 20), bool), tmp_path / "mask.png", title="decoding", q_start=16)
    assert (20, 16) in limits


def test_rows_in_the_order_of_tiles() -> None:
    mask = np.random.default_rng(0).random((5, 6)) < 0.5
    rows, keys = np.array([[0, 2, 4], [1, 3, -1]]), np.array([[5, 4], [3, 2], [1, 0]])
    walked = Walked(title="", state=np.ones((2, 3), np.int8), query_rows=rows, key_rows=keys)
    found = walked.mask(mask)
    assert (found[:5] == mask[[0, 2, 4, 1, 3], ::-1]).all()
    assert not found[5].any()
    assert (walked.touched, walked.full) == (6, 0)


@pytest.mark.parametrize(
    ("pattern", "kernel", "words"),
    [
        ("streaming", "dkdv", ("-p", "window=128", "-n", "600")),
        ("dilated", "forward", ("-p", "span=256", "-n", "512")),
        ("neighborhood_2d", "dq", ("-p", "extents=24,32", "-p", "window=7,7", "-n", "768")),
        ("causal", "fused", ("--head-dim", "128", "-n", "512", "--nq", "400")),
    ],
)
def test_view_over_the_tiles_of_a_kernel(
    spdsl: Callable[..., Answer], tmp_path: Path, pattern: str, kernel: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "tiles.png"
    found = spdsl("view", pattern, "--kernel", kernel, *words, "-o", str(path), "--json").json
    assert path.read_bytes().startswith(b"\x89PNG")
    assert found["kernel"]["kind"] == kernel
    assert found["kernel"]["touched"] > 0
    assert 0 <= found["kernel"]["full"] <= found["kernel"]["touched"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--kernel", "delta"), "`delta` is not one of"),
        (("--kernel", "fused", "--target", "sm_80"), "has no kernel `fused`"),
        (("--kernel", "dq", "--target", "sm_1"), "`sm_1` is not one of"),
        (("--kernel", "forward.2"), "`causal` has no kernel `forward.2`"),
    ],
)
def test_kernels_that_are_none(spdsl: Callable[..., Answer], words: tuple[str, ...], told: str) -> None:
    answer = spdsl("view", "causal", "-n", "64", *words)
    assert answer.status != 0
    assert told in answer.err


def test_view_over_the_tiles_of_what_is_chosen(spdsl: Callable[..., Answer], tmp_path: Path) -> None:
    """Every pair that random queries choose lies in a tile that a kernel visits."""
    path, words = tmp_path / "tiles.png", ("moba", "-n", "96", "-p", "block=8", "-p", "picks=2", "--dtype", "fp32")
    answer = spdsl("view", *words, "--kernel", "forward.2", "-o", str(path), "--json").json
    assert path.read_bytes().startswith(b"\x89PNG")
    assert answer["generated_inputs"] == ["q", "k"]
    pattern, values = load("moba"), {"block": 8, "picks": 2}
    sizes = Sizes(batch=1, heads=1, groups=1, nq=96, n=96, head_dim=64)
    q, k, _ = drawn(sizes, 64, torch.float32, 0)
    missing = chosen(pattern, values, q, k, {})[0]
    assert answer["kept_pairs"] == pytest.approx(float(missing.float().mean()))
    for kernel in ("forward", "forward.2"):
        settings: dict[str, Any] = {"head": 0, "dtype": "fp32", "target": "sm_90", "chosen_by": (q, k)}
        found = walk(key_of(pattern.checked, values, None, None, False), sizes, {}, kernel, **settings)
        rows, keys = (torch.from_numpy(each) for each in (found.query_rows, found.key_rows))
        for tile in np.argwhere(found.state > 0):
            own, walked = (each[at][each[at] >= 0] for each, at in zip((rows, keys), tile, strict=True))
            missing[own[:, None], walked] = False
    assert not missing.any()


def test_view_says_how_several_softmaxes_are_drawn(spdsl: Callable[..., Answer]) -> None:
    answer = spdsl("view", "nsa", "-n", "64", "--kernel", "forward")
    assert "SP615" in answer.err
    assert "`coarse`, `fine`, `local`" in answer.err
    assert "spdsl show --emit tiles nsa" in answer.err


def test_what_is_chosen_for_real_queries_and_keys(spdsl: Callable[..., Answer], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(4, 48, 8)), rng.normal(size=(2, 48, 8))
    np.savez(tmp_path / "layer.npz", q=q, k=k)
    # Of the whole blocks before its own, a query of head 3 takes the one whose mean key suits it best.
    means = k[1].reshape(6, 8, 8).mean(1)
    expected = np.zeros((48, 48), bool)
    for row in range(48):
        own = row // 8
        expected[row, own * 8 : row + 1] = True
        if own:
            best = int((means[:own] @ q[3, row]).argmax())
            expected[row, best * 8 : best * 8 + 8] = True
    words = ("view", "moba", "-p", "block=8", "-p", "picks=2", "--qk", "layer.npz", "--head", 3, "--tile", 8)
    answer = spdsl(*words, "--json")
    assert answer.status == 0, answer.err
    assert json.loads(answer.out)["kept_pairs"] == expected.mean()
    answer = spdsl(*words, "-o", "chosen.html")
    assert answer.status == 0, answer.err
    assert "its mask is that of these values" in answer.out
    assert "counts as everything" not in answer.err
    assert "counts as everything" in spdsl("view", "moba", "-p", "block=64", "-n", 256).err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("streaming", "--qk", "layer.npz"), "does not look at queries and keys"),
        (("moba", "--qk", "other.npz"), "not `k`"),
        (("moba", "--qk", "layer.npz", "-n", 50), "has 48 queries and 48 keys"),
        (("moba", "--qk", "layer.npz", "--heads", 8), "has 4 query"),
        (("moba", "--qk", "flat.npz"), "floats [heads, tokens, dim]"),
    ],
)
def test_queries_and_keys_that_do_not_fit(
    spdsl: Callable[..., Answer], tmp_path: Path, words: tuple[object, ...], told: str
) -> None:
    np.savez(tmp_path / "layer.npz", q=np.zeros((4, 48, 8)), k=np.zeros((2, 48, 8)))
    np.savez(tmp_path / "other.npz", q=np.zeros((4, 48, 8)))
    np.savez(tmp_path / "flat.npz", q=np.zeros(4), k=np.zeros(4))
    answer = spdsl("view", *words)
    assert answer.status in (1, 2)
    assert told in " ".join(answer.err.split())
