"""A GPU that is stood in for: which numbers the host knows, which it assumes, and what kernels are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import pytest
import torch

from spdsl.codegen.asked import Asked
from spdsl.runtime import cut_kernels
from spdsl.runtime.absent import AbsentGpu, standing_in
from spdsl.runtime.notices import is_watched
from spdsl.runtime.numbers import Assumed
from spdsl.runtime.plain import Launch
from spdsl.runtime.vendor import is_amd

pytest.importorskip("triton")
from triton.runtime import driver

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted")

GPU = AbsentGpu(name="NVIDIA H200", target="sm_90", multiprocessors=132)


@pytest.fixture
def assumed() -> Assumed:
    return Assumed(number=32)


@pytest.fixture
def device(assumed: Assumed) -> Iterator[torch.device]:
    with standing_in(GPU, "a call", Asked(room=1 << 16, device=GPU.place), assumed) as found:
        yield found


def test_torch_is_told_of_it_and_afterwards_no_more() -> None:
    before = torch.cuda.is_available(), torch.cuda.get_device_name, torch.cuda.Event, is_amd()
    with standing_in(GPU, "a call", Asked(room=1, device=GPU.place), Assumed(number=32)) as device:
        assert torch.cuda.get_device_name(device) == "NVIDIA H200"
        assert torch.cuda.get_device_capability(device) == (9, 0)
        assert torch.cuda.current_device() == device.index
        assert torch.cuda.get_device_properties(device).multi_processor_count == 132
        x = torch.empty(2, 3, device="cuda")
        assert (x.device, x.is_cuda, x.is_cpu) == (device, True, False)
        assert is_watched()
    assert (torch.cuda.is_available(), torch.cuda.get_device_name, torch.cuda.Event, is_amd()) == before
    assert x.device.type == "meta"
    assert not is_watched()


def test_other_threads_go_on_as_they_were() -> None:
    """What they ask, what they differentiate, and whom Triton works for; two that stand in take turns."""

    class Driver:
        def get_current_device(self) -> str:
            return "theirs"

    def theirs() -> tuple[object, ...]:
        x = torch.ones(2, requires_grad=True)
        (gradient,) = torch.autograd.grad((x * torch.arange(2)).sum(), x)
        working_for = driver.active.get_current_device()
        return torch.cuda.is_available(), is_amd(), is_watched(), str(gradient.device), working_for

    def stand_in(seed: int) -> list[object]:
        gpu = AbsentGpu(name=f"GPU {seed}", target="gfx942" if seed % 2 else "sm_90", multiprocessors=100 + seed)
        with standing_in(gpu, "a call", Asked(room=1, device=gpu.place), Assumed(number=32)):
            return [torch.cuda.get_device_name(), is_amd(), driver.active.get_current_device() == gpu.place]

    before = torch.cuda.Event, torch.cuda.get_device_name, torch.autograd._engine_run_backward  # type: ignore[attr-defined]
    with patch.object(driver, "_active", Driver()), ThreadPoolExecutor(4) as pool:
        wanted = theirs()
        with standing_in(GPU, "a call", Asked(room=1, device=GPU.place), Assumed(number=32)):
            assert pool.submit(theirs).result() == wanted
            assert pool.submit(lambda: isinstance(torch.cuda.Event, type)).result()
            waiting = [pool.submit(stand_in, seed) for seed in range(4)]
            assert torch.cuda.get_device_name() == GPU.name
        assert [each.result() for each in waiting] == [[f"GPU {seed}", bool(seed % 2), True] for seed in range(4)]
        assert theirs() == wanted
    assert before == (torch.cuda.Event, torch.cuda.get_device_name, torch.autograd._engine_run_backward)  # type: ignore[attr-defined]


def test_an_error_leaves_torch_as_it_was() -> None:
    before = {name: getattr(torch.cuda, name) for name in dir(torch.cuda)}
    with pytest.raises(ValueError, match="wrong"), standing_in(GPU, "x", Asked(room=1, device=100), Assumed(number=32)):
        raise ValueError("wrong")
    assert {name: getattr(torch.cuda, name) for name in dir(torch.cuda)} == before


def test_gpus_are_told_apart() -> None:
    other = AbsentGpu(name="AMD MI300X", target="gfx942", multiprocessors=304)
    assert other.place != GPU.place
    with standing_in(other, "a call", Asked(room=1, device=other.place), Assumed(number=32)) as device:
        assert is_amd()
        assert torch.cuda.get_device_properties(device).gcnArchName == "gfx942"


def test_what_positions_make_has_numbers(device: torch.device, assumed: Assumed) -> None:
    rows = torch.arange(8, device=device)
    tiles = (rows[:, None] >= torch.tensor([2, 5], device=device)).sum(0)
    assert tiles.device == device
    assert tiles.tolist() == [6, 3]
    assert tiles.cpu().device.type == "cpu"
    assert (rows > 5).nonzero().flatten().tolist() == [6, 7]
    assert not assumed.places


def test_what_a_caller_gives_has_none(device: torch.device, assumed: Assumed) -> None:
    q = torch.empty(4, 4, device=device)
    rows = torch.arange(4, device=device)
    found = (q.argmax(-1) + rows).max()
    assert found.device == device
    assert int(found) == 32
    assert assumed.places == {"test_absent.test_what_a_caller_gives_has_none"}
    assert [len(each) for each in q.long().tolist()] == [4] * 4
    assert not bool((q > 0).any())
    # As many as there may be, where sizes depend on numbers.
    assert len((q > 0).nonzero()) == 16


def test_copies_of_the_host_stay_its_own(device: torch.device) -> None:
    host = torch.arange(3)
    there = host.to(device)
    assert there.device == device
    assert host.device.type == "cpu"
    there += 1
    assert host.tolist() == [0, 1, 2]
    assert there.tolist() == [1, 2, 3]


def test_numbers_are_lost_where_others_are_written(device: torch.device, assumed: Assumed) -> None:
    table, view = torch.zeros(4, dtype=torch.int64, device=device), None
    view = table[1:]
    assert table.tolist() == [0, 0, 0, 0]
    view.copy_(torch.empty(3, dtype=torch.int64, device=device))
    assert table.tolist() == [32] * 4
    assert assumed.places


def test_places_in_memory_are_where_they_are(device: torch.device) -> None:
    x = torch.empty(4, 64, dtype=torch.bfloat16, device=device)
    assert x.data_ptr() % 16 == 0
    assert (x[:, 1:].data_ptr() - x.data_ptr(), x[1].data_ptr() - x.data_ptr()) == (2, 128)


def test_gradients_come_by_the_same_way(device: torch.device) -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            seen.append(gradient.device)
            return gradient * 2

    seen: list[torch.device] = []
    x = torch.empty(3, device=device, requires_grad=True)
    (found,) = torch.autograd.grad(Doubled.apply(x).sum(), x)  # type: ignore[no-untyped-call]
    assert seen == [device]
    assert found.device == device


def test_results_and_gradients_are_of_one_kind(device: torch.device) -> None:
    """Zeros that others are added to have no numbers, as what is added has none; places do."""
    assert [
        torch.zeros(2, dtype=dtype, device=device).untyped_storage().device.type
        for dtype in (torch.float32, torch.int64)
    ] == ["meta", "cpu"]
    assert torch.full((2,), 3, device=device).tolist() == [3, 3]
    assert torch.empty(2, dtype=torch.bool, pin_memory=True).device.type == "cpu"


@pytest.mark.parametrize(("target", "together"), [("sm_90", True), ("gfx942", False)])
def test_programs_meet_only_where_they_start_together(
    target: str, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose GPU is stood in for says so, not whose torch was built for."""
    launches = list[Launch]()
    monkeypatch.setattr(cut_kernels, "start", launches.append)
    gpu = AbsentGpu(name=f"a GPU of {target}", target=target, multiprocessors=120)
    with standing_in(gpu, "a call", Asked(room=1, device=gpu.place), Assumed(number=32)) as device:
        keys, amount = (torch.empty(shape, dtype=torch.int32, device=device) for shape in ((2, 100_000), (1,)))
        cut_kernels.cuts_of(keys, "count", amount)
    assert [each.values["TOGETHER"] for each in launches] == [together] * len(launches)
    assert (len(launches) == 1) == together == ("launch_cooperative_grid" in launches[0].options)
