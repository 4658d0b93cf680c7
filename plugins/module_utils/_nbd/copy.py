# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: one nbdcopy with its two servers, from its start to the end of all three.

nbdcopy starts the servers. They end when it ends, and it ends when this process does, whatever ends it.
What passes is known from the log of nbdkit's requests, which gives progress and the bytes really read.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, cast

from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError, CopyFailed, NoSpace
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas

_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 60.0  # seconds for the servers to end after nbdcopy; a library may have connections to close
_PAUSE = 0.02  # seconds in which lines of the log gather: to be woken by each of them would cost more than to read it
_REQUEST = re.compile(rb" (Read|Write|Zero|Trim|Extents) id=\d+ offset=0x([0-9a-f]+) count=0x([0-9a-f]+)")
_FAILED = re.compile(r"^nbdcopy: (\w+) at offset (\d+) failed: (.*)$", re.MULTILINE)
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
_AFTERMATH = (
    "Disconnect client",
    "Broken pipe",
    "Connection reset by peer",
    "Transport endpoint is not connected",
    "nbd_connect_systemd_socket_activation",
    "Assertion `sock >= 0' failed",
)


@dataclass
class Tally:
    """What nbdkit was asked until now, in bytes; ``position`` is how far into the disk the copy has come."""

    read: int = 0
    written: int = 0
    position: int = 0
    _rest: bytes = b""

    def feed(self, data: bytes) -> None:
        """Take the next piece of the request log."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            request = _REQUEST.search(line)
            if not request:
                continue
            kind, offset, count = request[1], int(request[2], 16), int(request[3], 16)
            if kind == b"Read":
                self.read += count
            elif kind == b"Write":
                self.written += count
            self.position = max(self.position, offset if kind == b"Extents" else offset + count)


@dataclass(frozen=True)
class Outcome:
    """How a copy ended.

    :param error: what went wrong, or None
    :param orderly: the image that a failed copy leaves is sound as far as it goes: its server was seen to close it,
        and no write into it failed
    :param unwritable: offsets at which the target had an error
    :param said: all messages
    """

    tally: Tally
    seconds: float
    error: BackupError | None = None
    orderly: bool = True
    unwritable: Sequence[int] = ()
    said: str = ""


@dataclass
class RequestLog:
    """The pipe through which nbdkit tells of its requests; give ``path`` to nbdkit's log filter."""

    reader: int = field(init=False)
    writer: int = field(init=False)

    def __post_init__(self) -> None:
        self.reader, writer = os.pipe()
        self.writer = inheritable(writer)

    @property
    def path(self) -> str:
        """Name of the writing end in the process that inherits it."""
        return f"/dev/fd/{self.writer}"

    def close(self) -> None:
        """Close what is still open."""
        for name in ("reader", "writer"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)


def inheritable(descriptor: int) -> int:
    """Move a descriptor out of the low numbers, which socket activation takes for itself."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64)
    os.close(descriptor)
    return moved


def run(
    command: Sequence[str],
    log: RequestLog,
    descriptors: Sequence[int] = (),
    on_progress: Callable[[Tally], None] = lambda tally: None,
    check: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run one copy to its end; a failure is told in the outcome.

    :param command: of :func:`servers.nbdcopy`
    :param log: where the nbdkit in the command writes its log; closed on return
    :param descriptors: further descriptors that the servers inherit
    :param on_progress: called at least twice a second
    :param check: called as often; what it raises ends the copy and becomes its error
    """
    # Servers that nbdcopy leaves behind become our children, so that we learn how they ended.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    started = time.monotonic()
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        pass_fds=(log.writer, *descriptors),
        env={**os.environ, "LC_ALL": "C"},
    )
    complaints = cast(IO[bytes], process.stderr)  # for there is a pipe
    os.close(log.writer)
    log.writer = -1
    tally, error, messages = Tally(), None, bytearray()
    try:
        _follow(process, complaints, log, tally, messages, on_progress, check)
    except BackupError as stop:
        error = stop
    finally:
        process.terminate()
        ended = {"nbdcopy": process.wait(), **_reap(process.pid)}
        log.close()
        complaints.close()
    text = messages.decode(errors="replace")
    if ended["nbdcopy"] != 0 and error is None:
        error = _failure(ended, text)
    failed = list(_FAILED.finditer(text))
    orderly = ended.get("qemu-nbd") == 0 and all(match[1] == "read" for match in failed)
    # A server that was lost in the middle says something else.
    unwritable = [int(match[2]) for match in failed if match[1] != "read" and "Input/output error" in match[3]]
    return Outcome(tally, time.monotonic() - started, error, error is None or orderly, unwritable, text)


