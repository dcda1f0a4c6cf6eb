"""The checker on every sketch of the language: static ones are right, the rest is refused by name, nothing crashes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from spdsl.grammar.parse import parse
from spdsl.semantics.check import check_all

SKETCHES = Path(__file__).parents[1] / "grammar" / "sketches"


def test_sketches(golden: Callable[..., None]) -> None:
    lines = []
    for path in sorted(SKETCHES.glob("*.spat")):
        text = path.read_text(encoding="utf-8")
        found, diagnostics = check_all(
            parse(text, path.name), resolve=lambda name: (SKETCHES / name).read_text("utf-8")
        )
        errors = [d for d in diagnostics if d.severity == "error"]
        assert bool(found) or bool(errors) or "pattern" not in text.replace("patterns", "")
        lines.append(f"{path.name}: {', '.join(pattern.name for pattern in found) or 'refused'}")
        lines += [f"  {d.code} {d.message}" for d in errors]
    golden("\n".join(lines) + "\n")
