# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs commands and says what they cost: wall time, processor seconds and memory of their whole process trees.

What a process used is read from /proc every few hundredths of a second while it lives, so up to that much of the
end of each process is missed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAUSE = 0.04  # seconds between two looks at the processes that are known
SEARCH = 5  # every so many looks, new processes are looked for
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Usage:
    """What the processes of one name have used.

    :param cpu: user and system seconds
    :param peak: the largest resident memory of one of them, in bytes
    """

    cpu: float = 0.0
    peak: int = 0


@dataclass
class Cost:
    """What one run cost.

    :param seconds: wall time
    :param processes: by program name
    :param peak: the largest sum of resident memory at one time, in bytes; shared pages count in each process
    """

    seconds: float = 0.0
    processes: dict[str, Usage] = field(default_factory=dict)
    peak: int = 0
    output: str = ""

    @property
    def cpu(self) -> float:
        """Processor seconds of all processes."""
        return sum(usage.cpu for usage in self.processes.values())

    def cpu_of(self, program: str) -> float:
        """Processor seconds of the processes of one program."""
        return self.processes.get(program, Usage()).cpu


class Failed(Exception):
    """A command that was to be measured failed."""


class Sampler(threading.Thread):
    """Follows all descendants of this process that start while it runs, from ``start()`` to ``stop()``."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._known = _descendants()
        self._seen: dict[int, tuple[str, float, int]] = {}  # process: name, seconds, most memory
        self._ended = threading.Event()
        self.peak = 0

    def run(self) -> None:
        alive: set[int] = set()
        look = 0
        while not self._ended.is_set():
            if look % SEARCH == 0 or not alive:
                alive = _descendants() - self._known
            look += 1
            memory = 0
            for process in list(alive):
                sample = _look(process)
                if sample is None:
                    alive.discard(process)
                    continue
                name, seconds, resident = sample
                memory += resident
                self._seen[process] = (name, seconds, max(resident, self._seen.get(process, sample)[2]))
            self.peak = max(self.peak, memory)
            self._ended.wait(PAUSE)

    def stop(self) -> dict[str, Usage]:
        """What they have used, by program name."""
        self._ended.set()
        self.join()
        usage: dict[str, Usage] = {}
        for name, seconds, resident in self._seen.values():
            entry = usage.setdefault(name, Usage())
            entry.cpu += seconds
            entry.peak = max(entry.peak, resident)
        return usage


def run(
    command: Sequence[str],
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
) -> Cost:
    """Run a command to its end and measure it; its standard output is kept.

    :raises Failed: with what it said
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # or servers that outlive their parent get lost
    sampler = Sampler()
    sampler.start()
    started = time.monotonic()
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    output, errors = process.communicate(stdin)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-process.pid, 0)
    seconds = time.monotonic() - started
    usage = sampler.stop()
    if process.returncode:
        raise Failed(f"{command[0]} ended with {process.returncode}: {output[-2000:]} {errors[-2000:]}")
    return Cost(seconds, usage, sampler.peak, output)


def alternate(runs: int, variants: Mapping[str, Callable[[], Any]]) -> dict[str, list[Any]]:
    """Run all variants so many times, in turn and every other time in reverse, so that drifts hit all alike."""
    results: dict[str, list[Any]] = {name: [] for name in variants}
    for number in range(runs):
        for name in variants if number % 2 == 0 else reversed(list(variants)):
            results[name].append(variants[name]())
    return results


def cpu_so_far(program: str) -> float:
    """Processor seconds that descendants of this process with this name have used."""
    return sum(seconds for name, seconds, _memory in filter(None, map(_look, _descendants())) if name == program)


def median(values: Sequence[float]) -> float:
    """The middle one, to four digits."""
    return float(f"{statistics.median(values):.4g}")


def _descendants() -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            children.setdefault(_parent(int(entry)), []).append(int(entry))
    found, todo = set(), [os.getpid()]
    while todo:
        for child in children.get(todo.pop(), ()):
            found.add(child)
            todo.append(child)
    return found


def _stat(process: int) -> tuple[str, list[str]]:
    """Name, and the fields after it; all empty when the process is gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return "", []
    name, dummy, rest = text.partition("(")[2].rpartition(") ")
    return name, rest.split()


def _parent(process: int) -> int:
    _name, values = _stat(process)
    return int(values[1]) if values else -1


def _look(process: int) -> tuple[str, float, int] | None:
    """Name, processor seconds, and resident bytes of a process."""
    name, values = _stat(process)
    if not values:
        return None
    return name, (int(values[11]) + int(values[12])) / _TICK, int(values[21]) * _PAGE
