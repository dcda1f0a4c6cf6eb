"""What a language model loses by selections: perplexity against the share of pairs that are kept.

    python -m benchmarks.perplexity --tokens 4096

The model and the text are those of `examples/05_language_model.py`.  Pairs are counted by the kernels themselves: with
queries and keys of zeros, and the sets of the real ones, an LSE is the logarithm of the number of keys.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import spdsl
import spdsl.models
from spdsl.pipeline import softmax_key
from spdsl.runtime import graphs, operator

smollm2: Any = import_module("examples.05_language_model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A pattern with parameters."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name with the parameters."""
        given = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.name}({given})" if given else self.name


SETTINGS = (
    Setting(name="causal"),
    *(Setting(name="streaming", parameters={"window": size - 4}) for size in (256, 512, 1024)),
    *(Setting(name="quest", parameters={"page": 16, "budget": size}) for size in (128, 256, 512, 1024)),
    *(Setting(name="minference_blocks", parameters={"block": 64, "picks": size}) for size in (4, 8, 16)),
    *(Setting(name="xattention", parameters={"block": 64, "mass": mass}) for mass in (0.7, 0.9)),
    *(Setting(name="vertical_slash", parameters={"columns": size, "diagonals": 4 * size}) for size in (64, 256)),
)
"""The settings of the page, each with more kept than the one before."""


def kept(attn: spdsl.Attention, q: Tensor, k: Tensor, v: Tensor) -> int:
    """How many pairs a call keeps, over all heads."""
    pattern = attn.bind(q.shape[1], k.shape[1], q.shape[3])
    nothing, keys = torch.zeros_like(q), torch.zeros_like(k)
    if pattern.graph is None:
        result = attn(nothing, keys, v, return_lse=True)
        return int(result[1].double().exp().round().sum())
    call = graphs.Inputs(q=q, k=k, v=v, tables={}, q_start=k.shape[2] - q.shape[2])
    stage = pattern.graph.attentions[-1]
    given = graphs.operands(pattern, stage, call)
    shape = "square" if q.shape[2] == k.shape[2] else "offset"
    key = softmax_key(attn._open_key, stage.name)  # noqa: SLF001  # the operators' own key
    _, lse = operator.attend(nothing, keys, v, list(given.tables.values()), None, key, shape, call.q_start, ())
    return int(lse.double().exp().round().sum())


def measure(setting: Setting, model: Any, tokens: Tensor) -> dict[str, object]:
    """Perplexity, and the share of the causal pairs that is kept, over all layers and heads."""
    attn = spdsl.compile(setting.name, **setting.parameters)
    pairs = {"kept": 0, "all": 0}
    static = attn.pattern.checked.graph is None

    class Counted(smollm2.Run):
        def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any) -> Any:
            if module.layer_idx == 0 or not static:  # what a static pattern keeps is the same in every layer
                pairs["kept"] += kept(attn, query, key, value)
                pairs["all"] += query.shape[1] * query.shape[2] * (query.shape[2] + 1) // 2
            return super().attend(module, query, key, value, mask, **settings)

    spdsl.models.use(model, attn)
    perplexity = Counted(model, tokens).perplexity
    share = pairs["kept"] / pairs["all"]
    return {"name": setting.name, "title": setting.title, "kept": share, "perplexity": perplexity}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, as they stand in docs/perplexity.md."""
    lines = (f"| `{row['title']}` | {row['kept']:.1%} | {row['perplexity']:.2f} |" for row in rows)
    return "\n".join(("| pattern | pairs kept | perplexity |", "|---|---|---|", *lines))


def draw(rows: list[dict[str, Any]], path: Path, tokens: int) -> None:
    """A line for each pattern, and the dense model as a level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    names = dict.fromkeys(row["name"] for row in rows)
    for name in names:
        own = sorted((row["kept"], row["perplexity"]) for row in rows if row["name"] == name)
        if name == "causal":
            axes.axhline(own[0][1], color="grey", linestyle=":", label="dense")
        else:
            axes.plot(*zip(*own, strict=True), marker="o", label=name)
    axes.set(xscale="log", xlabel="share of the causal pairs that is kept", ylabel="perplexity")
    axes.set_title(f"SmolLM2-135M, {tokens:,} tokens", fontsize=10)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure all settings, print a table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument(
        "--only", nargs="*", help="how the titles of what is measured begin: `quest`, `streaming(window=252`"
    )
    parser.add_argument("--json", type=Path, help="results, read and added to")
    parser.add_argument("--plot", type=Path, help="where to draw the table")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, Any]] = []
    if options.json is not None and options.json.exists():
        rows = json.loads(options.json.read_text(encoding="utf-8"))
    tokenizer, model = smollm2.load(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    tokens = tokenizer(smollm2.text(), return_tensors="pt").input_ids[:, : options.tokens].to(device)
    for setting in SETTINGS:
        known = any(row["title"] == setting.title for row in rows)
        if known or (options.only and not setting.title.startswith(tuple(options.only))):
            continue
        rows.append(measure(setting, model, tokens))
        print(f"| {setting.title} | {rows[-1]['kept']:.1%} | {rows[-1]['perplexity']:.2f} |", flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if options.plot is not None:
        draw(rows, options.plot, tokens.shape[1])


if __name__ == "__main__":
    main()
