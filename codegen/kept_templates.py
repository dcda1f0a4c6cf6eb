"""Compiled templates in the cache: Jinja makes Python code of each, which takes longer than to write kernels with it.

The key names the text of the template and what compiles it, no path, so that a template that was changed is compiled
anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress

import jinja2
from jinja2.bccache import Bucket

from spdsl.cache.entries import digest
from spdsl.cache.store import store
from spdsl.diagnostics import SpatError

_NAME = "template.bin"

BLOCKS = ("naming", "walks", "tiles", "arithmetic", "parts", "picks", "intervals", "distances")
"""Templates of blocks."""

FIRST = (
    *(f"blocks/{each}.jinja" for each in BLOCKS),
    "module.jinja",
    "gluon/blocks.jinja",
    "gluon/forward_blocks.jinja",
    "gluon/fused_blocks.jinja",
    "gluon/module.jinja",
    "gluon/forward.jinja",
)
"""What a first call needs."""

_SECONDS = 20.0
"""How long the process that compiles templates may take; it takes one."""


class KeptTemplates(jinja2.BytecodeCache):
    """Jinja's cache of bytecode as entries of the store.  Without a store that can be used it keeps nothing."""

    def load_bytecode(self, bucket: Bucket) -> None:
        """Fill a bucket, if its template is kept."""
        with suppress(SpatError, OSError):
            found = store().get(_key(bucket))
            if found is not None:
                bucket.bytecode_from_string(found.path(_NAME).read_bytes())

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep the template of a bucket."""
        with suppress(SpatError, OSError):
            files = {_NAME: bucket.bytecode_to_string()}
            about = {"made_by": {"jinja2": jinja2.__version__, "python": sys.implementation.cache_tag}}
            store().put(_key(bucket), kind="template", name="template", files=files, about=about)


def _key(bucket: Bucket) -> str:
    return digest("template", jinja2.__version__, str(sys.implementation.cache_tag), bucket.checksum)


def all_kept(environment: jinja2.Environment, names: Iterable[str]) -> bool:
    """Whether all of these templates are in the cache."""
    cache, loader = environment.bytecode_cache, environment.loader
    if cache is None or loader is None:
        return False
    texts = ((name, *loader.get_source(environment, name)) for name in names)
    return all(cache.get_bucket(environment, name, file, text).code is not None for name, text, file, _ in texts)


def compile_aside() -> None:
    """Let another process compile the first templates into the cache: this one has Python's lock for other things.

    What it does not do is done here when it is needed.
    """
    if sys.executable:
        subprocess.run(  # noqa: S603  # this file
            [sys.executable, "-m", __name__],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )


def main() -> None:
    """Compile the first templates."""
    from spdsl.codegen.emit import environment

    for name in FIRST:
        environment().get_template(name)


if __name__ == "__main__":
    main()
