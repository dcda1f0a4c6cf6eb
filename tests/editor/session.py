"""A client that speaks to `spdsl lsp` over its standard input and output, as an editor does."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from lsprotocol import types as lsp
from pygls.lsp.client import LanguageClient

from spdsl.editor.rename import replaced

T = TypeVar("T")


class Session:
    """One server, and the documents that are open in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loop = asyncio.new_event_loop()
        self.client = LanguageClient("test", "0")
        self.told: dict[str, list[lsp.PublishDiagnosticsParams]] = {}
        self.texts: dict[str, str] = {}
        self.versions: dict[str, int] = {}
        self.news = asyncio.Event()

        @self.client.feature(lsp.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
        def _published(params: lsp.PublishDiagnosticsParams) -> None:
            self.told.setdefault(params.uri, []).append(params)
            self.news.set()

        self.server = self.run(self._start())

    def run(self, task: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(task, 60))

    async def _start(self) -> lsp.InitializeResult:
        await self.client.start_io(sys.executable, "-m", "spdsl.cli", "lsp")
        answer = await self.client.initialize_async(
            lsp.InitializeParams(capabilities=lsp.ClientCapabilities(), root_uri=self.folder.as_uri())
        )
        self.client.initialized(lsp.InitializedParams())
        return answer

    def end(self) -> None:
        async def goodbye() -> None:
            await self.client.shutdown_async(None)
            self.client.exit(None)
            await self.client.stop()

        self.run(goodbye())
        self.loop.close()

    # ------------------------------------------------------------ documents

    def uri(self, name: str) -> str:
        return (self.folder / name).as_uri()

    def open(self, name: str, text: str) -> list[lsp.Diagnostic]:
        """Open a document that need not be on the disk, and wait for the remarks about it."""
        self.show(name, text)
        return self.remarks(name)

    def show(self, name: str, text: str) -> None:
        """Open a document."""
        uri = self.uri(name)
        self.texts[name], self.versions[name] = text, 1
        self.told.pop(uri, None)
        document = lsp.TextDocumentItem(uri=uri, language_id="spat", version=1, text=text)
        self.client.text_document_did_open(lsp.DidOpenTextDocumentParams(text_document=document))

    def change(self, name: str, old: str, new: str) -> list[lsp.Diagnostic]:
        """Replace one part of a document, as typing does."""
        text = self.texts[name]
        assert text.count(old) == 1
        start = text.index(old)
        change = lsp.TextDocumentContentChangePartial(
            range=lsp.Range(start=self.at(name, start), end=self.at(name, start + len(old))), text=new
        )
        self.texts[name] = text.replace(old, new)
        self.versions[name] += 1
        identifier = lsp.VersionedTextDocumentIdentifier(uri=self.uri(name), version=self.versions[name])
        self.client.text_document_did_change(
            lsp.DidChangeTextDocumentParams(text_document=identifier, content_changes=[change])
        )
        return self.remarks(name)

    def remarks(self, name: str, *, least: int = 1) -> list[lsp.Diagnostic]:
        """The latest remarks about the newest text of a document; ``least`` waits for so many answers about it."""
        uri, version = self.uri(name), self.versions[name]

        async def wait() -> list[lsp.Diagnostic]:
            while True:
                fresh = [each for each in self.told.get(uri, ()) if each.version == version]
                if len(fresh) >= least:
                    return list(fresh[-1].diagnostics)
                self.news.clear()
                await self.news.wait()

        return self.run(wait())

    def close(self, name: str) -> None:
        self.client.text_document_did_close(
            lsp.DidCloseTextDocumentParams(text_document=lsp.TextDocumentIdentifier(uri=self.uri(name)))
        )
        del self.texts[name], self.versions[name]

    # ------------------------------------------------------------ places

    def at(self, name: str, offset: int) -> lsp.Position:
        """An offset as the protocol counts it, written apart from the server's own way."""
        before = self.texts[name][:offset]
        column = before.rpartition("\n")[2]
        return lsp.Position(line=before.count("\n"), character=sum(1 + (ord(mark) > 0xFFFF) for mark in column))

    def place(self, name: str, mark: str, nth: int = 0) -> dict[str, Any]:
        """The arguments of a question about the ``nth`` place of a text, from its last word's first letter on."""
        offset = -1
        for _ in range(nth + 1):
            offset = self.texts[name].index(mark, offset + 1)
        skipped = len(mark) - len(mark.split()[-1].split(".")[-1])
        return {
            "text_document": lsp.TextDocumentIdentifier(uri=self.uri(name)),
            "position": self.at(name, offset + skipped),
        }

    def marked(self, name: str, where: lsp.Range) -> str:
        """The text at a place that the server gave."""
        lines = self.texts[name].split("\n")

        def offset(position: lsp.Position) -> int:
            units = lines[position.line].encode("utf-16-le")[: 2 * position.character]
            return sum(len(line) + 1 for line in lines[: position.line]) + len(units.decode("utf-16-le"))

        return self.texts[name][offset(where.start) : offset(where.end)]

    # ------------------------------------------------------------ questions

    def hover(self, name: str, mark: str, nth: int = 0) -> str:
        found = self.run(self.client.text_document_hover_async(lsp.HoverParams(**self.place(name, mark, nth))))
        if found is None:
            return ""
        assert isinstance(found.contents, lsp.MarkupContent)
        return found.contents.value

    def offers(self, name: str, offset: int) -> list[str]:
        document = lsp.TextDocumentIdentifier(uri=self.uri(name))
        question = lsp.CompletionParams(text_document=document, position=self.at(name, offset))
        found = self.run(self.client.text_document_completion_async(question))
        assert isinstance(found, lsp.CompletionList)
        ranked = sorted(found.items, key=lambda item: item.sort_text or "")
        return [item.label for item in ranked]

    def definition(self, name: str, mark: str, nth: int = 0) -> lsp.Location | None:
        question = lsp.DefinitionParams(**self.place(name, mark, nth))
        found = self.run(self.client.text_document_definition_async(question))
        assert found is None or isinstance(found, lsp.Location)
        return found

    def rename(self, name: str, mark: str, new: str, nth: int = 0) -> dict[str, str]:
        """The texts of the files after a change of name."""
        question = lsp.RenameParams(**self.place(name, mark, nth), new_name=new)
        edit = self.run(self.client.text_document_rename_async(question))
        assert edit is not None
        assert edit.changes is not None
        after = {}
        for uri, edits in edit.changes.items():
            file = next(each for each in self.texts if self.uri(each) == uri)
            lines = [0]
            for line in self.texts[file].split("\n"):
                lines.append(lines[-1] + len(line) + 1)
            places = []
            for each in edits:
                old = self.marked(file, each.range)
                line = self.texts[file].split("\n")[each.range.start.line]
                units = line.encode("utf-16-le")[: 2 * each.range.start.character]
                start = lines[each.range.start.line] + len(units.decode("utf-16-le"))
                places.append((start, start + len(old)))
            after[file] = replaced(self.texts[file], places, new)
        return after
