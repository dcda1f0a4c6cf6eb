"""The language server: the protocol on one side, `Project` and its questions on the other, and nothing else.

Remarks come in two steps: what the checker says at once, and what takes a proof when the user pauses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException
from pygls.lsp.server import LanguageServer
from pygls.uris import from_fs_path, to_fs_path

from spdsl import __version__
from spdsl.diagnostics import Diagnostic, SpatError
from spdsl.editor.complete import Offer, complete
from spdsl.editor.mends import mends
from spdsl.editor.notes import headline, note
from spdsl.editor.outline import Declaration
from spdsl.editor.project import Place, Project
from spdsl.editor.rename import rename, renameable
from spdsl.grammar.format import format_text
from spdsl.remarks import doubts_of

T = TypeVar("T")

PAUSE = 0.15
"""Seconds without a change after which a text is checked."""

_SEVERITY = {"error": lsp.DiagnosticSeverity.Error, "warning": lsp.DiagnosticSeverity.Warning}
_UNUSED = "SP217"
_ITEM = lsp.CompletionItemKind
_OFFERED = {
    "pattern": _ITEM.Class, "def": _ITEM.Function, "function": _ITEM.Function, "parameter": _ITEM.Variable,
    "argument": _ITEM.Property, "input": _ITEM.Variable, "axis": _ITEM.Field, "coordinate": _ITEM.Field,
    "grid": _ITEM.Struct, "let": _ITEM.Variable, "name": _ITEM.Constant, "type": _ITEM.TypeParameter,
    "member": _ITEM.Property, "file": _ITEM.File, "word": _ITEM.Keyword,
}  # fmt: skip
_SYMBOL = lsp.SymbolKind
_SYMBOLS = {
    "pattern": _SYMBOL.Class, "def": _SYMBOL.Function, "parameter": _SYMBOL.Property, "argument": _SYMBOL.Variable,
    "input": _SYMBOL.Array, "axis": _SYMBOL.Field, "coordinate": _SYMBOL.Field, "grid": _SYMBOL.Struct,
    "let": _SYMBOL.Variable, "export": _SYMBOL.Event, "free axis": _SYMBOL.Field,
}  # fmt: skip


class Server(LanguageServer):
    """A language server with the files of its editor."""

    def __init__(self) -> None:
        super().__init__("spdsl", __version__, text_document_sync_kind=lsp.TextDocumentSyncKind.Incremental)
        self.project = Project()
        self.uris: dict[Path, str] = {}
        self._pending: dict[Path, asyncio.Task[None]] = {}

    # ------------------------------------------------------------ places

    def path(self, uri: str) -> Path:
        """The path of a document; a document without a file goes by its address."""
        return Path(to_fs_path(uri) or uri)

    def uri(self, path: Path) -> str:
        """The address of a file, as the editor writes it where it has it open."""
        return self.uris.get(path) or from_fs_path(str(path)) or str(path)

    def offset(self, uri: str, position: lsp.Position) -> tuple[Path, int]:
        """A place of the editor."""
        path = self.path(uri)
        return path, self.project.file(path).places.offset(position.line, position.character)

    def range(self, path: Path, place: Place) -> lsp.Range:
        """A place of a file, for the editor."""
        start, end = (self.project.file(path).places.point(offset) for offset in place)
        return lsp.Range(start=lsp.Position(*start), end=lsp.Position(*end))

    def location(self, path: Path, place: Place) -> lsp.Location:
        """A place with its file."""
        return lsp.Location(uri=self.uri(path), range=self.range(path, place))

    # ------------------------------------------------------------ remarks

    def changed(self, uri: str) -> None:
        """Take over the text of a document, and see to the remarks about it and about those that use it."""
        path = self.path(uri)
        self.uris[path] = uri
        self.project.opened[path] = self.workspace.get_text_document(uri).source
        self.look(path)

    def look(self, path: Path) -> None:
        """See to the remarks about all open documents that a file is part of."""
        for each in self.project.near(path):
            if each in self.project.opened:
                waiting = self._pending.pop(each, None)
                if waiting is not None:
                    waiting.cancel()
                self._pending[each] = asyncio.create_task(self._remark(each))

    def closed(self, uri: str) -> None:
        """The disk counts again."""
        path = self.path(uri)
        waiting = self._pending.pop(path, None)
        if waiting is not None:
            waiting.cancel()
        self.project.opened.pop(path, None)
        self.uris.pop(path, None)
        self.text_document_publish_diagnostics(lsp.PublishDiagnosticsParams(uri=uri, diagnostics=[]))
        if path.is_file():
            self.look(path)

    async def _remark(self, path: Path) -> None:
        await asyncio.sleep(PAUSE)
        verdict = await asyncio.to_thread(self.project.verdict, path)
        self._publish(path, verdict.diagnostics)
        doubts = await asyncio.to_thread(doubts_of, verdict.patterns)
        if doubts:
            self._publish(path, (*verdict.diagnostics, *doubts))

    def _publish(self, path: Path, remarks: Sequence[Diagnostic]) -> None:
        uri = self.uris.get(path)
        if uri is None:
            return
        told = [self._told(path, each) for each in remarks]
        version = self.workspace.get_text_document(uri).version
        self.text_document_publish_diagnostics(lsp.PublishDiagnosticsParams(uri=uri, diagnostics=told, version=version))

    def _told(self, path: Path, remark: Diagnostic) -> lsp.Diagnostic:
        """A remark for the editor.  One about a file that is used stands at a `use`, and leads there."""
        found = None if remark.span is None else self.project.located(path, remark.span)
        related: list[lsp.DiagnosticRelatedInformation] = []
        message = remark.message
        uses = self.project.file(path).outline.uses
        if found is None or found[0] != path:
            use = next((each for each in uses if found and self.project.used(path, each.path) == found[0]), None)
            use = use or next(iter(uses), None)
            place = (0, 0) if use is None else (use.start, use.end)
            if found is not None:
                message = f"in {found[0].name}: {message}"
                related.append(lsp.DiagnosticRelatedInformation(location=self.location(*found), message=remark.message))
        else:
            place = found[1]
            related += self._declarations(path, place)
        if remark.note:
            message += f" ({remark.note})"
        if remark.help:
            message += f"\nhelp: {remark.help}"
        return lsp.Diagnostic(
            range=self.range(path, place),
            severity=_SEVERITY[remark.severity],
            code=remark.code,
            source="spdsl",
            message=message,
            related_information=related or None,
            tags=[lsp.DiagnosticTag.Unnecessary] if remark.code == _UNUSED else None,
        )

    def _declarations(self, path: Path, place: Place) -> list[lsp.DiagnosticRelatedInformation]:
        """Where the names in a marked text are declared."""
        found: dict[tuple[Path, Declaration], None] = {}
        for mention in self.project.file(path).outline.mentions:
            if place[0] <= mention.start and mention.end <= place[1]:
                declared = self.project.resolved(path, mention)
                if declared is not None:
                    found[declared] = None
        return [
            lsp.DiagnosticRelatedInformation(
                location=self.location(where, (each.start, each.end)),
                message=headline(self.project.file(where), each),
            )
            for where, each in list(found)[:5]
        ]


server = Server()


def _answered(ask: Callable[[], T]) -> T:
    """An answer; a user's mistake is told as the reason why there is none."""
    try:
        return ask()
    except SpatError as mistake:
        text = f"{mistake.message}. {mistake.help}" if mistake.help else mistake.message
        raise JsonRpcException(text, code=lsp.LSPErrorCodes.RequestFailed) from None


