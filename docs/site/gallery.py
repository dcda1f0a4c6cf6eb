"""The library as a gallery: for every pattern of docs/library.md its picture, definition, predicted and measured speed.

All of it is made when the site is built, in some ten seconds, so that it is that of the code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from scenes import SCENES, WORKS, Scene

import spdsl
from benchmarks.cases import CASES
from spdsl.explain import explain
from spdsl.library import text_of
from spdsl.pipeline import key_of
from spdsl.samples import Sizes, drawn, sample_inputs, shaped
from spdsl.selecting import explain_stages
from spdsl.showing import look, svg

ROOT = Path(__file__).parents[2]
GPU = "NVIDIA H200"
SELECTED = Sizes(batch=1, heads=4, groups=1, nq=2048, n=2048, head_dim=64)
SLOW = ("dsa", "superlinear")
"""Patterns whose scores take the CPU some seconds."""
HEADING = re.compile(r"^### (\w+(?:, \w+)*)$", re.MULTILINE)


def page(markdown: str) -> str:
    """docs/library.md with a picture beside every entry, and below it the definition and what is known of its speed."""
    start, *parts = HEADING.split(markdown)
    found = [start]
    for names, text in zip(parts[::2], parts[1::2], strict=True):
        patterns = names.split(", ")
        # The text of the last entry of a chapter ends where the next chapter begins.
        own, title, rest = text.partition("\n## ")
        pictures = "".join(map(picture, patterns))
        below = "\n".join(line for name in patterns for line in (*definition(name), *speed(name)))
        found.append(f"### {names}\n\n{pictures}\n{own.rstrip()}\n\n{below}\n\n{title.lstrip()}{rest}")
    return "".join(found)


def picture(name: str) -> str:
    """A figure with the mask and what it was drawn with."""
    scene = SCENES.get(name, Scene())
    pattern = spdsl.load(name)
    sight = look(pattern, scene.parameters, layer=scene.layer, n=scene.n, known=scene.inputs)
    told = [f"{key}={value}" for key, value in scene.parameters.items()]
    told += [f"layer={scene.layer}"] * (scene.layer is not None)
    about = f"{len(sight.mask)} tokens, {sight.kept:.1%} of the pairs"
    random = [each for each in sight.made_up if each not in scene.inputs]
    lines = [f"<code>{', '.join(told)}</code>"] * bool(told) + [about]
    lines += [f"{', '.join(random)} at random"] * bool(random)
    drawing = svg(sight.mask, label=f"mask of {name}")
    return f'<figure class="mask">{drawing}<figcaption>{"<br>".join(lines)}</figcaption></figure>\n'


def example(name: str, *words: str) -> str:
    """A figure of a pattern of examples/, with what stands behind it: parameters, and ``n``."""
    given = {key: int(value) for key, _, value in (word.partition("=") for word in words)}
    sight = look(spdsl.load(ROOT / "examples" / name), {key: given[key] for key in given if key != "n"}, n=given["n"])
    told = f"<code>{', '.join(words)}</code><br>{sight.kept:.1%} of the pairs"
    return f'<figure class="mask">{svg(sight.mask, label=f"mask of {name}")}<figcaption>{told}</figcaption></figure>\n'


def definition(name: str) -> Iterator[str]:
    """The text of its file."""
    yield from (f'```spat title="patterns/{name}.spat"', text_of(name).strip(), "```", "")


def speed(name: str) -> Iterator[str]:
    """What the model predicts for an H200, and what was measured on one; of selections, what they compute."""
    if name not in WORKS:
        yield from selected(name)
        return
    predicted, measured = cost(name), measurements().get(name)
    sizes = f"{predicted['tokens']:,} tokens, {predicted['heads']} heads of 128"
    yield f"{sizes}, bf16, {GPU}; {predicted['kept']:.2%} of the pairs kept:"
    yield ""
    yield "| milliseconds | forward | backward |"
    yield "|---|---|---|"
    yield f"| predicted | {_ms(predicted['forward'])} | {_ms(predicted['backward'])} |"
    yield f"| dense attention, predicted | {_ms(predicted['dense_forward'])} | {_ms(predicted['dense_backward'])} |"
    for impl, title in (("spdsl", f"measured, {day()}"), ("flex", f"FlexAttention, {day()}")):
        if measured and (impl, "fwd") in measured:
            yield f"| {title} | {_ms(measured[impl, 'fwd'])} | {_ms(measured[impl, 'bwd'])} |"
    yield ""


def selected(name: str) -> Iterator[str]:
    """The share of the scores in the work of a pattern that selects, with its defaults, and what it keeps."""
    pattern, sizes = spdsl.load(name), SELECTED
    if pattern.checked.graph is None or name in SLOW or None in pattern.parameters.values():
        return
    key = key_of(pattern.checked, {}, SCENES.get(name, Scene()).layer, None, False)
    inputs = sample_inputs(pattern.checked, {}, sizes, layer=SCENES.get(name, Scene()).layer)
    found = explain_stages(key, *drawn(sizes, sizes.head_dim, torch.float32, 0), inputs, "cpu")
    kept = ", ".join(f"{report.kept:.1%}" for _, report in found.softmaxes)
    call = f"{sizes.n:,} tokens, {sizes.heads} heads of one group, head dim {sizes.head_dim}, random queries and keys"
    share = f"scores are {found.share:.1%} of the multiply-adds of the forward pass"
    yield f"With its defaults, {call}: {share}; pairs kept: {kept}."
    yield ""


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 10 else f"{value:.1f}"


def results() -> Path:
    """The last run of the benchmarks on this GPU."""
    return max((ROOT / "benchmarks" / "results").glob("h200-????-??-??.json"))


def day() -> str:
    """When it was."""
    return results().stem.removeprefix("h200-")


@cache
def measurements() -> dict[str, dict[tuple[str, str], float]]:
    """Milliseconds of the last run of the benchmarks whose masks are patterns of the library as they are costed."""
    names = {case.name: case.pattern for case in CASES if case.pattern in WORKS and case.n == WORKS[case.pattern].n}
    found: dict[str, dict[tuple[str, str], float]] = {}
    for row in json.loads(results().read_text(encoding="utf-8")):
        if row["case"] in names:
            found.setdefault(names[row["case"]], {})[row["impl"], row["direction"]] = row["ms"]
    return found


def cost(name: str) -> dict[str, Any]:
    """What `spdsl explain` predicts, in milliseconds."""
    work = WORKS[name]
    sizes = Sizes(batch=1, heads=work.heads, groups=work.heads, nq=work.n, n=work.n, head_dim=128)
    pattern = spdsl.load(name).checked
    inputs = sample_inputs(pattern, work.parameters, sizes, known=work.inputs())
    key = key_of(pattern, work.parameters, None, None, False)
    found = explain(key, *shaped(sizes, 128, torch.bfloat16), inputs, "sm_90", gpu=GPU)
    assert found.cost is not None
    times = ("forward", "backward", "dense_forward", "dense_backward")
    return {"tokens": work.n, "heads": work.heads, "kept": found.kept} | {
        time: getattr(found.cost, time) * 1e3 for time in times
    }
