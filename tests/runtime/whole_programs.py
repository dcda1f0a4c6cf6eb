"""Random whole patterns: stages of all kinds, sets of them, branches, and inputs, with tensors; one generator for all
engines.

`check` compares an engine's output and gradients with the reference.  Programs of whole numbers compute their scores
exactly, so that sets must be those of the reference, ties included; of others, rows in doubt take no part.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import spdsl
from spdsl import reference
from tests.library.compare import TOLERANCE, relative_error

GROUPS = ((1, 1), (2, 2), (3, 1), (4, 2), (6, 2), (16, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A text, and the call of it; ``exact`` ones have whole numbers."""

    text: str
    exact: bool
    heads: int
    groups: int
    nq: int
    n: int
    q_start: int | None
    batch: int
    inputs: tuple[tuple[str, str], ...]
    small: int

    @property
    def first(self) -> int:
        """The position of the first query."""
        return self.n - self.nq if self.q_start is None else self.q_start


@dataclass(slots=True, kw_only=True)
class _Writer:
    """Words of one program; ``inputs`` are those that it has come to need."""

    rng: random.Random
    exact: bool
    inputs: dict[str, str]

    def one_of(self, *words: str) -> str:
        return self.rng.choice(words)

    @property
    def scale(self) -> str:
        return ", scale = 0.25" if self.exact else ""

    def pooled(self, side: str, axis: str) -> str:
        """Queries or keys, or pools of them."""
        name = side.upper()
        if axis == side:
            return name
        kinds = ("sum", "max") + (("min",) if side == "k" else ()) + (() if self.exact else ("mean", "mean"))
        return f"{self.one_of(*kinds)}({name}, per = {axis})"

    def shared(self) -> str:
        """What heads make together."""
        return self.one_of("", "", " |> sum(per = g)", " |> max(per = g)", " |> max(over = h)", " |> min(per = g)")

    def selection(self, name: str, blocks: tuple[str, ...]) -> str:
        """Statements that declare a set of pairs."""
        kinds = ("plain", "plain", "plain", "threshold", "rank", "levels", "levels", "search", "among", "experts")
        kinds += ("probe", "distances", "jointly", "some heads", "indexed", "imported", "by sequence")
        kind = self.one_of(*kinds)
        row = self.one_of("q", "q", "q", f"q.{self.one_of(*blocks)}")
        key = self.one_of("k", *(f"k.{block}" for block in blocks))
        ends = key if key == "k" else f"{key}.last", row if row == "q" else f"{row}.first"
        only = self.one_of(f"{ends[0]} <= {ends[1]}", f"{ends[0]} < {ends[1]}", "all")
        found = f"score({self.pooled('q', row)}, {self.pooled('k', key)}{self.scale}) |> only({only})"
        shares = "" if self.exact else self.one_of("", " |> softmax")
        scores = found + shares + self.shared()
        forced = self.one_of("", "", f" |> force({key} == 0)", f" |> force({key} == 0 or {key} == 2)")
        count = self.one_of("0", "1", "2", "3", "5", "100")
        mass = self.one_of("0.0", "0.3", "0.8", "1.0")
        cut = self.one_of(f" |> top({count})", f" |> top({count})", f" |> top_p({mass})")
        token = f"score(Q, K{self.scale})"
        match kind:
            case "plain":
                return f"let {name} = {scores}{forced}{cut}"
            case "threshold":
                least = self.one_of("0.5", "-1.0") if self.exact else self.one_of("0.2", "0.05")
                best = f"max(s_{name}, over = {key})"
                return (
                    f"let s_{name} = {scores}\n  let {name} = s_{name} >= {self.one_of(least, best, f'{best} - 0.5')}"
                )
            case "rank":
                first = self.one_of("1", "2", "3")
                return (
                    f"let r_{name} = {scores}{forced} |> top({first}, rank = a)\n  let {name} = any(r_{name}, over = a)"
                )
            case "levels":
                wide = f"score(Q, {self.pooled('k', 'k.super')}{self.scale}) |> only(k.super.last <= q){self.shared()}"
                low, past = self.one_of("k causal", "k.small k.small.last<=q").split()
                near = f"score(Q, {self.pooled('k', low)}{self.scale}) |> only(w_{name} and {past}){self.shared()}"
                return f"let w_{name} = {wide} |> top({self.one_of('1', '2')})\n  let {name} = {near} |> top({count})"
            case "search":
                rows = self.one_of("", " |> max(per = q.small)")
                seen = f"{token} |> only(causal){rows}"
                wide = f"{seen} |> descend(per = k.super) |> top({self.one_of('1', '2')})"
                inner = f"{seen} |> descend(per = k.small) |> only(w_{name}) |> top({self.one_of('1', '3')})"
                return f"let w_{name} = {wide}\n  let {name} = {inner}"
            case "among":
                if row != "q":
                    return f"let {name} = {scores}{cut}"
                inner = f"{token} |> only(w_{name} and {self.one_of('causal', 'all')}) |> top({count})"
                return f"let w_{name} = {scores}{forced} |> top(2)\n  let {name} = {inner}"
            case "experts":
                past = only if row == "q" else "all"
                asked = f"score(Q, {self.pooled('k', key)}{self.scale}) |> only({past})"
                return f"let {name} = {asked}{self.shared()} |> top({count}, over = q)"
            case "probe":
                seen = f"{token} |> only(q >= n - {self.one_of('1', '3', '8')} and causal){shares} |> sum(over = q)"
                shared = self.one_of("", " |> sum(per = g)", " |> sum(per = k.small)")
                return f"let {name} = {seen}{shared} |> top({count})"
            case "distances":
                past = self.one_of("causal", "causal and q >= n - 5")
                seen = f"{token} |> only({past}){shares} |> sum(per = q - k)"
                return f"let {name} = {seen} |> top({count}, over = q - k)"
            case "jointly":
                return f"let {name} = {found}{shares}{forced} |> top({count}, over = (h, {key}))"
            case "some heads":
                return (
                    f"let x_{name} = {found}{cut}\n  let {name} = x_{name} and h % 2 == 0 or {key} == 1 and h % 2 == 1"
                )
            case "indexed":
                self.inputs |= {"QI": "float[j: 3, q, e]", "KI": "float[token, e]", "wt": "float[j, q]"}
                index = f"wt[j, q] * relu(score(QI, KI{self.scale})) |> sum(over = j)"
                return f"let i_{name} = {index}\n  let {name} = i_{name} |> only(causal) |> top({count})"
            case "imported":
                self.inputs |= {"given": "bool[h, q, k.small]"}
                return f"let {name} = given[h, q, k.small] and causal"
            case _:
                self.inputs |= {"route": "bool[b]"}
                return f"let x_{name} = {found}{cut}\n  let {name} = if route[b] then x_{name} else {key} == 0"

    def result(self, chosen: str) -> list[str]:
        """The softmaxes over it."""
        keep = self.one_of(
            *(f"causal and {chosen}", f"causal and {chosen}", chosen, f"causal and not {chosen}"),
            *(f"causal and ({chosen} or q - k < 3)", f"causal and ({chosen} or k < 2 or q.small == k.small)"),
        )
        near = f"q - k < {self.one_of('1', '4', '9')}"
        kind = self.one_of("one", "one", "one", "one", "gates", "parts", "counted", "streams", "sum")
        setting = self.one_of("", "", "  softcap 2.0", "  bias 0.1 * (k - q)", "  sink_logit 0.3")
        summaries = ["let KP = mean(K, per = k.small)", "let VP = mean(V, per = k.small)"]
        match kind:
            case "one":
                return [f"keep {keep}{setting}"]
            case "gates":
                self.inputs |= {"gate": "float[2, h, q]"}
                return [f"return gate[0] * attend {{ keep {keep} }} + gate[1] * attend {{ keep causal and {near} }}"]
            case "parts":
                far = f"attend {{ keep causal and {chosen} and not ({near}) }}"
                return [f"return merge({far}, attend {{ keep causal and {near} }})"]
            case "counted":
                other = f"attend {{ keep causal and {near} }}"
                return [f"return merge(attend {{ keep causal and {chosen} }}, {other}, overlap = counted)"]
            case "streams":
                weight = self.one_of("k.small.size", "1.0")
                pooled = f"keep k.small.last < q from (KP, VP) weight {weight}"
                return [*summaries, f"return attend {{ keep causal and {chosen} {pooled} }}"]
            case _:
                pooled = "attend(Q, KP, VP) { keep k.small.last <= q }"
                return [*summaries, f"return {pooled} + attend {{ keep {keep} }}"]


