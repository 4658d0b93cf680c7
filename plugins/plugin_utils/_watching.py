# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's side of a module that works for long: shows how far it is, and ends it when the playbook ends.

The module runs as a background job of Ansible's own kind, so a connection that drops for a moment does no harm.
Between two looks at it only one short shell command runs. Each look is also the sign of life without which the
module stops (see module_utils/_nbd/progress.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import time
from collections.abc import Iterator
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import PID, PROGRESS, WATCHED

LONGEST = 30 * 24 * 3600  # seconds; the module keeps its own timeout
PAUSE = 2.0  # seconds between two looks, in the long run
SILENCE = 8.0  # seconds after which the next line of a disk is due
LOST = 100.0  # seconds without a connection, or without a sign of the module's process, after which it counts as gone

_JOB = "-- job --"
_STAGES = {
    "copy": "",
    "clone": "copied ",
    "hash": "hashed ",
    "verify": "compared ",
    "compare": "compared ",
    "audit": "audited ",
}
_BRIEF = ("audit", "clone", "hash")  # stages whose end is not worth a line
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


class Meter:
    """Turns the events of one disk into lines for people. Times are the proxy's, but for when lines are due."""

    def __init__(self, now: float) -> None:
        self._shown = now
        self._base: dict[str, Any] = {}
        self._event: dict[str, Any] = {}

    def feed(self, event: dict[str, Any]) -> str | None:
        """Take the next event; returns a line when something is done."""
        if event["stage"] != self._event.get("stage"):
            self._base = event
        self._event = event
        return self._line() if event["done"] >= event["total"] and event["stage"] not in _BRIEF else None

    def due(self, now: float) -> str | None:
        """A line about the last event, when it is time for one."""
        if now - self._shown < SILENCE or self._event["done"] >= self._event["total"]:
            return None
        self._shown = now
        return self._line()

    def _line(self) -> str:
        event, base = self._event, self._base
        done, total = event["done"], event["total"]
        text = (
            f"{event['disk']}: {100 * done // max(total, 1)} % {_STAGES.get(event['stage'], '')}{progress(done, total)}"
        )
        seconds = event["time"] - base["time"]
        gained = done - base["done"]
        if seconds > 0:
            text += f", {amount((event['passed'] - base['passed'] or gained) / seconds)}/s"
        if done < total:
            text += f", {clock((total - done) * seconds / gained)} left" if gained > 0 else ", waiting"
        self._base = event
        return text


def amount(size: float) -> str:
    """A number of bytes, for people."""
    return f"{size / _scale(size)[0]:.{_scale(size)[1]}f} {_scale(size)[2]}"


def progress(done: int, total: int) -> str:
    """Two numbers of bytes in the unit of the larger one."""
    factor, digits, unit = _scale(total)
    return f"{done / factor:.{digits}f} of {total / factor:.{digits}f} {unit}"


def clock(seconds: float) -> str:
    """A time as h:mm:ss, or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _scale(size: float) -> tuple[int, int, str]:
    """Factor, digits after the point, and name of the unit that suits a number of bytes."""
    power = min(len(_UNITS) - 1, max(0, int(size).bit_length() - 1) // 10)
    return 1024**power, 1 if power > 2 else 0, _UNITS[power]


class _Interrupted(BaseException):
    """A signal came; its number is the argument."""


class WatchedModule(ActionBase):
    """Runs a module that has the option progress_dir: as it is in check mode or when the task itself says async, else
    watched. Its lines begin with the module's name."""

    NAME = ""

    _supports_async = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ansible's entry."""
        result = super().run(tmp, task_vars)
        del tmp
        if self._task.check_mode or self._task.async_val or not self._is_long():
            result.update(self._execute_module(task_vars=task_vars, wrap_async=bool(self._task.async_val)))
            return result
        directory = self._shell(f'mktemp -d "${{TMPDIR:-/tmp}}/{self.NAME}-XXXXXXXX"').strip()
        with self._removed_at_the_end(directory):
            self._shell(f"touch {shlex.quote(self._join(directory, WATCHED))}")
            job = self._start(directory, task_vars)
            if "ansible_job_id" in job:
                self._watch(directory, job["results_file"])
                job = self._collect(job["ansible_job_id"], job["results_file"], task_vars)
            result.update(job)
        return result

    def _is_long(self) -> bool:
        """Whether this task may take long enough to be watched."""
        return True

    @property
    def _no_result(self) -> str:
        return (
            f"The process of {self.NAME} has ended without a result. "
            "Look in the journal of the proxy, for the out-of-memory killer first; run it again."
        )

    @contextlib.contextmanager
    def _removed_at_the_end(self, directory: str) -> Iterator[None]:
        """Remove the directory, which makes the module stop if it still runs; also when Ansible is interrupted.

        Ansible's workers die of a signal without unwinding, so for this long the signals are ours.
        """

        def interrupt(number: int, frame: Any) -> None:
            ignore()  # Ansible sends a second one at once
            raise _Interrupted(number)

        def ignore() -> None:
            for each in before:
                signal.signal(each, signal.SIG_IGN)

        before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
        for each in before:
            signal.signal(each, interrupt)
        try:
            yield
        except _Interrupted as interrupted:
            number = interrupted.args[0]
        else:
            number = None
        finally:
            ignore()
            self._low_level_execute_command(f"rm -rf {shlex.quote(directory)}")
            for each, handler in before.items():
                signal.signal(each, handler)
        if number is not None:
            os.kill(os.getpid(), number)

    def _start(self, directory: str, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        arguments = {**self._task.args, "progress_dir": directory}
        self._task.async_val = LONGEST
        try:
            return self._execute_module(module_args=arguments, task_vars=task_vars, wrap_async=True)
        finally:
            self._task.async_val = 0

    def _watch(self, directory: str, results_file: str) -> None:
        """Show the progress until the job has its result."""
        meters: dict[str, Meter] = {}
        offset, pause, alive = 0, 0.25, time.monotonic()
        while True:
            text, finished, running = self._look(directory, results_file, offset)
            now = time.monotonic()
            whole = text[: text.rfind("\n") + 1]
            offset += len(whole.encode())
            for event in map(json.loads, whole.splitlines()):
                self._show(meters.setdefault(event["disk"], Meter(now)).feed(event))
            for meter in meters.values():
                self._show(meter.due(now))
            if finished:
                return
            if running:
                alive = now
            elif now - alive > LOST:
                raise AnsibleActionFail(self._no_result)
            time.sleep(pause)
            pause = min(PAUSE, pause * 1.5)

    def _look(self, directory: str, results_file: str, offset: int) -> tuple[str, bool, bool]:
        """One look: what is new in the progress, whether the job has a result, whether the module runs."""
        watched, progress_file, pid = (shlex.quote(self._join(directory, name)) for name in (WATCHED, PROGRESS, PID))
        command = (
            f"touch {watched}; tail -c +{offset + 1} {progress_file} 2>/dev/null; echo {shlex.quote(_JOB)}; "
            f"head -c 10 {shlex.quote(results_file)}; echo; kill -0 $(cat {pid}) 2>/dev/null && echo running; true"
        )
        deadline = time.monotonic() + LOST
        while True:
            try:
                text, _separator, job = self._shell(command).partition(f"{_JOB}\n")
            except AnsibleConnectionFailure:
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE)
            else:
                # Until it has a result, Ansible's job file begins with "started".
                return text, not job.startswith('{"started"'), job.endswith("running\n")

    def _collect(self, job: str, results_file: str, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """The result of the finished job, whose files are removed."""
        options = {"jid": job, "_async_dir": os.path.dirname(results_file)}

        def ask(mode: str) -> dict[str, Any]:
            return self._execute_module("ansible.legacy.async_status", {**options, "mode": mode}, task_vars=task_vars)

        result = ask("status")
        ask("cleanup")
        if result.get("failed") and "cmd" in result:  # what Ansible says when the module said nothing
            said = result.get("stderr") or ""
            result = {"failed": True, "msg": self._no_result, "error_type": "CopyFailed", "module_stderr": said}
        for name in ("started", "finished", "ansible_job_id", "results_file"):
            result.pop(name, None)
        return result

    def _shell(self, command: str) -> str:
        result = self._low_level_execute_command(command)
        if result["rc"] != 0:
            raise AnsibleActionFail(f"A command on the proxy failed: {result['stderr'] or result['stdout']}")
        return result["stdout"]

    def _join(self, *parts: str) -> str:
        return self._connection._shell.join_path(*parts)

    def _show(self, line: str | None) -> None:
        if line:
            self._display.display(f"{self.NAME} {line}")