def allocated(server: Sequence[str], descriptors: Sequence[int] = ()) -> list[areas.Area]:
    """The areas that a server does not call zero.

    :raises CopyFailed: the server cannot be asked
    """
    result = subprocess.run(
        ["nbdinfo", "--map", "--json", "--", "[", *server, "]"], capture_output=True, pass_fds=descriptors, check=False
    )
    if result.returncode:
        raise _failure({"nbdinfo": result.returncode}, result.stderr.decode(errors="replace"))
    extents = json.loads(result.stdout)
    size = sum(extent["length"] for extent in extents)
    return areas.normalise([(part["offset"], part["length"]) for part in extents if not part["type"] & 2], size)


def _follow(
    process: subprocess.Popen[bytes],
    complaints: IO[bytes],
    log: RequestLog,
    tally: Tally,
    messages: bytearray,
    on_progress: Callable[[Tally], None],
    check: Callable[[], None],
) -> None:
    """Take in what the three processes say until the last of them is gone."""
    with selectors.DefaultSelector() as selector:
        selector.register(log.reader, selectors.EVENT_READ, tally.feed)
        selector.register(complaints, selectors.EVENT_READ, messages.extend)
        last_sign = ended = 0.0
        while selector.get_map() and not (ended and time.monotonic() > ended + _PATIENCE):
            for key, _events in selector.select(timeout=0.5):
                data = os.read(key.fd, 1 << 16)
                if data:
                    key.data(data)
                else:
                    selector.unregister(key.fileobj)
            time.sleep(_PAUSE)
            if time.monotonic() - last_sign >= 0.5:
                last_sign = time.monotonic()
                on_progress(tally)
                check()
                if ended and last_sign > ended + 1:
                    _remind(process.pid, signal.SIGTERM)
                if process.poll() is not None:
                    ended = ended or last_sign
        on_progress(tally)


def _reap(group: int) -> dict[str, int]:
    """Wait for the processes that nbdcopy left, by force in the end: exit status by name, -N for a signal."""
    ended: dict[str, int] = {}
    started = reminded = time.monotonic()
    while True:
        try:
            found = os.waitid(os.P_PGID, group, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:
            return ended
        if found:
            with open(f"/proc/{found.si_pid}/comm", encoding="utf-8") as stream:
                name = stream.read().strip()
            ended[name] = os.waitstatus_to_exitcode(os.waitpid(found.si_pid, 0)[1])
            continue
        if time.monotonic() - reminded > 1:
            reminded = time.monotonic()
            _remind(group, signal.SIGTERM if reminded - started < _PATIENCE else signal.SIGKILL)
        time.sleep(0.02)


def _remind(group: int, how: signal.Signals) -> None:
    """Have the servers end: a killed nbdcopy told them nothing, and who is told while it starts forgets it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, how)


def _failure(ended: dict[str, int], messages: str) -> BackupError:
    """The error that the exit states and the messages of a failed copy tell of."""
    lines = [line.strip().rstrip(".") for line in messages.splitlines() if line.strip()]
    # The end of one process makes the others complain; what is left is why it ended.
    causes = [line for line in lines if not any(text in line for text in _AFTERMATH)]
    crashed = [f"{name} was ended by {signal.Signals(-status).name}" for name, status in ended.items() if status < 0]
    killed = [text for text in crashed if "SIGKILL" in text]  # never by us
    cause = "; ".join(dict.fromkeys((killed or causes or crashed or lines)[:4])) or "there is no message"
    kind: type[BackupError] = CopyFailed
    if any(text in messages for text in _FULL):
        kind, next_step = NoSpace, "Make room where it is written to, then run it again."
    elif killed:
        next_step = "Look in the system's journal, for the out-of-memory killer first; run it again."
    else:
        next_step = "Remove the cause, then run it again."
    return kind(f"The copy failed: {cause}.", next_step, messages=lines[-20:])
