"""Find which layers of a language model can read what earlier layers have chosen, by measuring it.

From: a model, tokens, and two patterns: one that attends in full and exports a choice, one with an input of that name.
To: a plan that was measured.  Two things are measured with all other layers full: what the model loses when one layer
reads the choice of the layer before it, and how much of a layer's attention lies in the choice of each earlier one.
`spdsl.reuse_plan` makes plans of these numbers, and the model says of a few of them what they really lose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import assert_never

from spdsl.api import Attention
from spdsl.diagnostics import error
from spdsl.explain import Report
from spdsl.models import NAME, attend, use
from spdsl.reuse_plan import Measured, ReusePlan, best_plans, fewest_full, refuse_below_zero
from spdsl.runtime.ranking import FAR
from spdsl.selecting import GraphReport

AT_ONCE = 8
"""Choices that one call reads, each as a sequence of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A plan, and what the model loses with it, in nats a token."""

    plan: ReusePlan
    lost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The plan with the fewest full layers that was found to be good enough, and all that were tried."""

    best: Trial
    tried: tuple[Trial, ...]


def _nothing(said: object) -> None:
    del said


def find(
    model: Any,
    tokens: Tensor,
    chooses: Attention,
    reads: Attention,
    *,
    within: float = 0.01,
    known: Measured | None = None,
    tell: Callable[[str], None] = _nothing,
    keep: Callable[[Measured], None] = _nothing,
) -> Search:
    """The plan with the fewest full layers whose perplexity is at most ``1 + within`` times that of full layers.

    The number of full layers is halved in: the first try is the plan that is estimated to be just good enough, and
    each one that is measured leaves those with more full layers or those with fewer.

    Args:
        model: as for `spdsl.models.use`; its patterns are those of the plan afterwards.
        tokens: int64 ``[batch, n]``, of one length, without padding.
        chooses: a full pattern with exports.
        reads: a pattern whose inputs are among these exports.
        within: the share by which perplexity may grow.
        known: what was measured before, of all layers or some.
        tell: is told what is done next, in words.
        keep: is given what was measured, after each layer.

    Raises:
        SpatError: patterns that do not belong together (SP645), a limit that no plan can keep (SP647), and what
            `spdsl.models.use` raises.
    """
    refuse_below_zero(within)
    measured = measure(model, tokens, chooses, reads, known=known, tell=tell, keep=keep)
    plans = best_plans(measured.readers)
    allowed = math.log1p(within)
    tried: list[Trial] = []
    # With all layers full nothing is lost; fewer than one full layer there cannot be.
    bad, good = 0, len(plans)
    best = Trial(plan=plans[-1], lost=0.0)
    count = sum(fewest_full(plans, within).full)
    while good - bad > 1:
        count = count if bad < count < good else (bad + good) // 2
        plan = plans[count - 1]
        tell(f"trying {plan.reading} of {len(plan.full)} layers that read")
        use(model, plan.patterns(chooses, reads))
        trial = Trial(plan=plan, lost=loss(model, tokens) - measured.dense)
        tried.append(trial)
        if trial.lost <= allowed:
            good, best = count, trial
        else:
            bad = count
    use(model, best.plan.patterns(chooses, reads))
    return Search(best=best, tried=tuple(tried))


def measure(
    model: Any,
    tokens: Tensor,
    chooses: Attention,
    reads: Attention,
    *,
    known: Measured | None = None,
    tell: Callable[[str], None] = _nothing,
    keep: Callable[[Measured], None] = _nothing,
) -> Measured:
    """What layers lose when they read, each alone, and how much of their attention is where they would read.

    Arguments and errors are those of `find`.
    """
    refuse_strangers(chooses, reads)
    use(model, chooses)
    found = _with_all_full(model, tokens, chooses, reads, tell) if known is None else known
    keep(found)
    layers = len(found.held) + 1
    for layer in range(len(found.lost) + 1, layers):
        tell(f"layer {layer} of {layers - 1} reads")
        use(model, [reads if each == layer else chooses for each in range(layers)])
        found = replace(found, lost=(*found.lost, loss(model, tokens) - found.dense))
        keep(found)
    return found


