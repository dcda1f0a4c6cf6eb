"""Queries of several heads keep their registers to themselves, in the instructions of the GPU."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Problem, Tiles
from spdsl.codegen import frame
from spdsl.codegen.aot import compile_kernels
from spdsl.pipeline import bound, key_of, opened, read, softmax_keys

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted")

TEXT = """pattern program() {
  axis blk = token by 128
  input s: float[g, q, k.blk]
  let chosen = s |> top(5)
  keep causal and chosen
}
"""


def forward(dim: int, keys: int, folder: Path) -> str:
    """The instructions of the forward of 16 heads to a list, with tiles of so many keys."""
    from triton import knobs

    key = key_of(read(TEXT), {}, None, None, deterministic=False)
    pattern = bound(opened(softmax_keys(key)[-1])[0], 32, 2, dim)
    tables = tuple((table.name, "int32") for table in pattern.tables)
    tiles = (("forward", Tiles(block_q=64, block_k=keys, warps=4, stages=2)),)
    made = plan(
        Problem(pattern=pattern, dtype="bf16", value_dim=dim, shape="square", tables=tables, tiles=tiles), "sm_90"
    )
    assert made.forward.block_k == keys
    assert made.forward.picks is not None
    assert made.forward.picks.lanes == 16
    _, (binary,) = compile_kernels(made, "sm_90", ("forward",))
    (folder / "forward.cubin").write_bytes(binary.binary)
    command = [knobs.nvidia.cuobjdump.path, "-sass", str(folder / "forward.cubin")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def shared(text: str) -> set[str]:
    """Registers that are loaded before a loop and are first operands of products with two sums in it."""
    lines = [(int(at, 16), what) for at, what in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+([^;]*);", text)]
    branches = [(at, re.search(r"BRA (?:P\d, )?0x([0-9a-f]+)", what)) for at, what in lines]
    loops = [(int(to[1], 16), at) for at, to in branches if to is not None and int(to[1], 16) < at]
    loads = [(at, to[1]) for at, what in lines if (to := re.search(r"LDSM\S* (R\d+),", what))]
    products = [(at, *to.groups()) for at, what in lines if (to := re.search(r"HGMMA\S* (R\d+), (R\d+), gdesc", what))]
    assert products
    found = set()
    for first, last in loops:
        inside = [(total, factor) for at, total, factor in products if first <= at <= last]
        made = {register for at, register in loads if first <= at <= last}
        sums = {factor: {total for total, each in inside if each == factor} for _, factor in inside}
        before = {register for _, register in loads} - made
        found |= {factor for factor, totals in sums.items() if len(totals) > 1 and factor in before}
    return found


@pytest.mark.parametrize(("dim", "keys"), [(64, 64), (128, 128), pytest.param(128, 64, marks=pytest.mark.slow)])
def test_no_weights_in_the_place_of_queries(dim: int, keys: int, tmp_path: Path) -> None:
    assert not shared(forward(dim, keys, tmp_path))


@pytest.mark.slow
def test_what_is_looked_for_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With versions of ptxas that mix them up; a later one may not."""
    monkeypatch.setattr(frame, "WIDE", 16)
    monkeypatch.setattr(frame.Frame, "is_copied", lambda self, side: self.kernel.descriptors)
    assert len(shared(forward(64, 64, tmp_path))) == 4
