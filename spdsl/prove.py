"""Questions about patterns and their answers: what `spdsl prove` asks, of whom, and what it says.

From `Target`s to `Finding`s.  The proofs are those of `spdsl.analysis`; they run in the isl worker, each within
`SECONDS` of wall-clock time.  No tensors are made and no back end is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from spdsl.analysis.claims import Answer, Claim, decide
from spdsl.analysis.examples import Example
from spdsl.analysis.formulas import Share, shares
from spdsl.analysis.pairs import Subject
from spdsl.analysis.plan import grid_length
from spdsl.analysis.reach import depth, through
from spdsl.analysis.redundant import redundant
from spdsl.analysis.worker import bounded
from spdsl.diagnostics import error
from spdsl.semantics.bind import bind
from spdsl.semantics.freeing import freed
from spdsl.semantics.nodes import BoundPattern, CheckedPattern, Extent, Parameter
from spdsl.semantics.rewrite import mentions
from spdsl.semantics.softmaxes import among_candidates, softmax_pattern

Word: TypeAlias = Literal["proven", "refuted", "undecided", "answer"]
Value: TypeAlias = "bool | int | float | tuple[bool | int | float, ...]"

SECONDS = 4.5
"""Wall-clock time for one question; isl's own limits end almost all of them within milliseconds."""

