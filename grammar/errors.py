"""From a `MisfitError` to the `SpatError` that a user reads: what was found, what could stand there, how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from spdsl.diagnostics import Span, SpatError, error
from spdsl.grammar import engine
from spdsl.grammar.engine import END, ILLEGAL, MisfitError, Token
from spdsl.grammar.hints import CHARACTERS, HINTS, Hint

_STATEMENTS = frozenset(["_INPUT", "_GRID", "_AXIS", "_LET", "_EXPORT", "_RETURN", "_KEEP", "SETTING"])
_CLAUSES = frozenset(("_KEEP", "SETTING"))
_ITEMS = frozenset(("_USE", "_DEF", "_PATTERN"))
_VALUE_ENDS = frozenset(["NAME", "NUMBER", "STRING", "RPAR", "RSQB", "RBRACE"])
_VALUE_STARTS = frozenset(["NAME", "NUMBER", "STRING", "LPAR", "MINUS", "ATTEND", "LINEAR"])
_OPERATORS = frozenset(
    [
        "OR",
        "AND",
        "PLUS",
        "MINUS",
        "STAR",
        "SLASH",
        "DOUBLE_SLASH",
        "PERCENT",
        "DOUBLE_STAR",
        "LESS",
        "LESS_EQUAL",
        "GREATER",
        "GREATER_EQUAL",
        "EQUAL",
        "UNEQUAL",
        "IN",
    ]
)
_PIPE, _EQUALS = "__ANON_1", "__ANON_0"
_BRACKETS = {"(": ")", "[": "]", "{": "}"}

Place = Callable[[int, int], Span]


def explain(misfit: MisfitError, text: str, place: Place) -> SpatError:
    """The error for a text that left the language; ``place`` turns offsets into a span."""
    token, allowed = misfit.token, engine.acceptable(misfit.states)
    if token.kind == ILLEGAL:
        return _illegal(token, text, place)
    situation = _situation(misfit, text, allowed)
    if token.kind == END:
        return _ended(misfit, place, situation, allowed)
    before = misfit.previous[-1].text if misfit.previous else ""
    hint = _hint(situation)
    return error(
        "SP101",
        f"unexpected `{token.text}`" + (f" after `{before}`" if before else ""),
        place(token.start, token.end),
        help=(_mend(hint, token.text, before) if hint else _still_open(misfit, place))
        or f"Here can stand {_words(allowed)}.",
    )


def _still_open(misfit: MisfitError, place: Place) -> str:
    """What to say when a statement or an item begins although a bracket before it was never closed."""
    marks = _open_brackets(misfit.previous)
    if not marks or misfit.token.kind not in (_ITEMS if marks[-1].text == "{" else _ITEMS | _STATEMENTS):
        return ""
    mark = marks[-1]
    line = place(mark.start, mark.end).line
    return f"`{mark.text}` on line {line} is still open: close it with `{_BRACKETS[mark.text]}`."


def _illegal(token: Token, text: str, place: Place) -> SpatError:
    at = token.start
    if token.text == '"':
        end = text.find("\n", at)
        span = place(at, end if end >= 0 else len(text))
        return error("SP103", "this text has no closing quote", span, help='Put `"` at its end, on the same line.')
    known = next((mark for mark in CHARACTERS if text.startswith(mark, at)), None)
    shown = known or (token.text if token.text.isprintable() else f"U+{ord(token.text):04X}")
    mend = CHARACTERS[known] if known else "Remove it."
    if token.text.isalpha():
        mend = "Names are made of the letters a to z and A to Z, digits and underscores."
    return error("SP102", f"`{shown}` is not part of the language", place(at, at + len(known or token.text)), help=mend)


def _ended(misfit: MisfitError, place: Place, situation: Situation, allowed: frozenset[str]) -> SpatError:
    """The text ended too early; the place is right behind its last word, not at some blank or comment after it."""
    last = misfit.previous[-1]
    span = place(last.end, last.end)
    open_bracket = _open_brackets(misfit.previous)
    if open_bracket and not (hint := _hint(situation)):
        mark = open_bracket[-1]
        line = place(mark.start, mark.end).line
        mend = f"Close it with `{_BRACKETS[mark.text]}`; before that can stand {_words(allowed - _closing())}."
        if "RBRACE" not in allowed and "RPAR" not in allowed and "RSQB" not in allowed:
            mend = f"Here can stand {_words(allowed)}."
        return error("SP104", f"the text ends, but `{mark.text}` on line {line} is still open", span, help=mend)
    mend = _mend(hint, "", last.text) if open_bracket and hint else f"Here can stand {_words(allowed)}."
    return error("SP104", f"the text ends after `{last.text}`", span, help=mend)


def _closing() -> frozenset[str]:
    return frozenset(("RBRACE", "RPAR", "RSQB"))


# ---------------------------------------------------------------- hints


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a hint may look at, where a text left the language.

    ``construct`` is the statement or item begun last, ``bracket`` the innermost open one; ``waits_…`` say what the
    parser hoped for; ``before_word`` that a word of the language was read as a name just before;
    ``is_value`` that an expression could have gone on; ``piped`` that a ``|>`` stands in this expression.
    """

    construct: str
    bracket: str
    before: str
    before_that: str
    before_value: bool
    before_word: bool
    found: str
    text: str
    next: str
    top: bool
    statement: bool
    operator: bool
    is_value: bool
    piped: bool
    waits_value: bool
    waits_statement: bool
    waits_clause: bool
    waits_type: bool
    waits_range: bool
    waits_dots: bool
    waits_then: bool
    waits_else: bool
    waits_by: bool