def program(rng: random.Random, *, longest: int, groups: tuple[tuple[int, int], ...] = GROUPS) -> Program:
    """A random program with up to so many keys."""
    writer = _Writer(rng=rng, exact=rng.random() < 0.6, inputs={})
    small = rng.choice((4, 8, 16))
    axes = [f"axis small = token by {small}", f"axis super = small by {rng.choice((2, 3, 4))}"]
    blocks: tuple[str, ...] = ("small", "super")
    if rng.random() < 0.3:
        axes, blocks = [*axes, f"axis odd = token by {rng.choice((5, 7, 12))}"], ("odd",)
    lines, chosen = [writer.selection("c", blocks)], "c"
    if rng.random() < 0.35:
        lines.append(writer.selection("o", ("small", "super")))
        chosen = rng.choice(("(c or o)", "(c and not o)"))
    lines += writer.result(chosen)
    given = [f"input {name}: {kind}" for name, kind in writer.inputs.items()]
    heads, shared = rng.choice(groups)
    n = rng.randint(1, longest)
    nq = rng.choice((n, n, 1, rng.randint(1, n)))
    return Program(
        text="pattern random() {\n  " + "\n  ".join([*axes, *given, *lines]) + "\n}\n",
        exact=writer.exact,
        heads=heads,
        groups=shared,
        nq=nq,
        n=n,
        q_start=None if nq == n or rng.random() < 0.6 else rng.randint(0, n - nq),
        batch=rng.choice((1, 1, 2)),
        inputs=tuple(writer.inputs.items()),
        small=small,
    )