MOST_LAYERS = 12
"""Layers that are tried of patterns that differ by layer."""

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
        if self.is_chosen:
            raise error(
                "SP414",
                f"what `{self.checked.name}` keeps is decided by the queries and keys of a call",
                self.checked.span,
                help="`--causal`, `--nonempty`, `--within` and `--disjoint` are proved for whatever is chosen",
            )
        checked = freed(self.checked, self.free) if self.free else self.checked
        return bind(checked, self.values, layer=layer, heads=heads, groups=groups, head_dim=64)

    @property
    def is_chosen(self) -> bool:
        """Whether queries and keys decide what is kept."""
        return self.checked.graph is not None

    def subject(self, *, heads: int, groups: int, layer: int | None) -> Subject:
        """The pairs that a claim is about; what is chosen is any set of its candidates: only proofs are answers.

        Raises:
            SpatError: as `bind`, or a pattern with several softmaxes or one over blocks (SP414).
        """
        if not self.is_chosen:
            return Subject.of(self.bind(heads=heads, groups=groups, layer=layer))
        bound = bind(self.checked, self.values, layer=layer, heads=heads, groups=groups, head_dim=64)
        assert bound.graph is not None
        found = bound.graph.attentions
        if self.free or len(found) != 1 or (found[0].rows, found[0].columns, found[0].member) != ("q", "k", None):
            what = "free parameters" if self.free else "several softmaxes, or one over blocks"
            raise error(
                "SP414",
                f"`{self.checked.name}` has selections and {what}: of such patterns nothing is proved yet",
                self.checked.span,
                help="give parameters values" if self.free else "prove claims about a pattern with one of its sets",
            )
        return Subject.of(softmax_pattern(among_candidates(bound), found[0].name))

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

    ``verdict`` is ``answer`` for questions that have no yes or no; ``short`` is then the answer in a few words.
    ``detail`` is more of it, or the reason of an undecided one.  ``facts`` holds the parts of an answer for programs.
    """

    question: str
    text: str
    verdict: Word
    short: str = ""
    detail: str = ""
    example: Example | None = None
    facts: Mapping[str, object] = field(default_factory=dict)


def claim(name: Claim, targets: Sequence[Target], settings: Settings) -> Finding:
    """A claim about one target, or about two.

    Raises:
        SpatError: a target cannot be bound, or two declare an input differently (SP413).
    """
    subjects = [
        target.subject(heads=settings.heads, groups=settings.groups, layer=settings.layer) for target in targets
    ]
    _check_inputs([subject.pattern for subject in subjects])
    text = _CLAIMS[name] + (f" {targets[1].text}" if len(targets) > 1 else "")
    lengths = [grid_length(subject.pattern) for subject in subjects]
    if len(set(lengths) - {None}) > 1:
        return Finding(question=name, text=text, verdict="undecided", detail="no length suits the grids of both")
    found = bounded(decide, {"claim": name, "subjects": subjects}, seconds=SECONDS)
    answer = Answer(verdict="undecided", reason=_LATE) if found is None else found
    if answer.verdict == "refuted" and any(target.is_chosen for target in targets):
        # The example may be of something that is never chosen.
        answer = Answer(verdict="undecided", reason="it does not follow from the rest: what is chosen decides")
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
        detail = f"{found.undecided} parts are undecided: {found.reason}" if found.undecided else found.reason
        return Finding(question="clauses", text=text, verdict="undecided", detail=detail, facts=facts)
    return Finding(question="clauses", text=text, verdict="proven", facts=facts)


def kept(target: Target, settings: Settings) -> Finding:
    """How many pairs are kept, as a formula of n, of a head on average."""
    text = "pairs that are kept"
    subject = _subject(target, settings)
    found = bounded(shares, {"subject": subject}, seconds=SECONDS)
    if found is None or isinstance(found, str):
        return Finding(question="count", text=text, verdict="undecided", detail=found or _LATE)
    least, most = found.least, found.most
    facts = {"least": _as_facts(least), "most": _as_facts(most)}
    if least == most:
        return Finding(
            question="count", text=text, verdict="answer", short=least.keys, detail=_told(least), facts=facts
        )
    detail = f"at least {_told(least)}; at most {_told(most)}"
    return Finding(question="count", text=text, verdict="answer", short="it varies", detail=detail, facts=facts)


def _as_facts(share: Share) -> dict[str, object]:
    return {"pairs": share.pairs, "share": share.share, "for_n_from": share.first, "where": share.where}


def _told(share: Share) -> str:
    conditions = [each for each in (share.where, f"n >= {share.first}" if share.first > 1 else "") if each]
    return f"{share.pairs}, a share of {share.share}" + (f" ({', '.join(conditions)})" if conditions else "")


def reaches(targets: Sequence[Target], layers: int, settings: Settings) -> Finding:
    """Whether so many layers, the targets in turn, let every query take from all (earlier) tokens.

    Raises:
        SpatError: as `claim`.
    """
    subjects = [_layer(targets[at % len(targets)], at, settings) for at in range(layers)]
    _check_inputs([subject.pattern for subject in subjects])
    found = bounded(through, {"subjects": subjects}, seconds=SECONDS)
    goal, answer = found or ("every token", Answer(verdict="undecided", reason=_LATE))
    return Finding(
        question="layers",
        text=f"{layers} layer{'s' * (layers > 1)} reach {goal}",
        verdict=answer.verdict,
        detail=answer.reason,
        example=answer.example,
    )


def fewest_layers(targets: Sequence[Target], settings: Settings) -> Finding:
    """The fewest layers, the targets in turn, through which every query takes from all (earlier) tokens.

    Raises:
        SpatError: as `claim`.
    """
    count = MOST_LAYERS if any(_uses_layer(target) for target in targets) else len(targets)
    subjects = [_layer(targets[at % len(targets)], at, settings) for at in range(count)]
    _check_inputs([subject.pattern for subject in subjects])
    found = bounded(depth, {"subjects": subjects}, seconds=SECONDS)
    if found is None:
        return Finding(question="depth", text="layers to reach all", verdict="undecided", detail=_LATE)
    text = f"layers to reach {found.goal}"
    facts = {"layers": found.layers, "at_most": found.at_most, "length": found.length}
    if not found.layers:
        short = "none" if found.example is not None else ""
        verdict: Word = "answer" if short else "undecided"
        return Finding(
            question="depth",
            text=text,
            verdict=verdict,
            short=short,
            detail=found.reason,
            example=found.example,
            facts=facts,
        )
    short = ("at most " if found.at_most else "") + found.layers
    detail = "" if found.length is None else f"at n = {found.length}; there is no formula"
    return Finding(question="depth", text=text, verdict="answer", short=short, detail=detail, facts=facts)


def _uses_layer(target: Target) -> bool:
    return mentions(target.checked.attend.keep, Extent(name="layer"))


def _layer(target: Target, at: int, settings: Settings) -> Subject:
    is_counted = settings.layer is None and _uses_layer(target)
    return _subject(target, replace(settings, layer=at) if is_counted else settings)


def scope(target: Target, settings: Settings) -> str:
    """For which lengths, heads, parameters and inputs the answers hold, in words."""
    layer = settings.layer or 0
    pattern = target.subject(heads=settings.heads, groups=settings.groups, layer=layer).pattern
    length = grid_length(pattern)
    parts = ["every length n" if length is None else f"n = {length}, which its grid demands"]
    parts += [f"every {each.name}{_range(each)}" for each in target.checked.parameters if each.name in target.free]
    if target.checked.tables:
        parts.append("all values of its inputs")
    if target.is_chosen:
        parts.append("whatever is chosen")
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