@server.feature(lsp.TEXT_DOCUMENT_DID_OPEN)
async def _opened(ls: Server, params: lsp.DidOpenTextDocumentParams) -> None:
    ls.changed(params.text_document.uri)


@server.feature(lsp.TEXT_DOCUMENT_DID_CHANGE)
async def _changed(ls: Server, params: lsp.DidChangeTextDocumentParams) -> None:
    ls.changed(params.text_document.uri)


@server.feature(lsp.TEXT_DOCUMENT_DID_CLOSE)
async def _closed(ls: Server, params: lsp.DidCloseTextDocumentParams) -> None:
    ls.closed(params.text_document.uri)


@server.feature(lsp.WORKSPACE_DID_CHANGE_WATCHED_FILES)
async def _watched(ls: Server, params: lsp.DidChangeWatchedFilesParams) -> None:
    for each in params.changes:
        path = ls.path(each.uri)
        for opened in list(ls.project.opened):
            if opened.parent == path.parent:
                ls.look(opened)


@server.feature(lsp.TEXT_DOCUMENT_HOVER)
async def _hover(ls: Server, params: lsp.HoverParams) -> lsp.Hover | None:
    path, offset = ls.offset(params.text_document.uri, params.position)
    # Proofs may take a second: in the meantime other questions are answered.
    found = await asyncio.to_thread(note, ls.project, path, offset)
    if found is None:
        return None
    text, place = found
    return lsp.Hover(contents=lsp.MarkupContent(kind=lsp.MarkupKind.Markdown, value=text), range=ls.range(path, place))


@server.feature(lsp.TEXT_DOCUMENT_COMPLETION, lsp.CompletionOptions(trigger_characters=[".", '"', ">", "("]))
def _complete(ls: Server, params: lsp.CompletionParams) -> lsp.CompletionList:
    path, offset = ls.offset(params.text_document.uri, params.position)
    offers = complete(ls.project, path, offset)
    return lsp.CompletionList(
        is_incomplete=False, items=[_completion(number, each) for number, each in enumerate(offers)]
    )


