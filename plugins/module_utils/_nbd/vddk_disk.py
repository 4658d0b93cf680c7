# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: one disk behind libvixDiskLib, kept open through lost connections."""

from __future__ import annotations

import bisect
import concurrent.futures
import ctypes
import itertools
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Iterator

from ansible_collections.holdfast.backup.plugins.module_utils._nbd.vddk_interface import (
    OUT_OF_MEMORY,
    Parameters,
    Status,
    VddkError,
)
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.vddk_library import (
    ASYNC,
    COMPLETION,
    OPEN_READ_ONLY,
    SECTOR,
    Block,
    BlockList,
    Info,
    Library,
)

CHUNK = 64 << 10  # the finest question about allocated blocks, in bytes
WINDOW = 524288 * CHUNK  # the largest one
LARGEST = 2 << 20  # hosts run out of memory with larger requests through vCenter
LONGEST_DELAY = 30.0  # seconds
KEEP_ALIVE = 30.0  # seconds; half of the read timeout that the library is given
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


_thread_state = _ThreadState()


class Disk:
    """One disk, opened when first needed and again after each lost connection.

    The library's rules: Open, Close and QueryAllocatedBlocks run in one thread; requests of one handle
    are issued one at a time and finish in any order; after an error the handle is not used again.
    """

    def __init__(self, library: Library, parameters: Parameters, status: Status) -> None:
        self.capacity = 0
        self._library = library
        self._parameters = parameters
        self._status = status
        self._opener = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._issue = threading.Lock()
        self._completion = COMPLETION(self._complete)
        self._waiting: dict[int, list[Any]] = {}  # number of a request: [lock, result]
        self._numbers = itertools.count(1)
        self._done = {"read": 0, "write": 0}  # bytes

        self._state = threading.Condition()  # guards what follows and _done
        self._connection: Any = None
        self._handle: Any = None
        self._lost = 0  # handles given up
        self._closing = False
        self._in_flight = 0
        self._most = 0  # in flight on this handle
        self._depth = parameters.depth
        self._hopeless: VddkError | None = None
        self._last_use = time.monotonic()

        self._windows: dict[int, list[tuple[int, int]]] = {}
        self._mapping = threading.Lock()
        self.has_extents = parameters.extents and parameters.read_only
        if self.has_extents and not hasattr(library, "QueryAllocatedBlocks"):
            self._no_extents(VddkError("extents", f"{library.path} cannot tell which blocks are allocated."))

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
        each = self._parameters
        return f"{verb} {each.path} of {each.owner} on {each.server}"

    def _open_now(self) -> None:
        library, parameters = self._library, self._parameters
        connection, handle = ctypes.c_void_p(), ctypes.c_void_p()
        # An FCD and its snapshot are named in the parameters, and nowhere else.
        in_vm = parameters.vm is not None
        with library.connect_params(parameters) as params:
            snapshot = parameters.snapshot.encode() if parameters.snapshot and in_vm else None
            read_only = b"\1" if parameters.read_only else b"\0"
            result = library.ConnectEx(params, read_only, snapshot, parameters.transports.encode(), connection)
        library.check("connect", f"Connecting to {parameters.server}", result)
        self._connection = connection
        try:
            flags = OPEN_READ_ONLY if parameters.read_only else 0
            path = parameters.path.encode() if in_vm else b""
            library.check("open", self._what("Opening"), library.Open(connection, path, flags, handle))
            self._handle = handle
            self.capacity = self._ask_capacity(handle)
        except VddkError:
            self._close_now()
            raise
        self._status.event(
            "opened",
            transport=library.GetTransportMode(handle).decode(),
            version=".".join(map(str, library.version)),
            capacity=self.capacity,
            read_only=parameters.read_only,
            generation=self._lost + 1,
        )

    def _ask_capacity(self, handle: Any) -> int:
        info = ctypes.POINTER(Info)()
        self._library.check("open", self._what("Asking about"), self._library.GetInfo(handle, info))
        capacity: int = info.contents.capacity * SECTOR
        self._library.FreeInfo(info)
        if self._parameters.capacity not in (None, capacity):
            raise VddkError(
                "capacity",
                f"{self._what('The disk')} has {capacity} bytes instead of {self._parameters.capacity}.",
                hint="It was resized or replaced meanwhile; run again.",
            )
        return capacity

    def _close_now(self) -> None:
        handle, connection = self._handle, self._connection
        self._handle = self._connection = None
        if handle is not None:
            self._library.Wait(handle)
            self._library.Close(handle)
        self._library.Disconnect(connection)

    # Requests

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer from the disk."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        self._transfer("read", self._library.ReadAsync, address, offset, len(buffer))

    def write(self, data: bytes, offset: int) -> None:
        """Write the data to the disk."""
        address = ctypes.cast(data, ctypes.c_void_p).value or 0
        self._transfer("write", self._library.WriteAsync, address, offset, len(data))

    def _transfer(self, kind: str, function: Any, address: int, offset: int, length: int) -> None:
        for start in range(0, length, LARGEST):
            self._request(kind, function, address + start, offset + start, min(LARGEST, length - start))

    def _request(self, kind: str, function: Any, address: int, offset: int, length: int) -> None:
        """One request, repeated on a new handle after errors that may pass."""
        _thread_state.keep()
        for failures in itertools.count(1):
            generation = self._enter()
            result = self._exchange(function, address, offset, length)
            self._leave(kind, 0 if result else length)
            if result == 0:
                return
            error = self._library.error(kind, f"{self._what(VERBS[kind])} at {offset}, {length} bytes,", result)
            if self._is_final(error, failures):
                raise error
            self._give_up(generation, error, failures)

    def _exchange(self, function: Any, address: int, offset: int, length: int) -> int:
        """Issue one request and wait for it; the buffer belongs to the library until then."""
        number = next(self._numbers)
        lock = threading.Lock()
        lock.acquire()
        entry = self._waiting[number] = [lock, 0]
        with self._issue:
            result = function(self._handle, offset // SECTOR, length // SECTOR, address, self._completion, number)
        if result & 0xFFFF != ASYNC:
            self._waiting.pop(number, None)
            return result or 1  # success without a completion to come is no success
        lock.acquire()
        return entry[1]

    def _complete(self, number: int, result: int) -> None:
        """Called by the library, in any of its threads or inside the call that issued the request."""
        _thread_state.keep()
        entry = self._waiting.pop(number)
        entry[1] = result
        entry[0].release()

    def flush(self) -> None:
        """Wait for all requests and make them durable. A failed flush is not repeated: what a new handle
        flushes is not what the old one had."""
        self._enter()
        with self._issue:
            result = self._library.Wait(self._handle) or self._library.Flush(self._handle)
        self._leave()
        if result:
            raise self._library.error("flush", self._what("Flushing"), result)

    def keep_alive(self) -> None:
        """Read a sector if the handle has been idle for so long that the host may drop it."""
        with self._state:
            idle = time.monotonic() - self._last_use >= KEEP_ALIVE
            if self._handle is None or self._closing or self._in_flight or not idle:
                return
            self._in_flight += 1
        sector = ctypes.create_string_buffer(SECTOR)
        # Its failure will be found, and answered, by the next request.
        self._exchange(self._library.ReadAsync, ctypes.addressof(sector), 0, SECTOR)
        self._leave()

    # Places in flight, and errors worth repeating

    def _enter(self) -> int:
        """Wait for a free place, open the disk if need be; returns the handle's generation."""
        with self._state:
            self._state.wait_for(lambda: not self._closing and self._in_flight < self._depth)
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
            except VddkError as error:
                if self._is_final(error, failures):
                    self._hopeless = error
                    raise
                self._pause(error, failures)

    def _give_up(self, generation: int, error: VddkError, failures: int) -> None:
        """Close the handle of that generation and pause, unless another request has done so."""
        with self._state:
            if generation != self._lost:
                return
            self._lost += 1
            self._closing = True
            self._state.wait_for(lambda: self._in_flight == 0)
            self._opener.submit(self._close_now).result()
            if error.code == OUT_OF_MEMORY:
                self._depth = max(1, min(self._depth, self._most) // 2)
                self._status.event("depth", depth=self._depth)
            self._most = 0
            self._pause(error, failures)
            self._closing = False
            self._state.notify_all()

    def _is_final(self, error: VddkError, failures: int) -> bool:
        return failures > min(error.repeats, self._parameters.retries)

    def _pause(self, error: VddkError, failures: int) -> None:
        delay = min(LONGEST_DELAY, self._parameters.retry_delay * 2 ** (failures - 1))
        self._status.event("warning", **error.as_dict(), retry_in=delay)
        time.sleep(delay)

    # Allocated blocks

    def extents(self, offset: int, count: int) -> Iterator[tuple[int, int, bool]]:
        """Cover the range with (start, length, is allocated)."""
        end = offset + count
        while offset < end:
            index = offset // WINDOW
            until = min(end, (index + 1) * WINDOW)
            yield from allocated(self._window(index), offset, until)
            offset = until

    def _window(self, index: int) -> list[tuple[int, int]]:
        """The allocated (start, length) of one window, in bytes; only a few windows are remembered."""
        with self._mapping:
            if index not in self._windows:
                while len(self._windows) > 3:
                    self._windows.pop(next(iter(self._windows)))
                self._windows[index] = self._ask_window(index)
            return self._windows[index]

    def _ask_window(self, index: int) -> list[tuple[int, int]]:
        start = index * WINDOW
        whole = min(start + WINDOW, self.capacity - self.capacity % CHUNK)
        blocks = [(start, whole - start)]
        if self.has_extents and whole > start:
            self.open()
            try:
                blocks = self._opener.submit(self._ask_blocks, start, whole - start).result()
            except VddkError as error:
                self._no_extents(error)
        if whole < min(start + WINDOW, self.capacity):
            # The last, incomplete chunk cannot be asked about.
            blocks.append((whole, self.capacity - whole))
        return blocks

    def _no_extents(self, error: VddkError) -> None:
        self.has_extents = False
        self._status.event("warning", **error.as_dict())

    def _ask_blocks(self, start: int, length: int) -> list[tuple[int, int]]:
        answer = ctypes.POINTER(BlockList)()
        chunk = CHUNK // SECTOR
        if self._handle is None:
            raise VddkError("extents", "The connection was lost.")
        result = self._library.QueryAllocatedBlocks(self._handle, start // SECTOR, length // SECTOR, chunk, answer)
        self._library.check("extents", self._what("Asking for the allocated blocks of"), result)
        count = answer.contents.count
        place = ctypes.addressof(answer.contents) + BlockList.blocks.offset
        blocks = [(each.offset * SECTOR, each.length * SECTOR) for each in (Block * count).from_address(place)]
        self._library.FreeBlockList(answer)
        return blocks
