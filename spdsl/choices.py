"""Which tiles the kernels of a call take: those that were measured to be best, those that the model predicts to be, or
the plan's own.

From a `Situation`, in which lengths and values are rounded up to powers of two so that one choice serves many calls.
To: tiles for some kernels; the others take the plan's own.  ``SPDSL_TUNE`` says where choices come from:

- unset: what `spdsl tune` measured, where it did, else what was measured for the package on a GPU of this name
- ``model``: else what the model predicts to be fastest, where counts do not depend on tables
- ``first``: else what is measured at the first call (`spdsl.tuning`)
- ``off``: the plan's own, always
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from dataclasses import replace as changed
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any, Literal, TypeAlias, get_args

import torch

from spdsl import __version__
from spdsl.analysis.candidates import candidates
from spdsl.analysis.cost import estimate
from spdsl.analysis.device import DeviceProfile
from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Kind, Plan, Precision, Problem, Tiles
from spdsl.analysis.tiles import Shape
from spdsl.cache.entries import digest
from spdsl.cache.store import store
from spdsl.diagnostics import error
from spdsl.pipeline import bound, free_names
from spdsl.runtime.calls import DTYPES, Call
from spdsl.runtime.parts import parts_of, settled

Chosen: TypeAlias = "tuple[tuple[Kind, Tiles], ...]"

MODES = ("", "off", "model", "first")

MARGIN = 0.95
"""The model must promise this share of the time of the plan's own tiles before it takes others: less is within its
errors."""

KINDS: tuple[Kind, ...] = ("forward", "dq", "dkdv")
"""Kernels with several candidates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A kind of call: a key with its free parameters open, and all that times depend on; ``near`` are the values of the
    parameters and ``lengths`` those of queries and keys, rounded up to powers of two."""

    key: str
    near: tuple[int, ...]
    dtype: Precision
    heads: int
    groups: int
    head_dim: int
    value_dim: int
    shape: Shape
    tables: tuple[str, ...]
    lengths: tuple[int, int]
    gpu: str
    target: str

    @property
    def identity(self) -> str:
        """The key of results for calls like these, made by this version of the compiler and of Triton."""
        # Who asks for a back end or for bitwise gradients gets the same kernels.
        fields = {name: each for name, each in json.loads(self.key).items() if name not in ("backend", "deterministic")}
        own = asdict(self) | {"key": json.dumps(fields, sort_keys=True)}
        parts = [f"{name}={value!r}" for name, value in sorted(own.items())]
        return digest("choice", __version__, _version_of_triton(), *parts)

    def problem(self) -> Problem:
        """The problem that is planned, without gradients of tables."""
        pattern = bound(self.key, self.heads, self.groups, self.head_dim)
        names = (table.name for table in pattern.tables)
        return Problem(
            pattern=pattern,
            dtype=self.dtype,
            value_dim=self.value_dim,
            shape=self.shape,
            tables=tuple(zip(names, self.tables, strict=True)),
        )


@lru_cache(maxsize=1)
def _version_of_triton() -> str:
    """Without the half second that an import takes, which may then run beside the search for a plan."""
    try:
        return version("triton")
    except PackageNotFoundError:  # it comes under other names, too
        import triton

        return str(triton.__version__)


def mode() -> str:
    """Where choices come from, as ``SPDSL_TUNE`` says.

    Raises:
        SpatError: it is none of `MODES` (SP522).
    """
    found = os.environ.get("SPDSL_TUNE", "")
    if found not in MODES:
        raise error("SP522", f"SPDSL_TUNE is `{found}`", help=f"use one of {', '.join(MODES[1:])}, or unset it")
    return found


def tiles_for(situation: Situation) -> Chosen:
    """The tiles that were chosen for calls like these."""
    noted = _noted.get()
    wanted = mode()
    if wanted == "off":
        return ()
    measured = store().result("tuning", situation.identity)
    known = shipped().get(situation.identity)
    if measured is not None:
        found = chosen_of(measured["tiles"])
    elif known is not None:
        return known
    else:
        found = predicted(situation) if wanted == "model" or (noted is not None and noted.by_model) else ()
    if noted is not None and found and all(each.situation != situation for each in noted.choices):
        noted.choices.append(Choice(situation=situation, tiles=found, by="model" if measured is None else "measured"))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Tiles that were chosen ``by`` the model, or as measured, for calls of one kind."""

    situation: Situation
    tiles: Chosen
    by: Literal["model", "measured"]

    @property
    def record(self) -> list[Any]:
        """As caches keep it: what calls like these find there."""
        about = {"tiles": record_of(self.tiles), "gpu": self.situation.gpu, "by": self.by}
        return ["tuning", self.situation.identity, about]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Noted:
    by_model: bool
    choices: list[Choice]


