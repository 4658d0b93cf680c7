# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: one disk behind libvixDiskLib, kept open through lost connections."""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Iterator
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._nbd.plugin_interface import DiskError, Status
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.reopening import (
    CHUNK,
    LARGEST,
    SECTOR,
    VERBS,
    ReopeningDisk,
    allocated,
    thread_state,
)
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.vddk_interface import Parameters, VddkError
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.vddk_library import (
    ASYNC,
    COMPLETION,
    OPEN_READ_ONLY,
    Block,
    BlockList,
    Info,
    Library,
)

WINDOW = 524288 * CHUNK  # the largest question about allocated blocks, in bytes; CHUNK is the finest


class Disk(ReopeningDisk):
    """One disk, opened when first needed and again after each lost connection.

    The library's rules: Open, Close and QueryAllocatedBlocks run in one thread; requests of one handle
    are issued one at a time and finish in any order; after an error the handle is not used again.
    """

    def __init__(self, library: Library, parameters: Parameters, status: Status) -> None:
        name = f"{parameters.path} of {parameters.owner} on {parameters.server}"
        super().__init__(status, name, parameters.depth, parameters.retries, parameters.retry_delay)
        self._library = library
        self._parameters = parameters
        self._connection: Any = None
        self._issue = threading.Lock()
        self._completion = COMPLETION(self._complete)
        self._waiting: dict[int, list[Any]] = {}  # number of a request: [lock, result]
        self._numbers = itertools.count(1)

        self._windows: dict[int, list[tuple[int, int]]] = {}
        self._mapping = threading.Lock()
        self.has_extents = parameters.extents and parameters.read_only
        if self.has_extents and not hasattr(library, "QueryAllocatedBlocks"):
            self._no_extents(VddkError("extents", f"{library.path} cannot tell which blocks are allocated."))

    # Opening and closing

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
        except DiskError:
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
        return self._check_capacity(capacity, self._parameters.capacity)

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
        address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
        self._transfer("write", self._library.WriteAsync, address, offset, len(data))

    def _transfer(self, kind: str, function: Any, address: int, offset: int, length: int) -> None:
        for start in range(0, length, LARGEST):
            self._request_at(kind, function, address + start, offset + start, min(LARGEST, length - start))

    def _request_at(self, kind: str, function: Any, address: int, offset: int, length: int) -> None:
        def attempt() -> VddkError | None:
            result = self._exchange(function, address, offset, length)
            what = f"{self._what(VERBS[kind])} at {offset}, {length} bytes,"
            return self._library.error(kind, what, result) if result else None

        self._request(kind, attempt, length)

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
        thread_state.keep()
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

    def _read_sector(self) -> None:
        sector = ctypes.create_string_buffer(SECTOR)
        self._exchange(self._library.ReadAsync, ctypes.addressof(sector), 0, SECTOR)

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
