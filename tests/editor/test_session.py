"""A session of a client with `spdsl lsp` over standard input and output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException

from spdsl.grammar.format import format_text
from tests.editor.session import Session

WINDOW = """\
# 𝔸 window that follows the query: “𝔸” takes two units of UTF-16.
pattern window(size: int in 1.. = 64, sinks: int in 0.. = 4) {
  axis blk = token by 16
  let near = q - k < size  # 𝔸 near
  keep causal and (near or k < sinks or q.blk == k.blk)
}
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    here = Session(tmp_path_factory.mktemp("files with spaces"))
    yield here
    here.end()


@pytest.fixture
def window(session: Session) -> Iterator[Session]:
    assert session.open("window.spat", WINDOW) == []
    yield session
    session.close("window.spat")


def test_what_the_server_can_do(session: Session) -> None:
    can = session.server.capabilities
    assert session.server.server_info is not None
    assert session.server.server_info.name == "spdsl"
    assert can.position_encoding in (None, "utf-16")
    abilities = "hover completion definition rename references document_formatting document_symbol code_action"
    for name in abilities.split():
        assert getattr(can, f"{name}_provider"), name


def test_mistakes_come_and_go_while_typing(window: Session) -> None:
    (wrong,) = window.change("window.spat", "(near or", "(size or")
    assert wrong.code == "SP203"
    assert wrong.severity == lsp.DiagnosticSeverity.Error
    assert window.marked("window.spat", wrong.range) == "size"
    assert "`size` is an int" in wrong.message
    assert "help: compare it, for example `size > 0`" in wrong.message
    assert wrong.related_information is not None
    (declared,) = wrong.related_information
    assert window.marked("window.spat", declared.location.range) == "size"
    assert declared.message == "size: int in 1.. = 64"
    (warned,) = window.change("window.spat", "(size or", "(")
    assert (warned.code, warned.severity) == ("SP217", lsp.DiagnosticSeverity.Warning)
    assert list(warned.tags or ()) == [lsp.DiagnosticTag.Unnecessary]
    assert window.change("window.spat", "and ( k", "and (near or k") == []


def test_places_count_units_of_utf_16(session: Session) -> None:
    text = "pattern p() {\n  keep causal # 𝔸𝔸\n  keep /* 𝔸 */ q\n}\n"
    (wrong,) = session.open("marks.spat", text)
    assert session.marked("marks.spat", wrong.range) == "/"
    (wrong,) = session.change("marks.spat", "/* 𝔸 */ q", "(q < 𝔸)")
    assert wrong.code == "SP102"
    assert session.marked("marks.spat", wrong.range) == "𝔸"
    session.close("marks.spat")


def test_warnings_that_take_a_proof_follow(session: Session) -> None:
    assert session.open("empty.spat", "pattern p() {\n  keep q - k > 3 and causal\n}\n") == []
    late = session.remarks("empty.spat", least=2)
    assert [(each.code, session.marked("empty.spat", each.range)) for each in late] == [
        ("SP411", "causal"),
        ("SP410", "q - k > 3 and causal"),
    ]
    session.close("empty.spat")


def test_hover(window: Session) -> None:
    assert "```spat\nsize: int in 1.. = 64\n```" in window.hover("window.spat", "size")
    used = window.hover("window.spat", "size", 1)
    assert "size: int in 1.. = 64" in used
    assert "*int*, one value, at least 1" in used
    near = window.hover("window.spat", "near", 2)
    assert "let near = q - k < size" in near
    assert "a set, *bool*, one for each `q, k`" in near
    assert "`k <= q`" in window.hover("window.spat", "causal")
    assert "*int*, one for each `q, k`" in window.hover("window.spat", "q -")
    block = window.hover("window.spat", "q.blk")
    assert "axis blk = token by 16" in block
    assert "*int*, one for each `q.blk`" in block
    assert "The pairs that take part" in window.hover("window.spat", "keep")
    assert "gives each a coordinate" in window.hover("window.spat", "axis")


def test_hover_over_a_pattern_tells_what_is_proved(window: Session) -> None:
    told = window.hover("window.spat", "window", 1)
    assert "𝔸 window that follows the query" in told
    assert "For every length and all parameters" in told
    assert "✓ causal" in told
    assert "✓ every query keeps something" in told
    window.change("window.spat", "causal and (near or ", "abs(q - k) > 2 and (near or ")
    told = window.hover("window.spat", "window", 1)
    assert "✗ causal: no, where" in told
    assert "✗ every query keeps something: no, where" in told


def offers(session: Session, text: str) -> list[str]:
    """What is offered at ``|``."""
    session.show("typed.spat", text.replace("|", "", 1) if "|>" not in text else text.replace("¦", ""))
    found = session.offers("typed.spat", text.index("¦" if "|>" in text else "|"))
    session.close("typed.spat")
    return found


