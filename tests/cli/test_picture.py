"""Pictures: tile counts against brute force, and files that are pictures."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spdsl.diagnostics import SpatError
from spdsl.picture import Walked, count_tiles, draw
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
    ],
)
def test_kernels_that_are_none(spdsl: Callable[..., Answer], words: tuple[str, ...], told: str) -> None:
    answer = spdsl("view", "causal", "-n", "64", *words)
    assert answer.status != 0
    assert told in answer.err