@torch.no_grad()
def loss(model: Any, tokens: Tensor) -> float:
    """Nats a token of tokens ``[batch, n]``, each told from those before it."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()).item()


def refuse_strangers(chooses: Attention, reads: Attention) -> None:
    """Raise where the second pattern does not read what the first exports, or the first needs more (SP645)."""
    exported, wanted = chooses.pattern.exports, reads.pattern.inputs
    if not wanted or not set(wanted) <= set(exported):
        found = f"`{reads.pattern.name}` reads {_words(wanted)}, `{chooses.pattern.name}` exports {_words(exported)}"
        raise error("SP645", found, help="name an export of the first like each input of the second")
    if chooses.pattern.inputs:
        found = f"`{chooses.pattern.name}` has inputs of its own: {_words(chooses.pattern.inputs)}"
        raise error("SP645", found, help="plans are made for patterns that need nothing but the model's tensors")


def _words(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "nothing"


# ---------------------------------------------------------------- one run with all layers full


def _with_all_full(
    model: Any, tokens: Tensor, chooses: Attention, reads: Attention, tell: Callable[[str], None]
) -> Measured:
    watch = _Watch(chooses, reads, tell)
    with _watched(watch):
        dense = loss(model, tokens)
    bools, lists = watch.sizes
    return Measured(
        dense=dense,
        held=tuple(map(tuple, watch.held[1:])),
        lost=(),
        kept=watch.kept,
        list_bytes=lists,
        bool_bytes=bools,
    )


class _Watch:
    """Sees queries and keys of every layer on their way: ``held[layer][source]``."""

    def __init__(self, chooses: Attention, reads: Attention, tell: Callable[[str], None]) -> None:
        self.chooses, self.reads, self.tell = chooses, reads, tell
        self.choices: list[dict[str, Tensor]] = []
        self.held: list[list[float]] = []
        self.kept = 0.0
        self.sizes = (0, 0)

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **given: Any) -> Any:
        layer = module.layer_idx
        assert layer == len(self.held), "layers run in their order"
        self.tell(f"layer {layer} in full, and what earlier ones have chosen")
        self.held.append(self._shares(query, key, value))
        exports = self.chooses.exports(query, key, value, compact=True)
        self.choices.append({name: exports[name] for name in self.reads.pattern.inputs})
        if layer == 0:
            self._count(query, key, value)
        return attend(module, query, key, value, mask, **given)

    def _shares(self, query: Tensor, key: Tensor, value: Tensor) -> list[float]:
        """What the softmax gives to each choice: sums of exponentials of its keys over those of all keys."""
        _, whole = self.chooses(query, key, value, return_lse=True)
        found: list[float] = []
        for begin in range(0, len(self.choices), AT_ONCE):
            some = self.choices[begin : begin + AT_ONCE]
            q, k, v = (torch.cat([each] * len(some)) for each in (query, key, value))
            _, lse = self.reads(q, k, v, return_lse=True, **{name: _stacked(some, name) for name in some[0]})
            shares = (lse.unflatten(0, (len(some), -1)) - whole).double().exp()
            found += shares.flatten(1).mean(1).tolist()
        return found

    def _count(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        (choice,) = self.choices
        bools = self.chooses.exports(query, key, value)
        self.sizes = (sum(bools[name].nbytes for name in choice), sum(each.nbytes for each in choice.values()))
        every = self.chooses.report(query, key, value)
        some = self.reads.report(query, key, value, **choice)
        self.kept = _pairs(some) / _pairs(every)


def _pairs(report: Report | GraphReport) -> int:
    match report:
        case Report(pairs=pairs):
            return pairs
        case GraphReport(softmaxes=softmaxes):
            return sum(each.pairs for _, each in softmaxes)
        case _:
            assert_never(report)


def _stacked(choices: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    """The choices of several layers as sequences; lists are filled up to the longest."""
    tensors = [each[name] for each in choices]
    if tensors[0].dtype == torch.int32:
        most = max(each.shape[-1] for each in tensors)
        tensors = [torch.nn.functional.pad(each, (0, most - each.shape[-1]), value=FAR) for each in tensors]
    return torch.cat(tensors)


@contextmanager
def _watched(watch: _Watch) -> Iterator[None]:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, watch)
    try:
        yield
    finally:
        AttentionInterface.register(NAME, attend)
