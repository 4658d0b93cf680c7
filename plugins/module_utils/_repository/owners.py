# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: which run of Ansible a module belongs to, and whether it still lives.

A restore point is written by several tasks of one play, so no process of ours lives as long as
the run does. But when the play runs on this machine, its ``ansible-playbook`` is an ancestor of
every module process. Processes are compared within one boot and one PID namespace only; from
another machine or container nothing can be said of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

_PROGRAMS = ("ansible", "ansible-playbook", "ansible-pull")


@dataclass(frozen=True)
class Process:
    """A process, told from a later one with the same number by its start (clock ticks since boot)."""

    boot: str
    namespace: str
    pid: int
    start: int


def running_play() -> Process | None:
    """The Ansible process that this module runs under, or None when it is not on this machine."""
    # A worker is a fork of the play's process and has the same name: the outermost of a row is the play.
    play, pid = None, os.getppid()
    while pid > 1:
        if _is_ansible(pid):
            play = pid
        elif play is not None:
            break
        pid = _status(pid)[0]
    here, start = _here(), 0 if play is None else _status(play)[1]
    return Process(*here, play, start) if here and play and start else None


def this_process() -> Process | None:
    """The process of this module: the owner of what does not outlast one task."""
    here, start = _here(), _status(os.getpid())[1]
    return Process(*here, os.getpid(), start) if here and start else None


def is_alive(process: Process) -> bool | None:
    """Whether it still runs; None when that cannot be known from here."""
    if (process.boot, process.namespace) != _here():
        return None
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # 0: hidden from this user (hidepid), so only its number is known, and that is in use.
    return _status(process.pid)[1] in (process.start, 0)


def _here() -> tuple[str, str] | None:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _is_ansible(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            arguments = file.read().split(b"\0")[:2]
    except OSError:
        return False
    return any(os.path.basename(os.fsdecode(argument)) in _PROGRAMS for argument in arguments)


def _status(pid: int) -> tuple[int, int]:
    """Parent and start of a process; zeros when it is not to be seen, start -1 when it has ended unnoticed."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in brackets, may hold anything: the fields are counted from its end.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0, 0
    return int(fields[1]), -1 if fields[0] == b"Z" else int(fields[19])
