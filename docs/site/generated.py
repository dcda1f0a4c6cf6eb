"""Pages that are made from other files: the examples, and every mistake with a text that makes it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LANGUAGE = ROOT / "docs" / "language.md"
MISTAKES = ROOT / "tests" / "errors"
LONGEST = 24
"""Lines of a text that is shown for a mistake."""


def examples() -> str:
    """The scripts and patterns of examples/, as they stand there."""
    lines = [
        "# Examples",
        "",
        "Scripts of about a page, which run where torch runs. Each checks its own results, and all run in tests.",
    ]
    for path in sorted((ROOT / "examples").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        about = ast.get_docstring(ast.parse(text)) or ""
        title = about.split("\n")[0].rstrip(".")
        code = text.partition('"""\n')[2]  # behind the docstring
        lines += ["", f"## {path.stem[:2]}  {title} {{ #{anchor(path.name)} }}", "", *_prose(about), ""]
        lines += ["```python", code.strip(), "```"]
    for path in sorted((ROOT / "examples").glob("*.spat")):
        lines += ["", f"## {path.name} {{ #{anchor(path.name)} }}", "", "```spat", path.read_text().strip(), "```"]
    return "\n".join(lines) + "\n"


def anchor(name: str) -> str:
    """The name of an example in links."""
    return name.replace(".", "-")


def _prose(about: str) -> list[str]:
    """A docstring without its title; indented lines are commands."""
    found = about.split("\n")[1:]
    text = "\n".join(f"    {line.strip()}" if line.startswith("    ") else line for line in found).strip("\n")
    return text.split("\n")


def errors() -> str:
    """Every code with what it is about, and the first text of the tests that is refused with it."""
    rows = re.findall(r"^\| (SP\d+) \| (.*?) \|$", LANGUAGE.read_text(encoding="utf-8"), re.MULTILINE)
    lines = [
        "# Mistakes by code",
        "",
        "What the codes mean, and for mistakes in texts an example: a pattern, and what `spdsl check` says of it.",
    ]
    for code, about in rows:
        lines += ["", f"## {code}", "", f"{about[0].upper()}{about[1:]}."]
        shown = [path for path in sorted(MISTAKES.glob(f"{code}_*.spat")) if _fits(path)]
        for path in shown[:1]:
            said = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
            lines += ["", "```spat", path.read_text(encoding="utf-8").strip("\n"), "```", "", "```text", said, "```"]
    return "\n".join(lines) + "\n"


def _fits(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    return text.count("\n") < LONGEST and max(map(len, text.split("\n"))) < 120 and "```" not in text