def test_completion_knows_what_can_stand_there(session: Session) -> None:
    assert set(offers(session, "|")) == {"use", "def", "pattern"}
    assert {"keep", "let", "axis", "grid", "input", "bias", "softcap"} <= set(offers(session, "pattern p() { | }"))
    assert "then" not in offers(session, "pattern p() { | }")
    assert offers(session, "pattern p(w: |") == ["int", "float", "bool"]
    assert offers(session, "pattern p() { let |") == []
    inside = offers(session, "pattern p(w: int = 3) { let near = q - k < w keep ne|")
    assert inside[:2] == ["w", "near"]
    assert {"causal", "q", "abs", "not", "if", "attend"} <= set(inside)
    assert not {"and", "keep", "skip", "linear"} & set(inside)
    assert {"and", "or", "from", "weight", "keep"} <= set(offers(session, "pattern p() { keep causal |"))
    assert "then" in offers(session, "pattern p() { keep if causal |")


def test_completion_of_coordinates_and_stages(session: Session) -> None:
    head = "pattern p() { grid (y: 4, x: 4) axis blk = token by 4 "
    assert offers(session, head + "keep q.| }") == ["y", "x", "blk"]
    assert offers(session, head + "keep k.blk.| <= q }") == ["first", "last", "size"]
    assert offers(session, head + "keep k < blk.| }") == ["count"]
    stages = offers(session, "pattern p() { let x = score(Q, K) |> ¦")
    assert {"only", "top", "softmax"} <= set(stages)
    assert "causal" not in stages


def test_completion_in_broken_files(session: Session) -> None:
    broken = "pattern a( { keep }\npattern p(w: int) {\n  let = 4\n  let near = q - k < w\n  keep ne|\n}\n"
    assert offers(session, broken)[:2] == ["w", "near"]
    assert offers(session, "pattern p() { # keep |") == []


def test_completion_of_files_and_of_what_they_hold(session: Session) -> None:
    (session.folder / "shared.spat").write_text("# Half of it.\ndef half(x) = x // 2\n")
    found = offers(session, 'use "|"')
    assert found[0] == "shared.spat"
    assert {"streaming.spat", "documents.spat"} <= set(found)
    used = 'use "shared.spat"\nuse "streaming.spat"\npattern mine() { keep '
    assert {"half", "streaming"} <= set(offers(session, used + "|"))
    assert offers(session, used + "streaming(|")[:2] == ["window =", "sinks ="]


def test_definition_and_references(window: Session) -> None:
    found = window.definition("window.spat", "near", 2)
    assert found is not None
    assert window.marked("window.spat", found.range) == "near"
    assert found.range.start.line == 3
    axis = window.definition("window.spat", "k.blk")
    assert axis is not None
    assert axis.range.start == lsp.Position(line=2, character=7)
    assert window.definition("window.spat", "causal") is None
    question = lsp.ReferenceParams(
        **window.place("window.spat", "axis blk"), context=lsp.ReferenceContext(include_declaration=False)
    )
    places = window.run(window.client.text_document_references_async(question))
    assert places is not None
    assert [each.range.start.line for each in places] == [4, 4]


def test_symbols(window: Session) -> None:
    document = lsp.TextDocumentIdentifier(uri=window.uri("window.spat"))
    question = lsp.DocumentSymbolParams(text_document=document)
    symbols = window.run(window.client.text_document_document_symbol_async(question))
    assert symbols is not None
    (pattern,) = symbols
    assert isinstance(pattern, lsp.DocumentSymbol)
    assert [(each.name, each.detail) for each in pattern.children or ()] == [
        ("size", "parameter"),
        ("sinks", "parameter"),
        ("blk", "axis"),
        ("near", "let"),
    ]
    for each in pattern.children or ():
        assert window.marked("window.spat", each.selection_range) == each.name


def test_formatting(session: Session) -> None:
    text = "pattern p(){keep causal  # 𝔸\n}"
    session.open("loose.spat", text)
    document = lsp.TextDocumentIdentifier(uri=session.uri("loose.spat"))
    options = lsp.FormattingOptions(tab_size=4, insert_spaces=True)
    question = lsp.DocumentFormattingParams(text_document=document, options=options)
    edits = session.run(session.client.text_document_formatting_async(question))
    assert edits is not None
    (edit,) = edits
    assert session.marked("loose.spat", edit.range) == text
    assert edit.new_text == format_text(text)
    session.change("loose.spat", "keep", "kept")
    assert session.run(session.client.text_document_formatting_async(question)) is None
    session.close("loose.spat")


def test_rename(window: Session) -> None:
    after = window.rename("window.spat", "near", "close", 2)
    assert after == {"window.spat": WINDOW.replace("let near", "let close").replace("(near", "(close")}
    after = window.rename("window.spat", "q.blk", "tile")
    assert after == {"window.spat": WINDOW.replace("blk", "tile")}