def _completion(number: int, offer: Offer) -> lsp.CompletionItem:
    about = lsp.MarkupContent(kind=lsp.MarkupKind.Markdown, value=offer.about) if offer.about else None
    return lsp.CompletionItem(
        label=offer.label,
        kind=_OFFERED[offer.kind],
        detail=offer.detail or None,
        documentation=about,
        sort_text=f"{number:04}",
        insert_text=offer.text or None,
    )


@server.feature(lsp.TEXT_DOCUMENT_DEFINITION)
def _define(ls: Server, params: lsp.DefinitionParams) -> lsp.Location | None:
    path, offset = ls.offset(params.text_document.uri, params.position)
    for use in ls.project.file(path).outline.uses:
        found = ls.project.used(path, use.path) if use.start <= offset <= use.end else None
        if found is not None:
            return ls.location(found, (0, 0))
    declared = ls.project.declaration(path, offset)
    return None if declared is None else ls.location(declared[0], (declared[1].start, declared[1].end))


@server.feature(lsp.TEXT_DOCUMENT_REFERENCES)
def _refer(ls: Server, params: lsp.ReferenceParams) -> list[lsp.Location]:
    path, offset = ls.offset(params.text_document.uri, params.position)
    declared = ls.project.declaration(path, offset)
    if declared is None:
        return []
    where, found = declared
    own = (found.start, found.end)
    return [
        ls.location(each, place)
        for each, places in ls.project.places(where, found).items()
        for place in places
        if params.context.include_declaration or (each, place) != (where, own)
    ]


@server.feature(lsp.TEXT_DOCUMENT_DOCUMENT_SYMBOL)
def _symbols(ls: Server, params: lsp.DocumentSymbolParams) -> list[lsp.DocumentSymbol]:
    path = ls.path(params.text_document.uri)
    names = ls.project.file(path).outline

    def symbol(each: Declaration, children: Sequence[Declaration]) -> lsp.DocumentSymbol:
        return lsp.DocumentSymbol(
            name=each.name,
            kind=_SYMBOLS[each.kind],
            detail=each.kind,
            range=ls.range(path, (min(each.whole[0], each.start), max(each.whole[1], each.end))),
            selection_range=ls.range(path, (each.start, each.end)),
            children=[symbol(child, ()) for child in children],
        )

    return [
        symbol(item, [each for each in names.members(item.name) if item.whole[0] <= each.start < item.whole[1]])
        for item in names.items()
    ]


@server.feature(lsp.TEXT_DOCUMENT_FORMATTING)
def _format(ls: Server, params: lsp.DocumentFormattingParams) -> list[lsp.TextEdit] | None:
    path = ls.path(params.text_document.uri)
    file = ls.project.file(path)
    try:
        text = format_text(file.text, str(path))
    except SpatError:
        return None  # the remarks say what is wrong
    if text == file.text:
        return []
    return [lsp.TextEdit(range=ls.range(path, (0, len(file.text))), new_text=text)]


@server.feature(lsp.TEXT_DOCUMENT_PREPARE_RENAME)
def _prepare_rename(ls: Server, params: lsp.PrepareRenameParams) -> lsp.Range | None:
    path, offset = ls.offset(params.text_document.uri, params.position)
    _answered(lambda: renameable(ls.project, path, offset))
    word = ls.project.file(path).outline.word_at(offset)
    return None if word is None else ls.range(path, (word.start, word.end))


@server.feature(lsp.TEXT_DOCUMENT_RENAME, lsp.RenameOptions(prepare_provider=True))
def _rename(ls: Server, params: lsp.RenameParams) -> lsp.WorkspaceEdit:
    path, offset = ls.offset(params.text_document.uri, params.position)
    places = _answered(lambda: rename(ls.project, path, offset, params.new_name))
    changes = {
        ls.uri(each): [lsp.TextEdit(range=ls.range(each, place), new_text=params.new_name) for place in there]
        for each, there in places.items()
    }
    return lsp.WorkspaceEdit(changes=changes)


@server.feature(lsp.TEXT_DOCUMENT_CODE_ACTION, lsp.CodeActionOptions(code_action_kinds=[lsp.CodeActionKind.QuickFix]))
def _mend(ls: Server, params: lsp.CodeActionParams) -> list[lsp.CodeAction]:
    path = ls.path(params.text_document.uri)
    first, last = params.range.start.line, params.range.end.line
    actions = []
    for mend in mends(ls.project, path):
        where = ls.range(path, mend.place)
        if first <= where.start.line <= last:
            edit = lsp.TextEdit(range=where, new_text=mend.word)
            actions.append(
                lsp.CodeAction(
                    title=f"Write `{mend.word}`",
                    kind=lsp.CodeActionKind.QuickFix,
                    diagnostics=[each for each in params.context.diagnostics if each.code == mend.of.code],
                    edit=lsp.WorkspaceEdit(changes={params.text_document.uri: [edit]}),
                )
            )
    return actions


def serve() -> None:
    """Speak the language server protocol over standard input and output until the editor says goodbye."""
    server.start_io()
