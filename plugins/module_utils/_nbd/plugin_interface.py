# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: how our nbdkit plugins tell the module what happens to them.

Errors and events go out as JSON lines. Runs inside the plugins, so it may load nothing but the standard library, and
not OpenSSL (see vixdisklib.py).
"""

from __future__ import annotations

import collections
import json
import threading
import time
from pathlib import Path
from typing import Any, Callable

MANY = 1000  # as often as the caller allows


class DiskError(Exception):
    """A call failed, or cannot be made.

    :param stage: load, init, connect, open, capacity, read, write, flush ...
    :param message: the object and the cause
    :param code: the other side's error code; None for errors that we found
    :param hint: the next step
    """

    name = ""
    repeats = 0  # how often the same request is worth repeating on a new connection
    out_of_memory = False  # of the other side: fewer requests at a time help

    def __init__(self, stage: str, message: str, code: int | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.stage = stage
        self.code = code
        self.message = message
        self.hint = hint

    def as_dict(self) -> dict[str, Any]:
        """What the status file says about the error."""
        return {"stage": self.stage, "code": self.code, "name": self.name, "message": self.message, "hint": self.hint}

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class Status:
    """Appends JSON lines to the status file, each with its time, and keeps secrets out."""

    def __init__(self, path: str | None, secret: str = "", debug: Callable[[str], Any] = lambda text: None) -> None:
        self._path = path
        self._debug = debug
        self._secret = secret
        self._lock = threading.Lock()
        self._errors: set[Any] = set()
        self._log: collections.deque[str] = collections.deque(maxlen=5)

    def log(self, text: str, is_warning: bool) -> None:
        """Take a line of the library's log, which may be the background of an error."""
        text = self._clean(text)
        if is_warning:
            self._log.append(text)
        self._debug(text)

    def event(self, event: str, **facts: Any) -> None:
        """Write one line."""
        if self._path is None:
            return
        line = self._clean(json.dumps({"event": event, "time": time.time(), **facts}))
        with self._lock, Path(self._path).open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")

    def error(self, error: DiskError) -> None:
        """Write an error that ends the copy, once: many requests may fail for the same cause."""
        if (error.stage, error.code) not in self._errors:
            self._errors.add((error.stage, error.code))
            self.event("error", **error.as_dict(), log=list(self._log))

    def _clean(self, text: str) -> str:
        return text.replace(self._secret, "********") if self._secret else text
