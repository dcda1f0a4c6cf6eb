"""compile: a folder with everything in it, or none."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Answer

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted")
Spdsl = Callable[..., Answer]
WORDS = ("compile", "local.spat", "-o", "out", "--head-dim", "16", "--heads", "2", "--dtype", "fp16", "-p", "window=32")


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle(spdsl: Spdsl, good: Path, tmp_path: Path) -> None:
    answer = spdsl(*WORDS, "--target", "sm_80")
    assert (answer.status, answer.err) == (0, "")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["pattern"] == "local"
    assert manifest["parameters"] == {"window": 32}
    assert (manifest["target"], manifest["dtype"], manifest["head_dim"], manifest["heads"]) == ("sm_80", "fp16", 16, 2)
    assert set(files_in(tmp_path / "out")) == {"manifest.json", *manifest["files"]}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert {"forward", "dq", "dkdv"} <= {kernel["name"] for kernel in manifest["kernels"]}
    for kernel in manifest["kernels"]:
        assert (tmp_path / "out" / kernel["binary"]).read_bytes().startswith(b"\x7fELF")
        functions = ast.parse((tmp_path / "out" / kernel["source"]).read_text()).body
        assert kernel["name"] in {each.name for each in functions if isinstance(each, ast.FunctionDef)}
        assert kernel["registers"] > 0
        assert kernel["arguments"]
        assert kernel["binary"] in answer.out
        # The window is an argument of the kernels; what was given is its value unless a launch says otherwise.
        assert kernel["run_time_parameters"] == ({} if kernel["name"] == "delta" else {"p_window": 32})
        assert ("p_window: i32" in kernel["arguments"]) == (kernel["name"] != "delta")
    # A second time replaces the first, and leaves nothing behind.
    before = files_in(tmp_path / "out")
    assert spdsl(*WORDS, "--target", "sm_80").status == 0
    assert files_in(tmp_path / "out") == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "local.spat", "cache"}


def test_nothing_is_left_of_a_failure(spdsl: Spdsl, good: Path, tmp_path: Path) -> None:
    good.write_text("pattern local(window: int in 1..16) { keep q - k < window }")
    answer = spdsl(*WORDS)
    assert answer.status == 1
    assert "`window`" in answer.err
    assert {path.name for path in tmp_path.iterdir()} == {"local.spat"}


def test_other_folders_are_not_replaced(spdsl: Spdsl, good: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("three years of work")
    answer = spdsl(*WORDS)
    assert answer.status == 1
    assert "error[SP614]" in answer.err
    (tmp_path / "out" / "manifest.json").write_text('{"format": 1, "files": {}}')
    assert spdsl(*WORDS).status == 1
    assert (tmp_path / "out" / "thesis.txt").read_text() == "three years of work"


def test_a_file_in_the_way(spdsl: Spdsl, good: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    assert "error[SP614]" in spdsl(*WORDS).err
    answer = spdsl("compile", "local.spat", "-o", "out/deeper", "--head-dim", "16")
    assert answer.status == 1
    assert "error[SP605]" in answer.err


def test_a_head_dim_that_fits_no_gpu(spdsl: Spdsl, good: Path, tmp_path: Path) -> None:
    answer = spdsl("compile", "local.spat", "-o", "out", "--head-dim", "1000000")
    assert answer.status == 1
    assert "SP504" in answer.err
    assert not (tmp_path / "out").exists()


def test_the_folder_is_a_cache(spdsl: Spdsl, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spdsl(*WORDS, "--target", "sm_80").status == 0
    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path / "other"))
    assert spdsl("cache", "import", "out").status == 0
    listed = json.loads(spdsl("cache", "ls", "--json").out)["entries"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {"forward", "delta", "dq", "dkdv"} <= {each["name"] for each in listed}
    assert len(listed) == len(manifest["kernels"])
    assert {each["about"]["target"] for each in listed} == {"cuda:80"}
    # One bit of one kernel, and nothing of the folder is taken.
    binary = next((tmp_path / "out" / "entries").rglob("*.cubin"))
    content = bytearray(binary.read_bytes())
    content[1000] ^= 1
    binary.write_bytes(content)
    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path / "third"))
    answer = spdsl("cache", "import", "out")
    assert answer.status == 1
    assert "SP617" in answer.err


def test_the_model_chooses(spdsl: Spdsl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles are those of the model, and calls like these find them in the folder."""
    from dataclasses import replace

    from spdsl import choices
    from spdsl.analysis.plans import Tiles
    from spdsl.pipeline import key_of, opened
    from spdsl.semantics.nodes import CheckedPattern

    tiles = Tiles(block_q=64, block_k=64, warps=4, stages=2)
    monkeypatch.setattr(choices, "by_model", lambda situation, device: (("dq", tiles),))
    words = ("compile", "sliding_window", "-o", "out", "--head-dim", "64", "--heads", "2", "-p", "window=200")
    assert spdsl(*words, "--gpu", "NVIDIA H200").status == 2
    assert spdsl(*words, "--gpu", "NVIDIA H200", "-n", "3000").status == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["tiles"]["square"]["dq"]["block_q"] == 64
    kernel = next(each for each in manifest["kernels"] if each["name"] == "dq")
    assert (kernel["warps"], kernel["stages"]) == (4, 2)

    from spdsl.cli.files import read
    from spdsl.cli.stages import checked_pattern

    checked: CheckedPattern = checked_pattern(read("sliding_window"))
    key, _ = opened(key_of(checked, {"window": 200}, None, None, False))
    situation = choices.Situation(
        key=key,
        near=(256,),
        dtype="bf16",
        heads=2,
        groups=2,
        head_dim=64,
        value_dim=64,
        shape="square",
        tables=(),
        lengths=(4096, 4096),
        gpu="NVIDIA H200",
        target="sm_90",
    )
    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path / "other"))
    assert choices.tiles_for(situation) == ()
    monkeypatch.setenv("SPDSL_CACHE_PATH", str(tmp_path / "out"))
    assert choices.tiles_for(situation) == (("dq", tiles),)
    assert choices.tiles_for(replace(situation, lengths=(8192, 8192))) == ()


