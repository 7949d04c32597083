"""Signals that ask a run to end: the micro-batch at work is finished first; a second signal ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from types import FrameType

_NOTICE = b"\nr2d-edge: stopping after the notes at work are done; once more stops at once\n"


class Stops:
    """Holds a signal's exception back while work that must not be torn is under way.

    Args:
        signals: for each signal what it raises and the exit code of a second one.
    """

    def __init__(self, signals: Mapping[int, tuple[type[BaseException], int]] | None = None) -> None:
        self._signals = dict(signals or {})
        self._before: dict[int, object] = {}
        self._held = False
        self._pending: int | None = None
        self._seen = 0

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():  # Python lets no other set a handler
            self._before = {number: signal.signal(number, self._receive) for number in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The block is finished before a signal's exception is raised."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._pending is not None:
            raise self._signals[self._pending][0]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._seen += 1
        kind, code = self._signals[number]
        if self._seen > 1:
            os._exit(code)
        if not self._held:
            raise kind
        self._pending = number
        with contextlib.suppress(OSError):
            os.write(2, _NOTICE)
