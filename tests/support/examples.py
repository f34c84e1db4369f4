"""Import the examples of the how-to pages."""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

from smartpipe import events
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

EXAMPLES = ROOT / "examples" / "howto"


@contextmanager
def import_example(name: str) -> Iterator[ModuleType]:
    """Import an example, and forget it at the end, with its events: examples declare events of the same types."""
    with patch.object(sys, "path", [str(EXAMPLES), *sys.path]), patch.dict(events._REGISTRY):
        try:
            yield importlib.import_module(name)
        finally:
            sys.modules.pop(name, None)