def test_the_loader(spdsl: Spdsl, good: Path, tmp_path: Path) -> None:
    # Kernels tell the lines of the text; of one that no other test has read.
    good.write_text("# A window.\n\n" + good.read_text().replace("= 8", "= 9"))
    assert spdsl(*WORDS, "--target", "sm_80").status == 0
    code = """
import os, sys, torch
from loader import attention
from spdsl.kernels import sources
print(attention, os.environ['SPDSL_CACHE_PATH'])
q = torch.zeros((), dtype=torch.float16).expand(1, 2, 64, 16)
sys.stderr.write(sources(attention._key, q, q, q, "sm_80")["local.py"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "out",
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path / "out")])},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert done.stdout.startswith("<attention local(window=32)> ")
    assert done.stdout.strip().endswith(str(tmp_path / "out"))
    assert done.stderr == (tmp_path / "out" / "local.square.py").read_text()  # else they were compiled anew


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("streaming", "--batch", "2", "--no-backward"), ("SP513", "`--batch`, `--no-backward`", "selects nothing")),
        (("streaming", "-n", "512", "-n", "1024"), ("SP513", "all but one `-n`", "selects nothing")),
        (("moba", "--shape", "batched"), ("SP513", "places given as tensors", "`--nq`")),
        (("moba", "-p", "block=0"), ("SP3",)),
    ],
)
def test_calls_that_a_pattern_does_not_have(
    spdsl: Spdsl, tmp_path: Path, words: tuple[str, ...], told: tuple[str, ...]
) -> None:
    answer = spdsl("compile", *words, "-o", "out")
    assert answer.status == 1
    assert all(each in answer.err for each in told)
    assert not (tmp_path / "out").exists()


def test_calls_that_only_a_run_knows(spdsl: Spdsl, tmp_path: Path) -> None:
    sizes = ("-n", "256", "--heads", "2", "--head-dim", "16", "--no-backward")
    answer = spdsl("compile", "rectified", "-o", "out", *sizes)
    assert answer.status == 1
    assert "SP519" in answer.err
    assert not (tmp_path / "out").exists()


def test_queries_without_keys(spdsl: Spdsl) -> None:
    answer = spdsl("compile", "quest", "-o", "out", "--nq", "1")
    assert answer.status == 2
    assert "--nq" in answer.err


SERVED = """
import sys, torch, triton
def refuse(*given, **named):
    raise AssertionError("compiled anew")
triton.compile = refuse
from loader import attention
from spdsl.ahead import Wanted, ahead
from spdsl.costs import device_for
from spdsl.samples import Sizes
sizes = Sizes(batch=1, heads=4, groups=2, nq=512, n=512, head_dim=16)
wanted = Wanted(attention=attention, sizes=sizes, value_dim=16, dtype=torch.bfloat16, inputs={}, backward=True)
found = ahead([wanted], device_for("sm_90", "NVIDIA H200"), by_model=False)
print(*sorted(key for key, _ in found.kernels))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quest", "own.spat"])
def test_a_bundle_of_whole_calls(spdsl: Spdsl, tmp_path: Path, name: str) -> None:
    """Nothing that such calls launch is compiled where the folder is found, nor planned."""
    (tmp_path / "near.spat").write_text("pattern near(reach: int = 2) { keep causal and q - k < reach }")
    own = """use "near.spat"
pattern own(page: int = 16) {
  axis pg = token by page
  let chosen = score(Q, mean(K, per = k.pg)) |> only(k.pg.last < q) |> max(per = g) |> top(4)
  let far = attend { keep causal and chosen }
  let local = attend { keep near() }
  return far + local
}
"""
    (tmp_path / "own.spat").write_text(own)
    words = ("compile", name, "-o", "out", "-n", "512", "--heads", "4", "--groups", "2", "--head-dim", "16")
    assert spdsl(*words, "--gpu", "NVIDIA H200").status == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    kernels = manifest["kernels"]
    assert {"keys", "choose", "forward"} <= {each["name"] for each in kernels if "inference" in each["calls"]}
    assert {"delta", "dq", "dkdv"} <= {each["name"] for each in kernels if "inference" not in each["calls"]}
    assert set(files_in(tmp_path / "out")) == {"manifest.json", *manifest["files"]}
    for kernel in kernels:
        assert (tmp_path / "out" / kernel["binary"]).read_bytes().startswith(b"\x7fELF")
        functions = ast.parse((tmp_path / "out" / kernel["source"]).read_text()).body
        assert kernel["name"] in {each.name for each in functions if isinstance(each, ast.FunctionDef)}
        assert kernel["shared_bytes"] <= 232_448
    assert all("keys: *i32/16" in each["arguments"] for each in kernels if each["name"] in ("keys", "choose"))
    paths = [str(Path(__file__).parents[2]), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "SPDSL_CACHE_DIR": str(tmp_path / "other")}
    done = subprocess.run(
        [sys.executable, "-c", SERVED],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(each["key"] for each in kernels)
