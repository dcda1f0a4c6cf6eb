"""The tables of docs/language.md that the compiler's own tables decide, written from these.

    python docs/site/tables.py          # writes what has changed; a test compares

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from spdsl.semantics import meanings
from spdsl.semantics.meanings import Meaning

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "language.md"
GRAMMAR = ROOT / "grammar" / "spat.lark"
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def names() -> Iterator[str]:
    """Built-in names, their types, and what they are."""
    yield from _head("name", "type", "is")
    for name, each in meanings.NAMES.items():
        _, _, kind = each.form.partition(": ")
        yield _row(f"`{name}`", f"`{kind}`" if kind else "", each.text)


def functions() -> Iterator[str]:
    """Built-in functions."""
    yield from _head("function", "gives", "more in")
    for each in meanings.FUNCTIONS.values():
        yield _row(_forms(each.form), each.text, "" if each.section == "functions" else _link(each.section))


def words() -> Iterator[str]:
    """All words of the grammar, types, members of coordinates, and signs."""
    yield from _head("word", "written", "means", "more in")
    tables: tuple[Mapping[str, Meaning], ...] = (meanings.WORDS, meanings.TYPES, meanings.MEMBERS, meanings.OPERATORS)
    for table in tables:
        for word, each in table.items():
            refused = each.text == meanings.REFUSED
            text = "Is read and refused by name (SP290)." if refused else each.text
            yield _row(f"`{word}`", _forms(each.form), text, _link(each.section))


def grammar() -> Iterator[str]:
    """The rules of the grammar as they stand in its file, up to the words."""
    rules = GRAMMAR.read_text(encoding="utf-8").split("\n\n// Keywords")[0]
    yield from ("```text", *(line for line in rules.splitlines() if not line.startswith("//")), "```")


PARTS = {"names": names, "functions": functions, "words": words, "grammar": grammar}


def page(text: str) -> str:
    """The page with all generated parts as they should be."""
    return _PART.sub(lambda found: found[1] + "\n".join(PARTS[found[2]]()) + "\n" + found[3], text)


def _head(*titles: str) -> Iterable[str]:
    return "| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _forms(form: str) -> str:
    """Ways to write something, each as code: ``a or b`` is one, ``min(x) or min(x, per = …)`` are two."""
    parts = re.split(r"(?<=[)}]) or (?=\w+[({])", form)
    return " or ".join(f"`{part}`" for part in parts)


def _link(section: str) -> str:
    titles = re.findall(r"^#+ (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    title = next(title for title in titles if re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") == section)
    return f"[{title}](#{section})"


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    after = page(before)
    PAGE.write_text(after, encoding="utf-8")
    print("unchanged" if after == before else f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)
