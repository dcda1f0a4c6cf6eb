"""What selections are predicted to cost, from launches that are noted without a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spdsl.costs import device_for, told
from spdsl.launched import Launches, held_bytes, launches_of
from spdsl.samples import Sizes, shaped
from spdsl.selecting import described
from spdsl.selection_costs import Selection, selection
from spdsl.selection_work import Effort, efforts
from tests.runtime.test_foretold import telling

SIZES = Sizes(batch=1, heads=4, groups=2, nq=4096, n=4096, head_dim=64)
H200 = device_for("sm_90", "NVIDIA H200")


def noted(sizes: Sizes, name: str = "nsa") -> tuple[Launches, tuple[Effort, ...]]:
    """The launches of a pattern, and what they do."""
    made = telling(name, sizes)
    tensors = shaped(sizes, sizes.head_dim, torch.bfloat16)
    found = launches_of(made.key, tensors, made.inputs(sizes), 0, H200)
    assert found is not None
    shapes, _, _ = made._shapes(sizes)
    stages = described(shapes.pattern, shapes.inputs, shapes.lines, {}).stages
    return found, efforts(shapes, stages, found)


def test_work_of_launches_is_that_of_the_pattern() -> None:
    found, done = noted(SIZES)
    names = [each.name for each in found.kernels]
    assert names.count("gather_means") == 2  # of keys and of values
    by = {each.name: each for each in done}
    assert "forward" not in by
    windows = 4096 // 16
    # Half of all windows of the past and half a tile of 128 more, and their means are sums of two terms of 16 bits.
    pairs = 4 * 4096 * windows * (0.5 + 64 / windows)
    assert by["keys"].products == pytest.approx(2 * 64 * pairs, rel=0.02)
    assert by["sums_stage_3"].products == by["keys"].products
    # Keys of 64 blocks of 64 for each query and group.
    assert by["choose"].numbers == by["keys"].numbers == 2 * 4096 * 64


def test_launches_along_axes_of_which_only_a_run_knows_the_size() -> None:
    found, done = noted(replace(SIZES, nq=512, n=512), "dhsa")
    assert found.decided
    launches = {each.name: each.launches for each in done}
    assert launches["gather_runs"] == 2
    assert launches["pairs_stage_3"] == launches["keys"] == launches["choose"] == launches["join_pieces"] == 1


def test_time_is_the_sum_of_its_kernels_and_grows_with_them() -> None:
    _, short = noted(SIZES)
    _, long = noted(replace(SIZES, nq=16384, n=16384))
    one, other = (selection(done, H200, 1e-3, ()) for done in (short, long))
    assert one.seconds == pytest.approx(sum(each.seconds for each in one.stages))
    assert one.share == pytest.approx(one.seconds / (one.seconds + 1e-3))
    by_name = {each.name: each.seconds for each in other.stages}
    for each in one.stages:
        assert by_name[each.name] >= each.seconds
    # Scores grow with the square, what tiles have too much of with the length.
    (few,), (many,) = ([each.products for each in done if each.name == "keys"] for done in (short, long))
    assert many / few == pytest.approx(16 * (0.5 + 64 / 1024) / (0.5 + 64 / 256), rel=0.01)


def test_small_ones_are_told_together() -> None:
    many = [Effort(name="keys", launches=1, products=1e12), *(Effort(name=f"k{i}", launches=1) for i in range(3))]
    found: Selection = selection(many, H200, 0.0, ("a.b",))
    lines = found.lines(told)
    assert lines[0].endswith(f"{told(found.seconds)}, 100% of a forward pass of {told(found.seconds)}")
    assert lines[1].startswith("  keys: ")
    assert lines[1].endswith("bound by: matrix products")
    assert lines[2] == f"  3 others: {told(3 * 2e-6)}"
    assert "only a run knows" in lines[3]
    assert f"  1 other: {told(2e-6)}" in selection(many[:2], H200, 0.0, ()).lines(told)


def test_entries_that_stand_for_several_are_read_once() -> None:
    assert held_bytes(torch.zeros(3, 1, dtype=torch.bfloat16).expand(3, 50)) == 6
