"""show --emit tiles: the picture and the lists, against the mask."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import spdsl
from spdsl.cli import drawing
from spdsl.cli.drawing import MARKS
from tests.cli.conftest import Answer

Spdsl = Callable[..., Answer]


def states(kernel: dict[str, Any], walked: int) -> np.ndarray:
    """0, 1 or 2 for each tile, from the lists."""
    found = np.zeros((len(kernel["rows"]), walked), int)
    for at, row in enumerate(kernel["rows"]):
        found[at, row["partial"]] = 1
        found[at, row["full"]] = 2
    return found


def drawn(text: str, kind: str) -> list[list[int]]:
    """The marks of a kernel's picture, two columns wide."""
    lines = itertools.dropwhile(lambda line: not line.startswith(kind), text.splitlines())
    rows = [line[7:] for line in itertools.takewhile(bool, lines) if line[:6].strip().isdigit()]
    marks = [mark for mark, _ in MARKS]
    return [[marks.index(row.ljust(2 * len(rows))[at]) for at in range(0, len(row), 2)] for row in rows]


@pytest.mark.parametrize("pattern", ["streaming", "s2", "documents"])
def test_lists_are_those_of_the_mask(spdsl: Spdsl, pattern: str) -> None:
    words = ("show", pattern, "--emit", "tiles", "-n", "512", "--heads", "2", "--head", "1", "--json")
    found = spdsl(*words).json["result"]
    assert found["n"] == 512
    inputs = {}
    if pattern == "documents":
        assert found["generated_inputs"] == ["doc"]
        ids = (torch.rand(512, generator=torch.Generator().manual_seed(0)) < 1 / 64).long().cumsum(-1)
        inputs = {"doc": ids}
    mask = spdsl_mask(pattern, 512, inputs)
    for kernel in found["kernels"]:
        block_q, block_k = kernel["block_q"], kernel["block_k"]
        tiles = mask.reshape(512 // block_q, block_q, 512 // block_k, block_k)
        expected = tiles.any((1, 3)).astype(int) + tiles.all((1, 3))
        expected = expected.T if kernel["kinds"][0] in ("dkdv", "fused") else expected
        assert (states(kernel, expected.shape[1]) == expected).all()
    assert [kind for kernel in found["kernels"] for kind in kernel["kinds"]] == ["forward", "dq", "dkdv", "fused"]


def spdsl_mask(pattern: str, n: int, inputs: dict[str, Any]) -> np.ndarray:
    mask = spdsl.load(pattern).mask(n, n, 2, 2, **inputs)
    return np.asarray(mask.reshape(-1, n, n)[-1].numpy())


def test_the_picture_shows_the_lists(spdsl: Spdsl) -> None:
    words = ("show", "streaming", "--emit", "tiles", "-n", "1000", "-p", "window=300", "--target", "sm_100")
    answer = spdsl(*words)
    assert "\x1b[" not in answer.out
    lists = spdsl(*words, "--json").json["result"]["kernels"]
    for kernel, kind, length in ((lists[0], "forward and dq", "block_k"), (lists[-1], "dkdv", "block_q")):
        expected = states(kernel, -(-1000 // kernel[length]))
        picture = drawn(answer.out, kind)[: len(expected)]
        assert [row + [0] * (expected.shape[1] - len(row)) for row in picture] == expected.tolist()
    assert "query tile i walks key tiles" in answer.out
    assert "key tile j walks query tiles" in answer.out


@pytest.mark.parametrize("size", [(64, 96), (65, 96), (64, 97), (200, 300), (1, 1000)])
def test_many_tiles_share_a_mark(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    table = torch.randint(0, 3, (size[0] // 5 + 1, size[1] // 5 + 1), generator=generator)
    table = table.repeat_interleave(5, 0).repeat_interleave(5, 1)[: size[0], : size[1]].to(torch.int8)
    step, marks = drawing._shrunk(table)
    assert marks.shape[0] <= drawing.MOST_ROWS
    assert marks.shape[1] <= drawing.MOST_COLUMNS
    for row, column in itertools.product(range(marks.shape[0]), range(marks.shape[1])):
        part = table[row * step : (row + 1) * step, column * step : (column + 1) * step]
        expected = 2 if (part == 2).all() else 0 if (part == 0).all() else 1
        assert marks[row, column] == expected


def test_a_grid_has_its_own_length_and_boxes(spdsl: Spdsl) -> None:
    words = ("show", "neighborhood_2d", "--emit", "tiles", "-p", "extents=96,96", "-p", "window=9,9")
    found = spdsl(*words, "--json").json["result"]
    assert found["n"] == 96 * 96
    assert "each mark stands for 3 × 3 tiles" in spdsl(*words).out
    forward = found["kernels"][0]
    sizes = [int(size) for size in re.findall(r"\d+", forward["walk"][0].partition(" of the grid")[0])]
    (y, x), (v, u) = sizes[:2], sizes[2:]
    boxes = spdsl_near(96, 9).reshape(96 // y, y, 96 // x, x, 96 // v, v, 96 // u, u)
    inside = (1, 3, 5, 7)
    expected = boxes.any(inside).astype(int) + boxes.all(inside)
    expected = expected.reshape(len(forward["rows"]), -1)
    assert (states(forward, expected.shape[1]) == expected).all()


def spdsl_near(extent: int, window: int) -> np.ndarray:
    place = np.clip(np.arange(extent), window // 2, extent - 1 - window // 2)
    near = np.abs(np.arange(extent) - place[:, None]) <= window // 2
    return np.kron(near, near)


def test_classes_of_residues_are_named(spdsl: Spdsl) -> None:
    answer = spdsl("show", "dilated", "--emit", "tiles", "-p", "span=512", "-n", "1024")
    assert "class 0 of 4" in answer.out
    assert len(drawn(answer.out, "dkdv")) == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--head", "8"), "the last head is 7"),
        (("--shape", "offset"), "-n and --nq"),
        (("--target", "sm_1"), "sm_90"),
        (("-p", "windw=3"), "`windw`"),
        (("-n", "10", "--nq", "11"), "11 queries"),
    ],
)
def test_what_cannot_be_drawn(spdsl: Spdsl, words: tuple[str, ...], told: str) -> None:
    answer = spdsl("show", "streaming", "--emit", "tiles", *words)
    assert answer.status != 0
    assert told in answer.err


def test_colours_obey_no_color(spdsl: Spdsl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    words = ("show", "causal", "--emit", "tiles", "-n", "256")
    coloured = spdsl(*words).out
    assert "\x1b[3" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in spdsl(*words).out
