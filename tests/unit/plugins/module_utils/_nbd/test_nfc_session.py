# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A session with a host that says what a script says: what the lab's host, which keeps to the protocol, never says."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from unittest.mock import Mock

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import nfc_disk, nfc_session, reopening
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_fastlz import FastLZ
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_interface import NfcError, Parameters, Ticket
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_wire import PlainWire
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.plugin_interface import Status
from ansible_collections.holdfast.backup.tests.lab.client import BUILD

CONTENT = random.Random(1).randbytes(1 << 20)
HANDLE = 77


class Host:
    """The other end of a socket pair. ``on_io`` answers requests; the rest is done in an orderly way."""

    def __init__(self, on_io: Callable[[Host, int, bytes], None], refuse: Callable[[int], bool] = lambda size: False):
        self.ours, self.theirs = socket.socketpair()
        self.on_io = on_io
        self.refuse = refuse
        self.refuse_close = False
        self.seen: list[int] = []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.ours.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def classic(self, kind: int, *numbers: int) -> None:
        self.ours.sendall(struct.pack(f"<I{len(numbers)}I", kind, *numbers).ljust(264, b"\0"))

    def answer(self, kind: int, number: int, payload: bytes, extra: bytes = b"") -> None:
        self.ours.sendall(struct.pack("<IIII", 0xA100DA7A, kind, len(payload), number) + payload + extra)

    def fragment(self, number: int, offset: int, total: int, start: int, length: int, /, **other: int) -> None:
        fields = {"operation": 1, "offset": offset, "total": total, "start": start, "length": length, "extra": length}
        fields.update(other)
        payload = struct.pack("<QQQIIIII", 0, *fields.values(), 0)
        self.answer(7, number, payload, CONTENT[offset + start :][: fields["extra"]])

    def run(self) -> None:
        try:
            for kind in (43, 33):
                assert struct.unpack_from("<I", self.take(264))[0] == kind
            self.classic(36, 0, 0, 0, 1)
            assert self.take(264)[:8] == struct.pack("<II", 51, 11)
            self.classic(51, 11)
            self.take(264 + 11 + 264 + 264)
            self.classic(52)
            while True:
                _magic, kind, size, number = struct.unpack("<IIII", self.take(16))
                self.seen.append(kind)
                payload = self.take(size)
                if kind == 2 and self.refuse(struct.unpack_from("<I", payload, 4)[0]):
                    self.answer(1, number, struct.pack("<I", 3))
                elif kind == 2:
                    self.answer(2, number, bytes(16))
                elif kind == 4:
                    self.take(struct.unpack_from("<I", payload)[0])
                    reply = bytearray(60)
                    struct.pack_into("<Q", reply, 8, HANDLE)
                    struct.pack_into("<QI", reply, 28, len(CONTENT), 512)
                    self.answer(4, number, bytes(reply))
                elif kind == 5 and self.refuse_close:
                    self.answer(1, number, struct.pack("<I", 7))
                elif kind == 7:
                    self.on_io(self, number, payload)
                else:
                    self.answer(kind, number, bytes(4))
                if kind == 3:
                    self.seen.append(-struct.unpack_from("<I", self.take(264))[0])
        except (EOFError, OSError):
            self.ours.close()


def request(payload: bytes) -> tuple[int, int]:
    return struct.unpack_from("<QI", payload, 16)


def in_order(host: Host, number: int, payload: bytes) -> None:
    offset, total = request(payload)
    host.fragment(number, offset, total, 0, total)


@contextmanager
def session(
    on_io: Callable[[Host, int, bytes], None] = in_order, timeout: float = 5.0, fastlz: FastLZ | None = None
) -> Iterator[tuple[nfc_session.Session, Host]]:
    host = Host(on_io)
    opened = nfc_session.Session(PlainWire(host.theirs, timeout), 2 << 20, fastlz)
    try:
        opened.open_disk("[ds] ä b/c.vmdk", True)
        yield opened, host
    finally:
        opened.close()
        host.thread.join(5)
        host.ours.close()


