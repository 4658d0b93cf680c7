# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Finds the programs that run on this machine, and waits for what they bring about.

Any of them may end between two looks, so what is gone is left out and never an error.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def processes(*texts: str) -> dict[int, list[str]]:
    """Arguments of the running processes whose arguments hold all the texts, by process ID."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if all(text in " ".join(arguments) for text in texts):
                found[int(entry.name)] = arguments
    return found


def program(pid: int) -> str:
    """The name of what a process runs; empty when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    return ""


def parent(pid: int) -> int:
    """The process that a process belongs to; 0 when it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    return 0


def kill(*pids: int) -> None:
    """End these at once, but for those that are gone already."""
    for pid in filter(None, pids):  # 0 would be all of our own
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value of ``condition``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return value


@contextlib.contextmanager
def once(condition: Callable[[], Any], act: Callable[[], Any]) -> Iterator[None]:
    """Beside what is done inside, act as soon as the condition holds. Both have ended when this ends."""

    def wait_and_act() -> None:
        wait_for(condition)
        act()

    beside = threading.Thread(target=wait_and_act)
    beside.start()
    try:
        yield
    finally:
        beside.join()