def _situation(misfit: MisfitError, text: str, allowed: frozenset[str]) -> Situation:
    token, previous = misfit.token, misfit.previous
    kinds = ["", "", *(one.kind for one in previous)]
    following = next(engine.tokens(text[token.end :]), None)
    brackets = _open_brackets(previous)
    return Situation(
        construct=next((kind for kind in reversed(kinds) if kind in _STATEMENTS | _ITEMS), ""),
        bracket=brackets[-1].text if brackets else "",
        before=kinds[-1],
        before_that=kinds[-2],
        before_value=kinds[-1] in _VALUE_ENDS,
        before_word=bool(previous) and previous[-1].kind == "NAME" and previous[-1].text in _keywords(),
        found=token.kind,
        text=token.text,
        next=following.kind if following else "",
        top=allowed >= _ITEMS,
        statement=token.kind in _STATEMENTS,
        operator=token.kind in _OPERATORS,
        is_value=_PIPE in allowed,
        piped=_piped(previous),
        waits_value=allowed >= _VALUE_STARTS,
        waits_statement=allowed >= _STATEMENTS,
        waits_clause=allowed >= _CLAUSES and "_LET" not in allowed,
        waits_type=allowed == {"COLON"},
        waits_range=allowed == {"DOTS", "MINUS", "NUMBER"},
        waits_dots=allowed == {"DOTS"},
        waits_then="_THEN" in allowed,
        waits_else="_ELSE" in allowed,
        waits_by="_BY" in allowed,
    )


def _hint(situation: Situation) -> Hint | None:
    for hint, example in _examples():
        if all(getattr(situation, feature) == getattr(example, feature) for feature in hint.needs):
            return hint
    return None


def _mend(hint: Hint, found: str, before: str) -> str:
    return hint.help.replace("{before}", before).replace("{found}", found)


@cache
def _examples() -> tuple[tuple[Hint, Situation], ...]:
    return tuple((hint, situation_of(hint.example)) for hint in HINTS)


def _build_nothing(*_: object) -> None:
    """Examples are only run as far as they go."""


def situation_of(text: str) -> Situation:
    """Where a malformed text leaves the language.  Raises `ValueError` for one that does not."""
    try:
        engine.run(text, _build_nothing, most=100)
    except MisfitError as misfit:
        return _situation(misfit, text, engine.acceptable(misfit.states))
    raise ValueError(f"this text is well formed: {text}")


@cache
def _keywords() -> frozenset[str]:
    patterns = (regexp for regexp in engine.load_tables().terminals.values() if regexp.endswith("\\b"))
    return frozenset(word for regexp in patterns for word in regexp.removesuffix("\\b").strip("()").split("|"))


def _open_brackets(tokens: Iterable[Token]) -> list[Token]:
    """The brackets that these tokens leave open."""
    found: list[Token] = []
    for token in tokens:
        if token.text in _BRACKETS:
            found.append(token)
        elif token.kind in _closing() and found:
            found.pop()
    return found


def _piped(tokens: tuple[Token, ...]) -> bool:
    depth = 0
    for token in reversed(tokens):
        depth += (token.kind in _closing()) - (token.text in _BRACKETS)
        if depth < 0 or token.kind in _STATEMENTS:
            return False
        if depth == 0 and token.kind == _PIPE:
            return True
    return False


# ---------------------------------------------------------------- what could stand there

_GROUPS: tuple[tuple[frozenset[str], str], ...] = (
    (_VALUE_STARTS, "an expression"),
    (_OPERATORS | {"DOT", "LPAR", "LSQB", _PIPE}, "an operator"),
    (_OPERATORS | {_PIPE}, "an operator"),
    (frozenset(("OR", _PIPE)), "an operator"),
    (_STATEMENTS, "a statement"),
    (_CLAUSES, "a clause"),
    (_ITEMS, "`use`, `def` or `pattern`"),
    (frozenset(("RBRACE",)), "`}`"),
)
_NAMED = {"NAME": "a name", "NUMBER": "a number", "STRING": "a text in double quotes", END: "the end of the text"}


def _words(allowed: frozenset[str]) -> str:
    """Terminals in the words that a user knows: ``an operator, `,` or `)```."""
    words: list[str] = []
    rest = set(allowed)
    for group, word in _GROUPS:
        if group <= rest:
            words.append(word)
            rest -= group
    if "an expression" in words:
        rest -= {"_IF", "NOT"}
    words += sorted(_word(kind) for kind in rest)
    words = list(dict.fromkeys(words))
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" or {words[-1]}"


def _word(kind: str) -> str:
    if kind in _NAMED:
        return _NAMED[kind]
    pattern = engine.load_tables().terminals[kind]
    return "`" + pattern.replace("\\b", "").replace("\\", "") + "`"