@pytest.mark.parametrize(
    ("mark", "new", "why"),
    [
        ("sinks", "size", "declared twice"),
        ("sinks", "causal", "already means something"),
        ("sinks", "q_start", "no parameter may be called"),
        ("sinks", "2nd", "is not a name"),
        ("sinks", "if", "already means something"),
        ("causal", "past", "cannot be renamed"),
    ],
)
def test_names_that_cannot_be_taken(window: Session, mark: str, new: str, why: str) -> None:
    with pytest.raises(JsonRpcException, match=why):
        window.rename("window.spat", mark, new)


def test_quick_fixes(window: Session) -> None:
    remarks = window.change("window.spat", "(near", "(naer")
    (wrong,) = [each for each in remarks if each.severity == lsp.DiagnosticSeverity.Error]
    document = lsp.TextDocumentIdentifier(uri=window.uri("window.spat"))
    question = lsp.CodeActionParams(
        text_document=document, range=wrong.range, context=lsp.CodeActionContext(diagnostics=[wrong])
    )
    actions = window.run(window.client.text_document_code_action_async(question))
    assert actions is not None
    (action,) = actions
    assert isinstance(action, lsp.CodeAction)
    assert action.title == "Write `near`"
    assert action.edit is not None
    assert action.edit.changes is not None
    ((edit,),) = action.edit.changes.values()
    assert window.marked("window.spat", edit.range) == "naer"


SHARED = "def half(x) = x // 2\n\npattern base(size: int in 1.. = 8) {\n  keep causal and q - k < half(size)\n}\n"
USER = 'use "base.spat"\n\npattern mine() {\n  keep base(size = 4) or q == half(k)\n}\n'


def test_files_that_use_each_other(session: Session) -> None:
    assert session.open("base.spat", SHARED) == []
    assert session.open("mine.spat", USER) == []
    found = session.definition("mine.spat", "half")
    assert found is not None
    assert (found.uri, session.marked("base.spat", found.range)) == (session.uri("base.spat"), "half")
    parameter = session.definition("mine.spat", "size")
    assert parameter is not None
    assert (parameter.uri, parameter.range.start.line) == (session.uri("base.spat"), 2)
    file = session.definition("mine.spat", 'use "base.spat'.replace("use ", ""))
    assert file is not None
    assert file.uri == session.uri("base.spat")
    assert "from `base.spat`" in session.hover("mine.spat", "half")
    # A new name reaches the other file, in either direction.
    both = {"base.spat": SHARED.replace("half", "part"), "mine.spat": USER.replace("half", "part")}
    assert session.rename("base.spat", "half", "part") == both
    assert session.rename("mine.spat", "half", "part") == both
    sized = session.rename("base.spat", "size", "width")
    assert sized == {"base.spat": SHARED.replace("size", "width"), "mine.spat": USER.replace("size", "width")}
    # A mistake in what is used, not saved yet, is told where it is used, and leads there.
    session.told.clear()
    session.change("base.spat", "half(size)", "half(siz)")
    (told,) = session.remarks("mine.spat", least=1)
    assert told.message.startswith("in base.spat: unknown name `siz`")
    assert session.marked("mine.spat", told.range) == "base.spat"
    assert told.related_information is not None
    assert session.marked("base.spat", told.related_information[0].location.range) == "siz"
    session.told.clear()
    assert session.change("base.spat", "half(siz)", "half(size)") == []
    assert session.remarks("mine.spat") == []
    # A cycle is said and does no harm.
    (cycle,) = [e for e in session.change("base.spat", "def half", 'use "mine.spat"\ndef half') if e.code == "SP209"]
    assert session.marked("base.spat", cycle.range) == "mine.spat" or "uses itself" in cycle.message
    session.close("base.spat")
    session.close("mine.spat")


def test_the_library_is_read_and_not_changed(session: Session) -> None:
    session.open("own.spat", 'use "streaming.spat"\npattern own() { keep streaming() }\n')
    found = session.definition("own.spat", "keep streaming")
    assert found is not None
    assert Path(found.uri).name == "streaming.spat"
    with pytest.raises(JsonRpcException, match="belongs to the library"):
        session.rename("own.spat", "keep streaming", "flowing")
    session.close("own.spat")


@pytest.mark.parametrize(
    "text", ["", "}", "pattern", "pattern p(", "use", 'use "', "\0", "keep keep keep", "((((" * 400]
)
def test_no_text_is_too_broken(session: Session, text: str) -> None:
    session.open("broken.spat", text)
    session.offers("broken.spat", len(text))
    for question in (session.client.text_document_hover_async, session.client.text_document_definition_async):
        document = lsp.TextDocumentIdentifier(uri=session.uri("broken.spat"))
        place = lsp.Position(line=0, character=len(text))
        params = lsp.HoverParams if "hover" in question.__name__ else lsp.DefinitionParams
        session.run(question(params(text_document=document, position=place)))
    document = lsp.TextDocumentIdentifier(uri=session.uri("broken.spat"))
    session.run(session.client.text_document_document_symbol_async(lsp.DocumentSymbolParams(text_document=document)))
    session.close("broken.spat")
