"""What an editor shows beside a word: its declaration, its meaning, its type and range, and what is proved of it."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from spdsl.diagnostics import SpatError
from spdsl.editor.outline import Declaration, Outline
from spdsl.editor.project import File, Place, Project, Seen
from spdsl.grammar.engine import Token
from spdsl.semantics import meanings
from spdsl.semantics.bounds import Range
from spdsl.semantics.freeing import freeable
from spdsl.semantics.meanings import Meaning
from spdsl.semantics.nodes import CheckedPattern, Const
from spdsl.semantics.parameters import shown
from spdsl.semantics.unsupported import UNSUPPORTED
from spdsl.semantics.values import Poison, Scalar, describe

if TYPE_CHECKING:
    from spdsl.analysis.claims import Claim

_KINDS = {"coordinate": "coordinate of a grid", "argument": "argument of"}


def note(project: Project, path: Path, offset: int) -> tuple[str, Place] | None:
    """Markdown about the word at a place, and the place of that word."""
    file = project.file(path)
    word = file.outline.word_at(offset)
    if word is None:
        return None
    parts = list(_parts(project, path, file, word))
    return ("\n\n".join(parts), (word.start, word.end)) if parts else None


def _parts(project: Project, path: Path, file: File, word: Token) -> list[str]:
    use = next((each for each in file.outline.uses if each.start <= word.end and word.start <= each.end), None)
    if use is not None and word.kind == "STRING":
        return [_use(project, path, use.path)]
    parts: list[str] = []
    declared = project.declaration(path, word.start) if word.kind == "NAME" else None
    if declared is not None:
        parts += _declared(project, path, *declared)
    else:
        meaning = meaning_of(file.outline, word)
        if meaning is not None:
            parts += [_code(meaning.form), meaning.text]
    seen = _seen(project, path, file, word, declared)
    if seen is not None:
        parts.append(_type(seen))
    if declared is not None and declared[1].kind == "pattern":
        parts += _proofs(project, *declared)
    return parts


def meaning_of(names: Outline, word: Token) -> Meaning | None:
    """What a word of the language means where it stands."""
    text = word.text
    if word.kind == "NAME":
        at = names.words.index(word)
        before = names.words[at - 1].text if at else ""
        behind = names.words[at + 1].text if at + 1 < len(names.words) else ""
        if before == ".":
            return meanings.MEMBERS.get(text)
        called = behind == "(" or before == "|>"
        tables = (meanings.FUNCTIONS, meanings.NAMES) if called else (meanings.NAMES, meanings.FUNCTIONS)
        for table in (*tables, meanings.TYPES):
            if text in table:
                return table[text]
        if text in UNSUPPORTED:
            return Meaning(form=f"{text}(…)", text=meanings.REFUSED)
        return None
    return meanings.WORDS.get(text) or meanings.OPERATORS.get(text)


def _use(project: Project, path: Path, name: str) -> str:
    found = project.used(path, name)
    if found is None:
        return f"`{name}` is neither a file beside this one nor in the library."
    items = [f"{each.kind} `{each.name}`" for each in project.file(found).outline.items()]
    return f"`{found}`: {', '.join(items) or 'nothing'}"


def _declared(project: Project, path: Path, where: Path, declaration: Declaration) -> list[str]:
    file = project.file(where)
    parts = [_code(headline(file, declaration))]
    kind = "pattern" if declaration.kind == "pattern" else _KINDS.get(declaration.kind, declaration.kind)
    if declaration.kind == "argument":
        parts.append(f"{kind} `{declaration.item}`")
    elif declaration.item is not None:
        parts.append(f"{kind} of `{declaration.item}`" if where != path else kind)
    comment = comment_above(file, declaration)
    if comment:
        parts.append(comment)
    if where != path:
        parts.append(f"from `{where.name}`")
    return parts


def headline(file: File, declaration: Declaration) -> str:
    """A declaration in one line, a pattern without its statements."""
    start, end = declaration.whole
    text = file.text[start:end]
    if declaration.kind == "pattern":
        text = text.partition("{")[0]
    lines = (line.partition("#")[0] for line in text.splitlines())
    return " ".join(" ".join(lines).split())


def comment_above(file: File, declaration: Declaration) -> str:
    """The comment right above a declaration, or behind it on its line."""
    start, end = declaration.whole
    lines = file.text[:start].split("\n")
    above: list[str] = []
    if not lines.pop().strip():
        while lines and lines[-1].lstrip().startswith("#"):
            above.append(lines.pop())
    if not above and declaration.kind == "pattern" and file.text.startswith("#"):
        # A file of one pattern may say at its head what it is about.
        above = list(reversed(list(takewhile(lambda line: line.startswith("#"), file.text.split("\n")))))
    if above:
        return "\n".join(line.lstrip(" #\t").rstrip() for line in reversed(above))
    behind = file.text[end:].split("\n", 1)[0].lstrip(" ,")
    return behind.lstrip("# ").rstrip() if behind.startswith("#") and declaration.item is not None else ""


def _seen(
    project: Project, path: Path, file: File, word: Token, declared: tuple[Path, Declaration] | None
) -> Seen | None:
    """What the checker found the word to mean, or for an operator what it makes of its operands."""
    seen = project.verdict(path).seen
    if declared is not None and declared == (path, _at(file, word.start)):
        if declared[1].kind != "let":
            return None
        # The value of a `let` is the largest expression that ends where the statement does.
        ending = [place for place in seen if place[1] == declared[1].whole[1] and place[0] >= declared[1].start]
        return seen[min(ending)] if ending else None
    if (word.start, word.end) in seen:
        return seen[word.start, word.end]
    if word.text in meanings.OPERATORS or word.text in ("and", "or", "not", "in"):
        around = [place for place in seen if place[0] <= word.start and word.end < place[1]]
    else:
        around = [place for place in seen if place[0] < word.start and word.end == place[1]]
    return seen[min(around, key=lambda place: place[1] - place[0])] if around else None


def _at(file: File, offset: int) -> Declaration | None:
    return next((each for each in file.outline.declarations if each.start == offset), None)


def _type(seen: Seen) -> str:
    value = seen.value
    match value:
        case Scalar(expr=Const(value=number)):
            return f"*{value.dtype}*, {str(number).lower()}"
        case Scalar():
            kind = "a set, *bool*" if value.dtype == "bool" and value.axes & {"q", "k"} else f"*{value.dtype}*"
            along = f", one for each `{', '.join(_sorted(value.axes))}`" if value.axes else ", one value"
            return kind + along + _bounds(seen.range)
        case Poison():
            return "*wrong*: see the mistake in it"
        case _:
            return describe(value)


def _sorted(axes: frozenset[str]) -> list[str]:
    order = "bhgqk"
    return sorted(axes, key=lambda axis: (order.find(axis[0]) if axis.partition(".")[0] in order else 9, axis))


def _bounds(found: Range | None) -> str:
    low, high = found or (None, None)
    if low is not None and high is not None:
        return f", {_number(low)} to {_number(high)}"
    return f", at least {_number(low)}" if low is not None else f", at most {_number(high)}" if high is not None else ""


def _number(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _code(text: str) -> str:
    return f"```spat\n{text}\n```"


# ---------------------------------------------------------------- proofs


def _proofs(project: Project, path: Path, declaration: Declaration) -> list[str]:
    with contextlib.suppress(SpatError):
        for pattern in project.verdict(path).patterns:
            if pattern.name == declaration.name:
                return list(proofs(pattern))
    return []


@lru_cache(maxsize=256)
def proofs(pattern: CheckedPattern) -> tuple[str, ...]:
    """What is proved of a pattern for every length: whether it is causal, and whether every query keeps something."""
    if pattern.graph is not None:
        return ("What it keeps is decided by the queries and keys of a call.",)
    free = freeable(pattern)
    lines = _answers(pattern, free)
    if any(line.startswith("?") for line in lines) and free:
        free = frozenset()
        lines = _answers(pattern, free)
    if not lines:
        return ()
    given = ", ".join(f"`{each.name} = {shown(each.default)}`" for each in pattern.parameters if each.name not in free)
    scope = f"For every length, with {given}:" if given else "For every length and all parameters:"
    return (scope + "\n\n" + "\n".join(f"- {line}" for line in lines),)


def _answers(pattern: CheckedPattern, free: frozenset[str]) -> list[str]:
    from spdsl.prove import Settings, Target, claim

    target = Target(checked=pattern, free=free)
    claims: tuple[Claim, ...] = ("causal", "nonempty")
    try:
        found = [claim(each, [target], Settings(heads=1, groups=1)) for each in claims]
    except SpatError:  # a parameter without a default, or a layer
        return []
    lines = []
    for each in found:
        mark, verdict = _VERDICTS[each.verdict]
        where = f", where {each.example.where}" if each.example is not None else ""
        lines.append(f"{mark} {each.text}{verdict}{where}")
    return lines


_VERDICTS = {
    "proven": ("✓", ""),
    "refuted": ("✗", ": no"),
    "undecided": ("?", ": cannot be decided"),
    "answer": ("", ""),
}