def read(opened: nfc_session.Session, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    error = opened.read(memoryview(buffer), offset)
    if error:
        raise error
    return bytes(buffer)


def test_an_orderly_life():
    with session() as (opened, host):
        assert opened.version == 11
        assert read(opened, 512, 1024) == CONTENT[512:1536]
    assert host.seen == [2, 9, 22, 4, 7, 5, 3, -4]


def test_fragments_of_many_requests_in_any_order():
    held: list[tuple[int, int, int, int, int]] = []
    chance = random.Random(2)

    def mixed(host: Host, number: int, payload: bytes) -> None:
        offset, total = request(payload)
        cuts = sorted({0, total, *(chance.randrange(total) for _cut in range(5))})
        held.extend((number, offset, total, first, last - first) for first, last in zip(cuts, cuts[1:]))
        if len({each[0] for each in held}) == 4:
            chance.shuffle(held)
            while held:
                host.fragment(*held.pop())

    with session(mixed) as (opened, _host), ThreadPoolExecutor(4) as pool:
        places = [(number * 50_000, 40_000 + number) for number in range(20)]
        assert list(pool.map(lambda place: read(opened, *place), places)) == [
            CONTENT[offset : offset + length] for offset, length in places
        ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": 1024},
        {"total": 8192},
        {"length": 8192, "extra": 8192},
        {"start": 1},
        {"extra": 100},
        {"length": 0, "extra": 0},
        {"operation": 1 | 2 << 32},
    ],
)
def test_a_fragment_that_does_not_fit_ends_the_session(wrong):
    with session(lambda host, number, payload: host.fragment(number, 0, 4096, 0, 4096, **wrong)) as (opened, _host):
        with pytest.raises(NfcError, match="fit"):
            read(opened, 0, 4096)
        with pytest.raises(NfcError, match="fit"):
            read(opened, 0, 512)


PACKED = bytes([0, 7, 0xE0, 246, 0])  # 256 bytes of 7 at level 1


@pytest.mark.parametrize(
    ("length", "extra", "packing", "right"),
    [
        (256, 5, 2, True),
        (256, 256, 0, True),
        (256, 5, 0, False),
        (256, 5, 1, False),
        (256, 0, 2, False),
        (256, 257, 2, False),
        (255, 5, 2, False),
    ],
)
def test_fragments_that_are_packed_or_not(length, extra, packing, right):
    """As each says, if it was asked for."""

    def packed(host: Host, number: int, payload: bytes) -> None:
        assert struct.unpack_from("<Q", payload, 8)[0] == 1 | 2 << 32
        head = struct.pack("<QQQIIIII", 0, 1 | packing << 32, 0, 512, 256, length, extra, 0)
        host.answer(7, number, head, PACKED if packing else bytes([7]) * extra)
        host.fragment(number, 0, 512, 0, 256)

    with session(packed, fastlz=FastLZ(str(BUILD / "fastlz" / "libfastlz.so"))) as (opened, _host):
        if right:
            assert read(opened, 0, 512) == CONTENT[:256] + bytes([7]) * 256
        else:
            with pytest.raises(NfcError, match=r"fit|FastLZ"):
                read(opened, 0, 512)


@pytest.mark.parametrize("second", [(0, 2048), (1024, 2048)])
def test_fragments_that_add_up_but_overlap_are_no_answer(second):
    def twice(host: Host, number: int, payload: bytes) -> None:
        host.fragment(number, 0, 4096, 0, 2048)
        host.fragment(number, 0, 4096, *second)

    with session(twice) as (opened, _host), pytest.raises(NfcError, match=r"fit|overlap"):
        read(opened, 0, 4096)


