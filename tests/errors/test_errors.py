"""Every ``.spat`` file here is malformed; beside it stands what the user reads.

A name is ``CODE_what_is_wrong.spat``: the text must report that code, first or among others.  `spdsl.grammar.parse`
and, where the text parses, `spdsl.semantics.check` are asked; a file of bytes that are not text has the ending
``.bytes``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from spdsl.diagnostics import Diagnostic, SpatError
from spdsl.grammar.parse import decode, parse

HERE = Path(__file__).parent
CASES = sorted(path for path in HERE.iterdir() if path.suffix in (".spat", ".bytes"))


def diagnose(path: Path) -> tuple[Diagnostic, ...]:
    """All that the compiler has to say about a file without binding its parameters."""
    try:
        program = parse(decode(path.read_bytes(), path.name), path.name)
    except SpatError as bad:
        return bad.diagnostics
    from spdsl.semantics.check import check

    try:
        result = check(program)
    except SpatError as bad:
        return bad.diagnostics
    return tuple(getattr(result, "diagnostics", ()))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_reports(path: Path, golden_at: Callable[[str, Path], None]) -> None:
    found = diagnose(path)
    code = path.stem.split("_")[0]
    assert code in [diagnostic.code for diagnostic in found]
    for diagnostic in found:
        assert diagnostic.span is not None, "a message without a place"
        assert diagnostic.severity == "warning" or diagnostic.help, "an error without a word on how to mend it"
    golden_at("\n\n".join(diagnostic.render() for diagnostic in found) + "\n", path.with_suffix(".txt"))
