"""No memory of a process that holds notes goes to the disk when it crashes."""

from __future__ import annotations

import contextlib
import sys

# Linux hands a core to a program that /proc/sys/kernel/core_pattern may name whatever the limit is, unless it is 1;
# a file of 1 byte is not written either.
CORE_LIMIT = 1 if sys.platform == "linux" else 0


def leave_no_core() -> None:
    """Forbids core dumps of this process and of those that it starts; nothing to do where there are none (Windows)."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (CORE_LIMIT, CORE_LIMIT))
