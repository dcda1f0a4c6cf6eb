"""What the site has beyond the pages of docs/: pages from elsewhere in the repository, and generated ones.

mkdocs calls the functions named ``on_…``.  Nothing here is needed to read docs/ as it is.
"""

from __future__ import annotations

import posixpath
import re
import sys
from html import escape
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import gallery
import generated
import spat_lexer
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Pages of the site by where they stand in the repository; those of docs/ keep their names."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
PICTURE = re.compile(r"^<!-- picture: (.*?) -->$", re.MULTILINE)
BAR = re.compile(r"`([^`\n]*\\\|[^`\n]*)`")
FENCE = re.compile(r"^```spat error (SP\d+)$", re.MULTILINE)
TESTED = re.compile(r"^```(console|python) (?:like|gpu)$", re.MULTILINE)
"""What only tests read behind a fence; Python-Markdown would not see the fence for it."""

spat_lexer.register()


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from elsewhere, those that are made, and the pictures that they show."""
    made = {
        "examples.md": generated.examples(),
        "errors.md": generated.errors(),
        "spdsl.css": (Path(__file__).parent / "spdsl.css").read_text(encoding="utf-8"),
    }
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        made[page] = text
        for mark, _, target in LINK.findall(text):
            if mark and "://" not in target:
                picture = ROOT / source / ".." / target
                files.append(File.generated(config, Path(target).name, abs_src_path=str(picture.resolve())))
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put pictures and costs into the library, and lead links to where things stand on the site."""
    here = page.file.src_uri
    source = next((source for source, to in PAGES.items() if to == here), f"docs/{here}")
    markdown = PICTURE.sub(lambda found: gallery.example(*found[1].split()), markdown)
    if here == "library.md":
        markdown = gallery.page(markdown)
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [LINK.sub(lambda found: _link(found, source), BAR.sub(_bars, part)) for part in parts[::2]]
    return TESTED.sub(r"```\1", FENCE.sub(r'```spat title="refused: \1"', "".join(parts)))


def _bars(found: re.Match[str]) -> str:
    """Code with bars that are escaped for a table; Python-Markdown would show the escapes."""
    return f"<code>{escape(found[1]).replace(chr(92) + '|', '&#124;')}</code>"


def _link(found: re.Match[str], source: str) -> str:
    mark, text, target = found.groups()
    path, _, anchor = target.partition("#")
    if "://" in target or not path:
        return found[0]
    place = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    anchor = f"#{anchor}" if anchor else ""
    if mark:
        return f"![{text}]({posixpath.basename(place) if source in PAGES else path})"
    if place in PAGES:
        return f"[{text}]({PAGES[place]}{anchor})"
    if place.startswith("docs/"):
        return f"[{text}]({place.removeprefix('docs/')}{anchor})"
    if place == "examples":
        return f"[{text}](examples.md)"
    if place.startswith("examples/"):
        return f"[{text}](examples.md#{generated.anchor(Path(place).name)})"
    if not (ROOT / place).exists():
        return found[0]  # mkdocs complains of it
    return f"{text} (`{place}`)"