@pytest.mark.parametrize(
    "message",
    [
        struct.pack("<IIII", 0xA100DA7B, 7, 44, 4) + bytes(44),
        struct.pack("<IIII", 0xA100DA7A, 7, 44, 99) + bytes(44),
        struct.pack("<IIII", 0xA100DA7A, 5, 44, 4) + bytes(44),
        struct.pack("<IIII", 0xA100DA7A, 7, 1 << 31, 4),
        struct.pack("<IIII", 0xA100DA7A, 7, 43, 4) + bytes(43),
    ],
)
def test_what_is_no_answer_ends_the_session(message):
    with session(lambda host, number, payload: host.ours.sendall(message)) as (opened, _host):
        with pytest.raises(NfcError) as caught:
            read(opened, 0, 4096)
        assert caught.value.repeats == 1


def test_an_error_reply_is_of_its_request_only():
    def second_fails(host: Host, number: int, payload: bytes) -> None:
        if request(payload)[0] == 512:
            host.answer(1, number, struct.pack("<II", 5, 0))
        else:
            in_order(host, number, payload)

    with session(second_fails) as (opened, _host):
        with pytest.raises(NfcError) as caught:
            read(opened, 512, 512)
        assert (caught.value.code, caught.value.out_of_memory) == (5, True)
        assert read(opened, 0, 512) == CONTENT[:512]


def test_silence_is_an_error_only_when_something_is_owed():
    with session(lambda host, number, payload: None, timeout=0.2) as (opened, host):
        time.sleep(0.6)
        assert host.thread.is_alive()
        began = time.monotonic()
        with pytest.raises(NfcError, match="in time"):
            read(opened, 0, 512)
        assert time.monotonic() - began > 0.15


def test_a_connection_that_breaks_fails_all_who_wait():
    requests = []

    def hang_up(host: Host, number: int, payload: bytes) -> None:
        requests.append(number)
        if len(requests) == 4:
            host.fragment(number, *request(payload), 0, 100)
            host.ours.shutdown(socket.SHUT_RDWR)

    with session(hang_up) as (opened, _host), ThreadPoolExecutor(4) as pool:
        errors = list(pool.map(lambda place: opened.read(memoryview(bytearray(512)), place * 512), range(4)))
        assert [error is not None and error.repeats > 100 for error in errors] == [True] * 4


def test_a_write_is_one_operation_in_fragments():
    written: list[tuple[int, bytes]] = []

    def take(host: Host, number: int, payload: bytes) -> None:
        handle, operation, offset, total, start, length, extra, _zero = struct.unpack("<QQQIIIII", payload)
        assert (handle, operation, length) == (HANDLE, 0, extra)
        written.append((offset + start, host.take(length)))
        if start + length == total:
            host.answer(7, number, payload)

    with session(take) as (opened, _host):
        opened.buffer_size = 64 << 10
        assert opened.write(CONTENT[: 200 << 10], 512) is None
    assert [place - 512 for place, _data in written] == [0, 64 << 10, 128 << 10, 192 << 10]
    assert b"".join(data for _place, data in written) == CONTENT[: 200 << 10]


def test_a_write_is_not_acknowledged_by_an_answer_of_another_size():
    def take(host: Host, number: int, payload: bytes) -> None:
        host.take(512)
        host.answer(7, number, payload[:40])

    with session(take) as (opened, _host):
        error = opened.write(bytes(512), 0)
        assert "with 40 bytes" in error.message


