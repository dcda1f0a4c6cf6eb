"""Compiled templates in the cache: Jinja makes Python code of each, which takes longer than to write kernels with it.

The key names the text of the template and what compiles it, no path, so that a template that was changed is compiled
anew.
"""

from __future__ import annotations

import sys
from contextlib import suppress

import jinja2
from jinja2.bccache import Bucket

from spdsl.cache.entries import digest
from spdsl.cache.store import store
from spdsl.diagnostics import SpatError

_NAME = "template.bin"


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