def tensors(made: Program, seed: int, d: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """q, k and v, and the inputs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        whole = torch.randint(-2, 3, shape, generator=generator).float()
        return whole if made.exact else torch.randn(shape, generator=generator)

    q, k = draw(made.batch, made.heads, made.nq, d), draw(made.batch, made.groups, made.n, d)
    v = torch.randn(made.batch, made.groups, made.n, d, generator=generator)
    inputs = {
        "QI": draw(3, made.nq, 8),
        "KI": draw(made.n, 8),
        "wt": draw(3, made.nq),
        "given": torch.rand(made.heads, made.nq, -(-made.n // made.small), generator=generator) < 0.4,
        "route": torch.rand(made.batch, generator=generator) < 0.5,
        "gate": torch.rand(2, made.heads, made.nq, generator=generator),
    }
    return [q, k, v], {name: inputs[name] for name, _ in made.inputs}


def check(
    made: Program,
    seed: int,
    *,
    backend: str,
    d: int = 8,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    backward: bool = True,
) -> None:
    """Assert that output and gradients of an engine are those of the reference."""
    leaves, inputs = tensors(made, seed, d)
    leaves = [each.to(device, dtype).requires_grad_() for each in leaves]
    inputs = {name: each.to(device) for name, each in inputs.items()}
    if "gate" in inputs:
        leaves.append(inputs["gate"].requires_grad_())
    attn = spdsl.compile(spdsl.loads(made.text), backend=backend)
    places: dict[str, Any] = {} if made.q_start is None else {"q_start": made.q_start}
    out, truth = attn(*leaves[:3], **places, **inputs), attn.reference(*leaves[:3], **places, **inputs)
    assert isinstance(out, Tensor)
    assert isinstance(truth, Tensor)
    looked = torch.ones(out.shape[:3], dtype=torch.bool, device=device)
    if not made.exact:
        bound = attn.bind(made.heads, made.groups, d)
        looked = ~reference.doubtful(bound, *leaves[:3], tables=inputs, q_start=made.first)
    assert relative_error(out[looked], truth[looked]) <= TOLERANCE[dtype]
    if not backward or not truth.requires_grad:
        return
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    d_out = d_out * looked[..., None]
    found = torch.autograd.grad(out, leaves, d_out, allow_unused=True)
    wanted = torch.autograd.grad(truth, leaves, d_out.double(), allow_unused=True)
    rounding = _rounding(truth, d_out, *leaves[:2])
    for name, leaf, one, other in zip(("q", "k", "v", "gate"), leaves, found, wanted, strict=False):
        mine, exact = (torch.zeros_like(leaf) if each is None else each.double() for each in (one, other))
        allowed = 2 * TOLERANCE[dtype] * float(exact.norm()) + rounding.get(name, 0.0)
        assert float((mine - exact).norm()) <= allowed, f"gradient of {name}"


def _rounding(out: Tensor, d_out: Tensor, q: Tensor, k: Tensor) -> dict[str, float]:
    """How far the gradients of queries and keys may be off since the output that ``d_out`` is multiplied with has been
    rounded to its type: what is left of a gradient is that alone where rows have one key, or one that takes nearly all.
    """
    off = torch.finfo(d_out.dtype).eps / q.shape[-1] ** 0.5 * (out.detach().norm(dim=-1) * d_out.double().norm(dim=-1))
    longest = {"q": k, "k": q}
    return {name: float(off.norm() * each.detach().double().norm(dim=-1).max()) for name, each in longest.items()}
