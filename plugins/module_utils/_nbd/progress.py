# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: how a long copy is watched from outside, and how it is told to stop.

The watcher makes a directory and keeps touching the file ``watched`` in it. The copy appends a JSON line per disk
and second to ``progress``. When ``watched`` goes, or is not touched any more, the copy stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time

from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError, TimedOut

WATCHED = "watched"
PROGRESS = "progress"
PID = "pid"


class Watch:
    """The copy's side. Threads may share it.

    :param directory: made by the watcher; None when nobody watches
    :param timeout: seconds that everything together may take, 0 for no limit
    :param patience: seconds without a sign of the watcher after which the copy stops
    """

    def __init__(self, directory: str | None = None, timeout: float = 0, patience: float = 120) -> None:
        self._directory = directory
        self._patience = patience
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout if timeout else float("inf")
        self._stopped: BackupError | None = None
        self._lock = threading.Lock()
        self._told: dict[str, float] = {}
        if directory:
            with open(os.path.join(directory, PID), "w", encoding="ascii") as stream:
                stream.write(f"{os.getpid()}\n")

    def stop(self) -> None:
        """Have all copies end at their next :meth:`check`."""
        self._stopped = BackupError("The copy was stopped.", "Run it again: it goes on where it can.")

    def check(self) -> None:
        """Raise the BackupError for which the copy must stop, if there is one."""
        if self._stopped:
            raise self._stopped
        if time.monotonic() > self._deadline:
            raise TimedOut(
                f"The copy was not done after the {self._timeout:g} seconds that it was given.",
                "Give a longer timeout; run again, it goes on where it can.",
            )
        if self._directory and _silence(self._directory) > self._patience:
            raise BackupError("It was stopped because the playbook that started it is gone.", "Run the playbook again.")

    def tell(self, disk: str, stage: str, done: int, total: int, passed: int = 0) -> None:
        """Tell the watcher how far a disk is, once a second at most.

        :param stage: one word: what is being done
        :param done: bytes of ``total`` that need no more work
        :param passed: bytes that went over the wire
        """
        now = time.time()
        if not self._directory or (now - self._told.get(disk, 0) < 1 and done < total):
            return
        path = os.path.join(self._directory, PROGRESS)
        event = {"time": now, "disk": disk, "stage": stage, "done": min(done, total), "total": total, "passed": passed}
        # A watcher that is gone has taken the directory along; check() will find that out.
        with self._lock, contextlib.suppress(FileNotFoundError), open(path, "a", encoding="utf-8") as stream:
            self._told[disk] = now
            stream.write(json.dumps(event) + "\n")


def _silence(directory: str) -> float:
    """Seconds since the last sign of the watcher."""
    try:
        return time.time() - os.stat(os.path.join(directory, WATCHED)).st_mtime
    except FileNotFoundError:
        return float("inf")
