# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: one disk that is kept open through lost connections, whatever the way to it.

Runs inside our nbdkit plugins, so it may load nothing but the standard library, and not OpenSSL (see vixdisklib.py).
"""

from __future__ import annotations

import bisect
import concurrent.futures
import ctypes
import itertools
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Iterator

from ansible_collections.holdfast.backup.plugins.module_utils._nbd.plugin_interface import DiskError, Status

SECTOR = 512
CHUNK = 64 << 10  # the finest grain of allocated areas, in bytes
LARGEST = 2 << 20  # hosts run out of memory with larger requests through vCenter
LONGEST_DELAY = 30.0  # seconds
KEEP_ALIVE = 30.0  # seconds; half of the read timeout that VMware recommends
VERBS = {"read": "Reading", "write": "Writing"}


def allocated(blocks: Sequence[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Cover [start, end) with (start, length, is allocated), from sorted allocated (start, length)."""
    position = start
    for index in range(max(0, bisect.bisect_right(blocks, (start, sys.maxsize)) - 1), len(blocks)):
        first, last = blocks[index][0], sum(blocks[index])
        if first >= end:
            break
        if first > position:
            yield position, first - position, False
            position = first
        if last > position:
            yield position, min(last, end) - position, True
            position = min(last, end)
    if position < end:
        yield position, end - position, False


class _ThreadState(threading.local):
    """Python's state of each thread that is not Python's own: nbdkit's and the library's.

    Python makes and frees it around every call from such a thread, which costs more than a small request.
    """

    def __init__(self) -> None:  # once in each thread
        ctypes.pythonapi.PyGILState_Ensure()

    def keep(self) -> None:
        """Keep it as long as the thread lives; to be called is enough."""


thread_state = _ThreadState()


class ReopeningDisk:
    """One disk, opened when first needed and again after each lost connection.

    Opening and closing run in one thread. After an error the handle is not used again.

    :param what: the disk, for messages
    :param depth: requests in flight
    :param retries: how often a request is repeated at most
    :param retry_delay: seconds before the first repetition, doubled for each further one
    """

    def __init__(self, status: Status, what: str, depth: int, retries: int, retry_delay: float) -> None:
        self.capacity = 0
        self._status = status
        self._name = what
        self._retries = retries
        self._retry_delay = retry_delay
        self._opener = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._done = {"read": 0, "write": 0}  # bytes

        self._state = threading.Condition()  # guards what follows and _done
        self._handle: Any = None
        self._lost = 0  # handles given up
        self._closing = False
        self._in_flight = 0
        self._most = 0  # in flight on this handle
        self._depth = depth
        self._hopeless: DiskError | None = None
        self._last_use = time.monotonic()

    # What each way to a disk does in its own manner

    def _open_now(self) -> None:
        """Set ``_handle`` and ``capacity``, or raise."""
        raise NotImplementedError

    def _close_now(self) -> None:
        """Close the handle, and set it to None."""
        raise NotImplementedError

    def _read_sector(self) -> None:
        """Read the first sector. Its failure will be found, and answered, by the next request."""
        raise NotImplementedError

    # Opening and closing

    def open(self) -> None:
        """Open the disk if it is not open."""
        self._enter()
        self._leave()

    def close(self) -> None:
        """Close the disk for good. Durable is what the client has flushed."""
        with self._state:
            self._state.wait_for(lambda: self._in_flight == 0)
            if self._handle is not None:
                self._opener.submit(self._close_now).result()
        self._opener.shutdown()
        self._status.event(
            "closed", reopened=self._lost, bytes_read=self._done["read"], bytes_written=self._done["write"]
        )

    def _what(self, verb: str) -> str:
        return f"{verb} {self._name}"

    def _check_capacity(self, capacity: int, expected: int | None) -> int:
        """The capacity, if it is the expected one."""
        if expected not in (None, capacity):
            raise DiskError(
                "capacity",
                f"{self._what('The disk')} has {capacity} bytes instead of {expected}.",
                hint="It was resized or replaced meanwhile; run again.",
            )
        return capacity

    # Requests

    def _request(self, kind: str, attempt: Callable[[], DiskError | None], length: int) -> None:
        """One request, repeated on a new handle after errors that may pass."""
        thread_state.keep()
        for failures in itertools.count(1):
            generation = self._enter()
            error: DiskError | None = None
            try:
                error = attempt()
            finally:
                self._leave(kind, 0 if error else length)
            if error is None:
                return
            if self._is_final(error, failures):
                raise error
            self._give_up(generation, error, failures)

    def keep_alive(self) -> None:
        """Read a sector if the handle has been idle for so long that the host may drop it."""
        with self._state:
            idle = time.monotonic() - self._last_use >= KEEP_ALIVE
            if self._handle is None or self._closing or self._in_flight or not idle:
                return
            self._in_flight += 1
        try:
            self._read_sector()
        finally:
            self._leave()

    # Places in flight, and errors worth repeating

    def _enter(self) -> int:
        """Wait for a free place, open the disk if need be; returns the handle's generation."""
        with self._state:
            while self._closing or self._in_flight >= self._depth:
                self._state.wait()
            if self._handle is None:
                self._open_patiently()
            self._in_flight += 1
            self._most = max(self._most, self._in_flight)
            return self._lost

    def _leave(self, kind: str = "read", done: int = 0) -> None:
        with self._state:
            self._done[kind] += done
            self._in_flight -= 1
            self._last_use = time.monotonic()
            if self._closing:
                self._state.notify_all()
            else:
                self._state.notify()

    def _open_patiently(self) -> None:
        """Open, and again after errors that may pass. When it cannot be done, nobody tries once more."""
        if self._hopeless is not None:
            raise self._hopeless
        for failures in itertools.count(1):
            try:
                self._opener.submit(self._open_now).result()
                return
            except DiskError as error:
                if self._is_final(error, failures):
                    self._hopeless = error
                    raise
                self._pause(error, failures)

    def _give_up(self, generation: int, error: DiskError, failures: int) -> None:
        """Close the handle of that generation and pause, unless another request has done so."""
        with self._state:
            if generation != self._lost:
                return
            self._lost += 1
            self._closing = True
            try:
                self._state.wait_for(lambda: self._in_flight == 0)
                self._opener.submit(self._close_now).result()
                if error.out_of_memory:
                    self._depth = max(1, min(self._depth, self._most) // 2)
                    self._status.event("depth", depth=self._depth)
                self._most = 0
                self._pause(error, failures)
            finally:  # whatever went wrong, others do not wait for ever
                self._closing = False
                self._state.notify_all()

    def _is_final(self, error: DiskError, failures: int) -> bool:
        return failures > min(error.repeats, self._retries)

    def _pause(self, error: DiskError, failures: int) -> None:
        delay = min(LONGEST_DELAY, self._retry_delay * 2 ** (failures - 1))
        self._status.event("warning", **error.as_dict(), retry_in=delay)
        time.sleep(delay)
