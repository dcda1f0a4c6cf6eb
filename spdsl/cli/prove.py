"""`spdsl prove`: what is true of a pattern at every length, or where it is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spdsl.cli.files import read
from spdsl.cli.options import (
    GroupsOption,
    HeadsOption,
    JsonOption,
    LayerOption,
    ParameterOption,
    PatternArgument,
    fit_tuples,
    head_counts,
    parse_call,
    parse_free,
)
from spdsl.cli.output import print_json, print_table, show_error
from spdsl.cli.progress import progress
from spdsl.diagnostics import SpatError

if TYPE_CHECKING:
    from spdsl.analysis.claims import Claim
    from spdsl.prove import Finding, Settings, Target

REFUTED, MISTAKEN, UNDECIDED = 1, 2, 4

_SHOWN = {"proven": "proven", "refuted": "refuted", "undecided": "cannot be decided", "answer": ""}


def _claim_option(flag: str, help: str) -> Any:
    return typer.Option(flag, help=help)


def _other_option(flag: str, help: str) -> Any:
    return typer.Option(flag, metavar="OTHER", help=help)


def prove(
    pattern: PatternArgument,
    parameter: ParameterOption = None,
    nonempty: Annotated[bool, _claim_option("--nonempty", "Does every query keep something?")] = False,
    causal: Annotated[bool, _claim_option("--causal", "Is no key later than its query?")] = False,
    clauses: Annotated[bool, _claim_option("--clauses", "Does every part of `keep` matter?")] = False,
    equals: Annotated[list[str] | None, _other_option("--equals", "Are the same pairs kept as by OTHER?")] = None,
    within: Annotated[list[str] | None, _other_option("--within", "Does OTHER keep all of them?")] = None,
    disjoint: Annotated[list[str] | None, _other_option("--disjoint", "Does OTHER keep none of them?")] = None,
    count: Annotated[bool, _claim_option("--count", "How many pairs are kept, as a formula of n?")] = False,
    depth: Annotated[bool, _claim_option("--depth", "How many layers reach all (earlier) tokens?")] = False,
    layers: Annotated[int | None, typer.Option(help="Do so many layers reach all of them?", min=1, max=32)] = None,
    then: Annotated[list[str] | None, _other_option("--then", "The next layer, if it differs; in turn.")] = None,
    heads: HeadsOption = 8,
    groups: GroupsOption = None,
    layer: LayerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove or refute what is said of a pattern, for every length at once.

    Without a question, all that need no OTHER are answered.  OTHER is a pattern like PATTERN, with its parameters in
    brackets.  `-p NAME=any` leaves a parameter free within its range.

    \b
    Exit status:
      0  all that was asked is proven (or nothing was asked)
      1  something is refuted; a smallest counterexample is shown
      2  a mistake on the command line or in a pattern
      4  nothing is refuted, but something cannot be decided

    \b
    Examples:
      spdsl prove streaming -p window=512
      spdsl prove streaming -p window=any -p sinks=any --nonempty --causal
      spdsl prove local.spat --within "sliding_window(window=1024)" --json
      spdsl prove sliding_window --layers 4 --then full --depth
    """
    heads, groups = head_counts(heads, groups)
    try:
        from spdsl.prove import Settings

        target = _target(pattern, parameter)
        settings = Settings(heads=heads, groups=groups, layer=layer)
        stack = [target, *(_other(word) for word in then or ())]
        asked = {"nonempty": nonempty, "causal": causal, "clauses": clauses, "count": count, "depth": depth}
        others = {"equals": equals, "within": within, "disjoint": disjoint}
        is_report = not any((*asked.values(), *others.values(), layers))
        if is_report:
            # Of what queries and keys choose, only claims can be answered.
            asked = {name: not target.is_chosen or name in ("nonempty", "causal") for name in asked}
        with progress("proving", quiet=as_json):
            findings = tuple(_findings(stack, settings, asked, others, layers))
        _show(target, settings, findings, is_report=is_report, as_json=as_json)
    except SpatError as mistake:
        show_error(mistake, as_json=as_json)
        raise typer.Exit(MISTAKEN) from None
    raise typer.Exit(0 if is_report else status(findings))


def status(findings: Sequence[Finding]) -> int:
    """The exit status of answers to what was asked."""
    verdicts = {finding.verdict for finding in findings}
    return REFUTED if "refuted" in verdicts else UNDECIDED if "undecided" in verdicts else 0


def _findings(
    stack: Sequence[Target],
    settings: Settings,
    asked: Mapping[str, bool],
    others: Mapping[str, Sequence[str] | None],
    layers: int | None,
) -> Iterator[Finding]:
    from spdsl import prove as ask

    target = stack[0]
    alone: tuple[Claim, ...] = ("nonempty", "causal")
    for name in alone:
        if asked[name]:
            yield ask.claim(name, [target], settings)
    if asked["clauses"]:
        yield ask.clauses(target, settings)
    beside: tuple[Claim, ...] = ("equals", "within", "disjoint")
    for name in beside:
        for word in others[name] or ():
            yield ask.claim(name, [target, _other(word)], settings)
    if asked["count"]:
        yield ask.kept(target, settings)
    if layers is not None:
        yield ask.reaches(stack, layers, settings)
    if asked["depth"]:
        yield ask.fewest_layers(stack, settings)


def _target(word: str, parameter: Sequence[str] | None) -> Target:
    from spdsl.pipeline import read as read_pattern
    from spdsl.prove import Target

    values, free = parse_free(parameter)
    given = read(word)
    checked = read_pattern(given.text, source=given.name, name=given.pattern, resolve=given.resolve)
    return Target(checked=checked, values=fit_tuples(checked, values), free=free)


def _other(word: str) -> Target:
    name, parameters = parse_call(word)
    return _target(name, parameters)


def _show(target: Target, settings: Settings, findings: Sequence[Finding], *, is_report: bool, as_json: bool) -> None:
    from spdsl.prove import scope

    where = scope(target, settings)
    if as_json:
        print_json(
            {
                "ok": is_report or status(findings) == 0,
                "pattern": target.text,
                "scope": where,
                "answers": [_record(finding) for finding in findings],
            }
        )
        return
    typer.echo(f"{target.text}: {where}")
    rows = [(finding.text, finding.short or _SHOWN[finding.verdict], _reason(finding)) for finding in findings]
    print_table(("question", "answer", ""), rows)


def _reason(finding: Finding) -> str:
    told = [finding.detail, "" if finding.example is None else str(finding.example)]
    return ": ".join(part for part in told if part)


def _record(finding: Finding) -> dict[str, Any]:
    example = finding.example
    return {
        "question": finding.question,
        "text": finding.text,
        "verdict": finding.verdict,
        "answer": finding.short,
        "detail": finding.detail,
        "example": None
        if example is None
        else {
            "q": example.query,
            "k": example.key,
            "values": dict(example.values),
            "inputs": example.inputs,
            "note": example.note,
            "text": str(example),
        },
        **finding.facts,
    }