def test_reads_and_writes_of_many_threads():
    """Whoever sends sends for others, too, and whoever receives receives for others; all comes in order."""
    numbers: list[int] = []
    written: dict[int, bytes] = {}

    def serve(host: Host, number: int, payload: bytes) -> None:
        numbers.append(number)
        if struct.unpack_from("<Q", payload, 8)[0] == 1:
            in_order(host, number, payload)
            return
        offset, total, start, length = struct.unpack_from("<QIII", payload, 16)
        written[offset] = written.get(offset, b"") + host.take(length)
        if start + length == total:
            host.answer(7, number, payload)

    with session(serve) as (opened, _host), ThreadPoolExecutor(8) as pool:
        opened.buffer_size = 64 << 10

        def use(place: int) -> bool:
            if place % 2:
                return opened.write(CONTENT[place << 12 :][: 100 << 10], place << 12) is None
            return read(opened, place << 12, 90_000) == CONTENT[place << 12 :][:90_000]

        assert all(pool.map(use, range(200)))
    assert numbers == sorted(numbers)
    assert written == {place << 12: CONTENT[place << 12 :][: 100 << 10] for place in range(1, 200, 2)}


def test_a_request_is_not_lost_that_was_queued_while_another_one_was_sent():
    """Its thread does not wait for the one that sends, which has to look again when it is through."""

    class Slow(PlainWire):
        def send(self, parts) -> None:
            super().send(parts)
            time.sleep(0.01)

    host = Host(in_order)
    opened = nfc_session.Session(Slow(host.theirs, 5), 2 << 20)
    opened.open_disk("[ds] a.vmdk", True)
    with ThreadPoolExecutor(8) as pool:
        places = [place * 512 for place in range(100)]
        assert list(pool.map(lambda place: read(opened, place, 512), places)) == [
            CONTENT[place : place + 512] for place in places
        ]
    opened.close()
    host.thread.join(5)


def test_whoever_is_interrupted_leaves_nobody_waiting():
    """Ctrl+C comes to the thread that receives, and the session can still be closed."""
    asked = threading.Event()

    class Interrupted(PlainWire):
        def receive(self, view: memoryview) -> None:
            if asked.is_set():
                raise KeyboardInterrupt
            super().receive(view)

    def never(host: Host, number: int, payload: bytes) -> None:
        host.answer(1, number, b"")

    host = Host(never)
    opened = nfc_session.Session(Interrupted(host.theirs, 5), 2 << 20)
    asked.set()
    with pytest.raises(KeyboardInterrupt):
        opened.read(memoryview(bytearray(512)), 0)
    assert opened.read(memoryview(bytearray(512)), 0).stage == "receive"
    opened.close()


def disk(monkeypatch: pytest.MonkeyPatch, tmp_path, hosts: list[Host], **parameters) -> nfc_disk.Disk:
    """A disk whose connections go to these hosts, one after the other."""
    monkeypatch.setattr(nfc_disk, "connect", lambda ticket, transport, timeout: PlainWire(hosts.pop(0).theirs, timeout))
    given = Parameters("[ds] a.vmdk", "vm-1", retry_delay=0.01, status_file=str(tmp_path / "status"), **parameters)
    return nfc_disk.Disk(given, lambda: Ticket("esx", "s", "AA"), Status(given.status_file))


def test_buffers_step_down_to_what_the_host_accepts(monkeypatch, tmp_path):
    hosts = [Host(in_order, lambda size: size > 512 << 10) for _try in range(3)]
    one = disk(monkeypatch, tmp_path, list(hosts))
    one.open()
    one.close()
    assert '"buffer_size": 524288' in (tmp_path / "status").read_text()


def test_memory_errors_lower_the_depth_and_the_copy_goes_on(monkeypatch, tmp_path):
    def never(host: Host, number: int, payload: bytes) -> None:
        host.answer(1, number, struct.pack("<I", 5))

    one = disk(monkeypatch, tmp_path, [Host(never), Host(never), Host(in_order)], depth=8)
    buffer = bytearray(4096)
    one.read(memoryview(buffer), 0)
    one.close()
    assert bytes(buffer) == CONTENT[:4096]
    assert (tmp_path / "status").read_text().count('"depth"') >= 2


def test_a_capacity_that_is_not_the_expected_one_is_refused(monkeypatch, tmp_path):
    one = disk(monkeypatch, tmp_path, [Host(in_order)], capacity=512)
    with pytest.raises(Exception, match="1048576 bytes instead of 512"):
        one.open()


