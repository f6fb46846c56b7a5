"""All tiny pipelines by a short name of each."""

from __future__ import annotations

from .flows import FLOWS
from .known import KNOWN
from .older import OLDER
from .recent import RECENT

EVERY = {**KNOWN, **RECENT, **FLOWS, **OLDER}
