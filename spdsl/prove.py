"""Questions about patterns and their answers: what `spdsl prove` asks, of whom, and what it says.

From `Target`s to `Finding`s.  The proofs are those of `spdsl.analysis`; they run in the isl worker, each within
`SECONDS` of wall-clock time.  No tensors are made and no back end is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from spdsl.analysis.claims import Answer, Claim, decide
from spdsl.analysis.examples import Example
from spdsl.analysis.pairs import Subject
from spdsl.analysis.plan import grid_length
from spdsl.analysis.redundant import redundant
from spdsl.analysis.worker import bounded
from spdsl.diagnostics import error
from spdsl.semantics.bind import bind
from spdsl.semantics.freeing import freed
from spdsl.semantics.nodes import BoundPattern, CheckedPattern, Parameter

Word: TypeAlias = Literal["proven", "refuted", "undecided", "answer"]
Value: TypeAlias = "bool | int | float | tuple[bool | int | float, ...]"

SECONDS = 4.5
"""Wall-clock time for one question; isl's own limits end almost all of them within milliseconds."""

_LATE = "isl did not answer in time"

_CLAIMS: dict[Claim, str] = {
    "nonempty": "every query keeps something",
    "causal": "causal",
    "equals": "keeps the same as",
    "within": "lies within",
    "disjoint": "shares no pair with",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A pattern with parameters; those in ``free`` may have any value of their range."""

    checked: CheckedPattern
    values: Mapping[str, Value] = field(default_factory=dict)
    free: frozenset[str] = frozenset()

    def bind(self, *, heads: int, groups: int, layer: int | None) -> BoundPattern:
        """The bound pattern.  Raises `SpatError` as `bind` and `freed` do."""
        checked = freed(self.checked, self.free) if self.free else self.checked
        return bind(checked, self.values, layer=layer, heads=heads, groups=groups, head_dim=64)

    @property
    def text(self) -> str:
        """The name and the parameters."""
        shown = [f"{each.name}={self._shown(each)}" for each in self.checked.parameters]
        return f"{self.checked.name}({', '.join(shown)})"

    def _shown(self, parameter: Parameter) -> str:
        if parameter.name in self.free:
            return "any"
        value = self.values.get(parameter.name, parameter.default)
        return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What questions are asked within: head counts, and the layer for patterns that use it."""

    heads: int = 8
    groups: int = 8
    layer: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A question in words and its answer.

    ``verdict`` is ``answer`` for questions that have no yes or no.  ``detail`` is the answer in words, or the reason of
    an undecided one.  ``facts`` holds the parts of an answer for programs.
    """

    question: str
    text: str
    verdict: Word
    detail: str = ""
    example: Example | None = None
    facts: Mapping[str, object] = field(default_factory=dict)


def claim(name: Claim, targets: Sequence[Target], settings: Settings) -> Finding:
    """A claim about one target, or about two.

    Raises:
        SpatError: a target cannot be bound, or two declare an input differently (SP413).
    """
    subjects = [_subject(target, settings) for target in targets]
    _check_inputs([subject.pattern for subject in subjects])
    text = _CLAIMS[name] + (f" {targets[1].text}" if len(targets) > 1 else "")
    lengths = [grid_length(subject.pattern) for subject in subjects]
    if len(set(lengths) - {None}) > 1:
        return Finding(question=name, text=text, verdict="undecided", detail="no length suits the grids of both")
    found = bounded(decide, {"claim": name, "subjects": subjects}, seconds=SECONDS)
    answer = Answer(verdict="undecided", reason=_LATE) if found is None else found
    detail = answer.reason
    if answer.verdict == "proven" and lengths[0] is None and lengths[-1] is not None:
        detail = f"for n = {lengths[-1]} alone, which a grid demands"
    return Finding(question=name, text=text, verdict=answer.verdict, detail=detail, example=answer.example)


def clauses(target: Target, settings: Settings) -> Finding:
    """Whether every part of the formula matters: refuted by the parts that change nothing."""
    pattern = target.bind(heads=settings.heads, groups=settings.groups, layer=settings.layer)
    text = "every part of `keep` matters"
    found = bounded(redundant, {"pattern": pattern}, seconds=SECONDS)
    if found is None:
        return Finding(question="clauses", text=text, verdict="undecided", detail=_LATE)
    facts = {
        "redundant": [{"text": part.text, "operand_of": part.of, "place": str(part.span)} for part in found.parts],
        "undecided": found.undecided,
    }
    if found.parts:
        told = ", ".join(f"`{part.text}` (line {part.span.line})" for part in found.parts)
        detail = f"{'this changes' if len(found.parts) == 1 else 'these change'} nothing: {told}"
        return Finding(question="clauses", text=text, verdict="refuted", detail=detail, facts=facts)
    if found.undecided or found.reason:
        detail = f"{found.undecided} of {found.tried} parts are undecided: {found.reason}"
        return Finding(question="clauses", text=text, verdict="undecided", detail=detail, facts=facts)
    return Finding(question="clauses", text=text, verdict="proven", facts=facts)


def scope(target: Target, settings: Settings) -> str:
    """For which lengths, heads, parameters and inputs the answers hold, in words."""
    pattern = target.bind(heads=settings.heads, groups=settings.groups, layer=settings.layer)
    length = grid_length(pattern)
    parts = ["every length n" if length is None else f"n = {length}, which its grid demands"]
    parts += [f"every {each.name}{_range(each)}" for each in target.checked.parameters if each.name in target.free]
    if target.checked.tables:
        parts.append("all values of its inputs")
    heads = f"{settings.heads} heads"
    parts.append(heads if settings.heads == settings.groups else f"{heads} in {settings.groups} groups")
    return ", ".join(parts)


def _range(parameter: Parameter) -> str:
    bounds = parameter.bounds
    if bounds is None:
        return ""
    low, high = ("" if end is None else end for end in (bounds.low, bounds.high))
    return f" in {low}..{high}"


def _subject(target: Target, settings: Settings) -> Subject:
    return Subject.of(target.bind(heads=settings.heads, groups=settings.groups, layer=settings.layer))


def _check_inputs(patterns: Sequence[BoundPattern]) -> None:
    """Inputs of one name are one input, so that they must be declared alike."""
    known = {table.name: (table, pattern.name) for pattern in reversed(patterns) for table in pattern.tables}
    for pattern in patterns:
        for table in pattern.tables:
            other, name = known[table.name]
            alike = (table.dtype, [axis.kind for axis in table.axes]) == (other.dtype, [a.kind for a in other.axes])
            promised = (table.sorted, table.bounds) == (other.sorted, other.bounds)
            if not (alike and promised):
                raise error(
                    "SP413",
                    f"`{name}` and `{pattern.name}` declare the input `{table.name}` differently",
                    table.span,
                    note=f"an input of `{pattern.name}`",
                    help="inputs of one name are taken for one: declare them alike, or rename one of them",
                )
