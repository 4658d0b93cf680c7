# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Work in a process of its own, which is killed with SIGKILL, or whose file system fails, at a chosen moment.

The process runs as its own play, so that the repository's locks know when it is gone. Moments are counted in changes
of files, and in programs started, so that a seed finds the same one again; or they are a time.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError
from ansible_collections.holdfast.backup.plugins.module_utils._repository import owners
from ansible_collections.holdfast.backup.plugins.module_utils._repository.owners import Process
from ansible_collections.holdfast.backup.tests.modules import ModuleFailed

MARK = "HOLDFAST_TEST_RUN"
TALLY = "HOLDFAST_TALLY"
PROGRAMS = ("nbdcopy", "nbdkit", "qemu-nbd", "qemu-img", "qemu-io")

_CHANGING = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime", "os.link", "os.truncate", "shutil.rmtree"}
_WRITING = os.O_WRONLY | os.O_RDWR
_MAKING = {"os.mkdir", "os.rename", "os.link"}

Moment = Callable[[str, tuple[Any, ...]], None]


def is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event of Python is a step of work: a change of a file, a directory synced, a program started."""
    if event == "open":
        return isinstance(arguments[2], int) and bool(arguments[2] & (_WRITING | os.O_DIRECTORY))
    return event in _CHANGING or event == "subprocess.Popen"


def killed_at(step: int) -> Moment:
    """The process kills itself right before this step of its work; a program that it started last may live on."""
    left = [step]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if is_change(event, arguments):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return watch


def failing_at(step: int, error: int, root: Path, lasting: bool) -> Moment:
    """Changes below ``root`` fail with this error number: the one of this step, or all of them from there on."""
    left = [step]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if not is_change(event, arguments) or event == "subprocess.Popen":
            return
        path = str(arguments[0])
        grows = event in _MAKING or (event == "open" and bool(arguments[2] & _WRITING))
        if not path.startswith(f"{root}/") or (error == errno.ENOSPC and not grows):
            return
        left[0] -= 1
        if left[0] == -1 or (left[0] < 0 and lasting):
            raise OSError(error, os.strerror(error), path)

    return watch


class Child:
    """Work that is done in a process of its own. ``outcome`` is done, failed or killed; ``result`` what it returned.

    :param moment: an audit hook, which watches each step
    """

    def __init__(self, work: Callable[[], Any], moment: Moment | None = None) -> None:
        self.mark = str(uuid.uuid4())
        self.outcome = ""
        self.result: dict[str, Any] = {}
        self._answer = os.memfd_create("answer")
        self.pid = os.fork()
        if self.pid == 0:
            _work(work, moment, self._answer, self.mark)

    def kill(self, what: str, dice: random.Random, longest: float) -> str:
        """Kill a part of it at a random moment within ``longest`` seconds: itself, ``everything``, or a program."""
        if what in PROGRAMS:
            deadline = time.monotonic() + longest
            while not (chosen := self.processes(what)) and time.monotonic() < deadline and not self.has_ended():
                time.sleep(0.002)
            time.sleep(dice.uniform(0, 0.03))
        else:
            time.sleep(dice.uniform(0, longest))
        chosen = [] if what == "itself" else self.processes(what if what in PROGRAMS else "")
        for pid in chosen if what in PROGRAMS else [self.pid, *chosen]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return f"{what} {len(chosen)}"

    def processes(self, name: str = "") -> list[int]:
        """The programs that it has started, or those of them with that name."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_ours(pid, name)]

    def _is_ours(self, pid: int, name: str) -> bool:
        with contextlib.suppress(OSError):
            if name and Path(f"/proc/{pid}/comm").read_text().strip() != name:
                return False
            return f"{MARK}={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return False

    def has_ended(self) -> bool:
        """Whether it is at its end."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def end(self) -> str:
        """Wait for it; returns the outcome."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        with open(self._answer, "rb") as file:
            file.seek(0)
            answer = file.read()
        assert status in (0, -signal.SIGKILL), f"it ended with {status}: {answer.decode()}"
        self.outcome = "killed"
        if answer and status == 0:
            self.outcome, self.result = json.loads(answer)
        return self.outcome

    def gone(self, seconds: float = 20) -> None:
        """Wait until its programs have ended too.

        A server that is told to end while it starts may miss that, and of whom would remind it nobody is left.
        """
        deadline = time.monotonic() + seconds
        while left := self.processes():
            if time.monotonic() > deadline:
                servers = [*self.processes("qemu-nbd"), *self.processes("nbdkit")]
                assert set(left) <= set(servers), [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
                assert time.monotonic() < deadline + seconds, "they do not end"
                count("left behind: servers")
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
                time.sleep(0.5)
            time.sleep(0.01)


def count(what: str) -> None:
    """Note something for whoever wants to know how often it happened: a line in the file that is named for it."""
    path = os.environ.get(TALLY)
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{what}\n")


def _work(work: Callable[[], Any], moment: Moment | None, writer: int, mark: str) -> NoReturn:
    status = 1
    try:
        os.environ[MARK] = mark
        here = owners._here()
        assert here is not None
        play = Process(*here, os.getpid(), owners._status(os.getpid())[1])
        owners.running_play = lambda: play
        if moment is not None:
            sys.addaudithook(moment)
        try:
            answer = ["done", work()]
        except ModuleFailed as failure:
            answer = ["failed", failure.result]
        except BackupError as failure:
            answer = ["failed", {"msg": str(failure), "error_type": type(failure).__name__}]
        os.write(writer, json.dumps(answer).encode())
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the parent sees the status and a person the cause
        traceback.print_exc()
    finally:
        os._exit(status)