_noted: ContextVar[_Noted | None] = ContextVar("_noted", default=None)


@contextmanager
def choosing(*, by_model: bool) -> Iterator[list[Choice]]:
    """While this lasts, note what is chosen of that which the package does not bring; ``by_model`` says that the model
    chooses where nothing was measured."""
    noted = _Noted(by_model=by_model, choices=[])
    token = _noted.set(noted)
    try:
        yield noted.choices
    finally:
        _noted.reset(token)


@lru_cache(maxsize=1)
def shipped() -> Mapping[str, Chosen]:
    """The tiles that come with the package, by the identity of the calls for which they were measured.

    An identity names the versions of the compiler and of Triton and the text of the pattern: of others nothing is
    found.
    """
    folder = files("spdsl.analysis").joinpath("tuned")
    tables = [json.loads(each.read_text(encoding="utf-8")) for each in folder.iterdir() if each.name.endswith(".json")]
    return {key: chosen_of(entry["tiles"]) for table in tables for key, entry in table["calls"].items()}


def predicted(situation: Situation) -> Chosen:
    """What the model chooses; it is kept, so that the next process need not plan all candidates."""
    results, identity = store().results, situation.identity
    known = results.get("choice", identity)
    if known is None:
        from spdsl.costs import device_for

        found = by_model(situation, device_for(situation.target, situation.gpu))
        known = record_of(found)
        results.put("choice", identity, known)
    return chosen_of(known)


def by_model(situation: Situation, device: DeviceProfile) -> Chosen:
    """For every kernel the candidate of the least predicted time, where that is less by more than the model's errors;
    nothing where counts depend on tables."""
    base = plan(situation.problem(), situation.target)
    if base.problem.pattern.tables or base.stages:
        return ()
    found: list[tuple[Kind, Tiles]] = []
    for kind in KINDS:
        times = candidate_times(kind, base, call_of(situation, base), device, situation.target)
        best = min(times, key=lambda tiles: times[tiles])
        if times[best] < MARGIN * times[getattr(base, kind).tiles]:
            found.append((kind, best))
    return tuple(found)


def variants(kind: Kind, base: Plan, target: str) -> dict[Tiles, Plan]:
    """A plan with each of the candidates of a kernel, the plan's own first."""
    # Of a union each candidate is a plan of all parts.
    problem, own = base.problem if base.union is None else base.union, getattr(base, kind)
    sizes = {"head_dim": problem.pattern.head_dim, "value_dim": problem.value_dim}
    found = {own.tiles: base}
    for tiles in candidates(kind, dtype=problem.dtype, target=target, default=own, **sizes):
        made = plan(changed(problem, tiles=((kind, tiles),)), target)
        if getattr(made, kind).tiles == tiles:
            found.setdefault(tiles, made)
    return found


def candidate_times(kind: Kind, base: Plan, call: Call, device: DeviceProfile, target: str) -> dict[Tiles, float]:
    """The predicted time of each candidate of a kernel in a call, in seconds; of a union with those of all parts."""
    from spdsl.costs import work

    def seconds(made: Plan) -> float:
        parts = parts_of(settled(changed(call, plan=made)), lambda _: ())
        return sum(estimate(work(part, getattr(part.plan, kind)), device).seconds for part in parts)

    return {tiles: seconds(made) for tiles, made in variants(kind, base, target).items()}


def call_of(situation: Situation, made: Plan) -> Call:
    """A call of these lengths and values, on tensors that take no memory; the pattern must have no tables."""
    nq, n = situation.lengths
    if situation.shape == "square":
        nq = n

    def like(heads: int, rows: int, dim: int) -> torch.Tensor:
        return torch.zeros((), dtype=DTYPES[situation.dtype]).expand(1, heads, rows, dim)

    names = dict(zip(free_names(situation.key), situation.near, strict=True))
    return Call(
        plan=made,
        q=like(situation.heads, nq, situation.head_dim),
        k=like(situation.groups, n, situation.head_dim),
        v=like(situation.groups, n, situation.value_dim),
        q_start=n - nq,
        parameters={each.variable: names[each.name] for each in made.problem.pattern.free},
    )


def record_of(found: Chosen) -> dict[str, Any]:
    """Tiles as JSON keeps them."""
    return {kind: asdict(tiles) for kind, tiles in found}


def chosen_of(record: Mapping[str, Any]) -> Chosen:
    """Tiles as `record_of` wrote them; kinds of kernels that there are no more are left out."""
    return tuple((kind, Tiles(**record[kind])) for kind in get_args(Kind) if kind in record)