def test_a_lost_connection_is_made_again_and_the_range_repeated(monkeypatch, tmp_path):
    def hang_up(host: Host, number: int, payload: bytes) -> None:
        host.fragment(number, *request(payload), 0, 100)
        host.ours.shutdown(socket.SHUT_RDWR)

    one = disk(monkeypatch, tmp_path, [Host(hang_up), Host(in_order)])
    buffer = bytearray(4096)
    one.read(memoryview(buffer), 8192)
    one.close()
    assert bytes(buffer) == CONTENT[8192:12288]


def test_tries_are_bounded(monkeypatch, tmp_path):
    def hang_up(host: Host, number: int, payload: bytes) -> None:
        host.ours.shutdown(socket.SHUT_RDWR)

    one = disk(monkeypatch, tmp_path, [Host(hang_up) for _try in range(9)], retries=2)
    with pytest.raises(NfcError, match="at 0, 512 bytes, failed"):
        one.read(memoryview(bytearray(512)), 0)
    one.close()


def test_a_flush_lets_the_host_close_the_disk(monkeypatch, tmp_path):
    """And what is written after it goes to a disk that is open again."""
    hosts = [Host(in_order), Host(in_order)]
    one = disk(monkeypatch, tmp_path, list(hosts))
    one.read(memoryview(bytearray(512)), 0)
    one.flush()
    hosts[0].thread.join(5)
    assert hosts[0].seen[-3:] == [5, 3, -4]
    one.read(memoryview(bytearray(512)), 0)
    one.close()
    assert hosts[1].seen[:4] == [2, 9, 22, 4]


def test_a_flush_that_the_host_refuses_fails_for_good(monkeypatch, tmp_path):
    """What was not made durable then is not so by a later flush."""
    host = Host(in_order)
    host.refuse_close = True
    one = disk(monkeypatch, tmp_path, [host])
    one.read(memoryview(bytearray(512)), 0)
    for call in (one.flush, one.flush, one.open):
        with pytest.raises(NfcError, match=r"^Flushing .* failed"):
            call()
    one.close()


def test_an_idle_disk_is_kept_alive_or_found_dead(monkeypatch, tmp_path):
    """Who finds it dead says nothing: the next request does, and opens the disk again."""
    clock = [1000.0]
    monkeypatch.setattr(reopening.time, "monotonic", lambda: clock[0])
    hosts = [Host(in_order), Host(in_order)]
    one = disk(monkeypatch, tmp_path, list(hosts))
    one.open()
    one.keep_alive()
    assert 7 not in hosts[0].seen
    for times in (1, 2):
        clock[0] += reopening.KEEP_ALIVE
        one.keep_alive()
        one.keep_alive()
        assert hosts[0].seen.count(7) == times
    hosts[0].ours.shutdown(socket.SHUT_RDWR)
    clock[0] += reopening.KEEP_ALIVE
    one.keep_alive()
    one.read(memoryview(bytearray(512)), 0)
    one.close()
    assert hosts[1].seen.count(7) == 1


def test_nobody_waits_for_ever_for_one_who_could_not_tell_of_an_error(monkeypatch, tmp_path):
    """As on a full file system."""

    def hang_up(host: Host, number: int, payload: bytes) -> None:
        host.ours.shutdown(socket.SHUT_RDWR)

    one = disk(monkeypatch, tmp_path, [Host(hang_up), Host(in_order)])
    one.open()
    real = one._status.event
    monkeypatch.setattr(one._status, "event", Mock(side_effect=OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        one.read(memoryview(bytearray(512)), 0)
    monkeypatch.setattr(one._status, "event", real)
    reader = threading.Thread(target=one.read, args=(memoryview(bytearray(512)), 0), daemon=True)
    reader.start()
    reader.join(10)
    assert not reader.is_alive()
    one.close()
