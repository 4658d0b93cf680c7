# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The stand-in for VDDK refuses what the real one refuses, whoever calls it.

Every scenario is a process of its own, because the library starts once per process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import plugins
from ansible_collections.holdfast.backup.tests.lab.vddk.kit import Kit

PRELUDE = """
import ctypes, json, sys, threading, time
from ctypes import byref, c_void_p, create_string_buffer, POINTER
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.vddk_interface import Parameters
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.vddk_library import *
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.reopening import SECTOR

root, capacity = sys.argv[1], int(sys.argv[2]) // SECTOR
lib = Library(root, lambda text, is_warning: print(text, file=sys.stderr))
parameters = Parameters(root, "vc", "u", "p", "AA", "vm-1", "[ds] a.vmdk")
buffer = create_string_buffer(1 << 20)
none = LOG()
done = COMPLETION(lambda data, result: None)
lib.SyncRead = lib._library.VixDiskLib_Read
lib.SyncWrite = lib._library.VixDiskLib_Write
for each in (lib.SyncRead, lib.SyncWrite):
    each.restype, each.argtypes = ctypes.c_uint64, [c_void_p, ctypes.c_uint64, ctypes.c_uint64, c_void_p]

def init(directory=root, config=None):
    return lib.InitEx(*asked_version(lib.version), none, none, none, directory.encode(), config)

def connect(read_only=b"\\1", modes=b"nbdssl:nbd", params=None):
    connection = c_void_p()
    with lib.connect_params(parameters) as own:
        result = lib.ConnectEx(params or own, read_only, b"snapshot-1", modes, byref(connection))
    return result or connection

def open_disk(connection=None, flags=OPEN_READ_ONLY, **options):
    handle = c_void_p()
    return lib.Open(connection or connect(**options), b"[ds] a.vmdk", flags, byref(handle)) or handle

def read_async(handle, start=0, count=8):
    return lib.ReadAsync(handle, start, count, buffer, done, None)

def blocks(handle, start, count, chunk=128):
    answer = POINTER(BlockList)()
    return lib.QueryAllocatedBlocks(handle, start, count, chunk, byref(answer))

def in_thread(function, *arguments):
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*arguments)))
    thread.start()
    return thread, results

def answer(*results):
    print(json.dumps([each.value if isinstance(each, c_void_p) else each for each in results]))
"""


def run(kit: Kit, code: str, start: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a scenario with the kit's library."""
    directory = tempfile.mkdtemp(dir=kit.root)
    plugins.ship(directory)
    text = PRELUDE + ("assert init() == 0\n" if start else "") + code
    command = [sys.executable, "-c", text, str(kit.root), str(kit.capacity)]
    environment = plugins.environment(directory, str(kit.root))
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)


def results(kit: Kit, code: str, start: bool = True) -> list[int]:
    """What the scenario answers."""
    finished = run(kit, code, start)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


# name: (scenario, expected results, words of the violation that is noted)
REFUSALS = {
    "init twice": ("answer(init())", [1], "InitEx for the second time"),
    "unaligned start": ("answer(blocks(open_disk(), 64, 128))", [3], "allocated blocks of sectors 64 + 128"),
    "unaligned length": ("answer(blocks(open_disk(), 0, 130))", [3], "allocated blocks of sectors 0 + 130"),
    "chunk too small": ("answer(blocks(open_disk(), 0, 64, 64))", [3], "chunks of 64 sectors"),
    "chunk too large": ("answer(blocks(open_disk(), 0, 262144, 262144))", [3], "chunks of 262144 sectors"),
    "chunk no power of two": ("answer(blocks(open_disk(), 0, 384, 192))", [3], "chunks of 192 sectors"),
    "blocks past the end": (
        "answer(blocks(open_disk(), capacity // 128 * 128, 128))",
        [3],
        "allocated blocks past the end",
    ),
    "too many chunks": ("answer(blocks(open_disk(), 0, 128 * 524289))", [3], "allocated blocks of sectors 0 +"),
    "blocks of no handle": ("answer(blocks(None, 0, 128))", [1000], "no handle"),
    "blocks from another thread": (
        "t, r = in_thread(blocks, open_disk(), 0, 128); t.join(); answer(*r)",
        [1],
        "QueryAllocatedBlocks from another thread",
    ),
    "close while another thread queries": (
        "h = open_disk(); t, r = in_thread(lambda: (time.sleep(0.1), lib.Close(h))[1]);"
        "first = blocks(h, 0, 128); t.join(); answer(first, *r)",
        [0, 1],
        "Close while another thread opens, closes or queries",
    ),
    "read past the end": (
        "h = open_disk(); answer(read_async(h, capacity - 4), lib.SyncRead(h, capacity, 1, buffer))",
        [16007, 16007],
        "a request for sectors",
    ),
    "read of nothing": ("answer(read_async(open_disk(), 0, 0))", [3], "of no sectors"),
    "two synchronous reads at once": (
        "h = open_disk(); t, r = in_thread(lib.SyncRead, h, 0, 8, buffer); time.sleep(0.1);"
        "second = lib.SyncRead(h, 0, 8, buffer); t.join(); answer(second, *r)",
        [1, 0],
        "two synchronous requests",
    ),
    "foreign parameters": (
        "answer(connect(params=ctypes.pointer(ConnectParams(vmx_spec=b'moref=vm-1', server=b'vc'))))",
        [3],
        "AllocateConnectParams",
    ),
    "close in flight": (
        "h = open_disk(); answer(read_async(h), lib.Close(h))",
        [25000, 1],
        "Close with 1 requests in flight, without Wait",
    ),
    "disconnect twice": ("c = connect(); answer(lib.Disconnect(c), lib.Disconnect(c))", [0, 3], "no connection"),
    "close twice": ("h = open_disk(); answer(lib.Close(h), lib.Close(h))", [0, 1000], "no handle"),
    "request on a closed handle": ("h = open_disk(); lib.Close(h); answer(read_async(h))", [1000], "no handle"),
    "leaked handles": ("open_disk(); lib.Exit(); answer()", [], "Exit with 2 connections, handles or parameter"),
    "call after exit": ("lib.Exit(); answer(connect())", [16001], "before InitEx or in another process"),
    "use in a child process": (
        "import os\npid = os.fork()\nif pid == 0: os._exit(connect() != 16001)\nanswer(os.waitpid(pid, 0)[1])",
        [0],
        "before InitEx or in another process",
    ),
    "a long identity": (
        "with lib.connect_params(parameters) as p: answer(lib.PrepareForAccess(p, b'x' * 51))",
        [3],
        "identity of more than 50",
    ),
    "clean-up with a VM": (
        "with lib.connect_params(parameters) as p: answer(lib.Cleanup(p, None, None))",
        [3],
        "Cleanup with a VM",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_the_standin_refuses_and_notes(kit, name):
    code, expected, words = REFUSALS[name]
    if "at once" in name or "in flight" in name or "while" in name:
        kit.behave(latency_us=300000, blocks_delay_us=300000)
    assert results(kit, code) == expected
    assert any(words in each for each in kit.violations()), kit.violations()


# name: (scenario, expected results): errors that a correct client may meet
ERRORS = {
    "write on a read-only handle": ("h = open_disk(); answer(lib.SyncWrite(h, 0, 8, buffer))", [11]),
    "write on a read-only connection": ("h = open_disk(flags=0); answer(lib.SyncWrite(h, 0, 8, buffer))", [11]),
    "synchronous among asynchronous": (
        "h = open_disk(); r = [read_async(h), lib.SyncRead(h, 0, 8, buffer)]; lib.Wait(h); answer(*r)",
        [25000, 26000],
    ),
    "no transport that fits": ("answer(open_disk(modes=b'san:hotadd'))", [13]),
}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_the_standin_fails(kit, name):
    code, expected = ERRORS[name]
    kit.behave(latency_us=100000)
    assert results(kit, code) == expected
    assert kit.violations() == []


def test_an_orderly_client_breaks_no_rule(kit):
    code = (
        "c = connect(); h = open_disk(c); r = [read_async(h), lib.Wait(h), blocks(h, 0, 128), lib.Close(h)]\n"
        "answer(*r, lib.Disconnect(c))"
    )
    assert results(kit, code) == [25000, 0, 0, 0, 0]
    assert kit.violations() == []


def test_nothing_works_before_init(kit):
    assert results(kit, "answer(connect())", start=False) == [16001]


def test_init_belongs_to_the_main_thread(kit):
    assert results(kit, "t, r = in_thread(init); t.join(); answer(*r)", start=False) == [1]


def test_lib64_is_not_the_root(kit):
    assert results(kit, "answer(init(root + '/lib64'), init())", start=False) == [16053, 0]


@pytest.mark.parametrize(("count", "expected"), [(4, 0), (17, 1)])
def test_large_nfc_buffers_are_refused(kit, count, expected):
    config = Path(kit.root, "config")
    names = {"BufSizeIn64KB": 16, "BufCount": count}
    config.write_text("".join(f"vixDiskLib.nfcAio.Session.{name}={value}\n" for name, value in names.items()))
    assert results(kit, f"answer(init(root, {str(config)!r}.encode()))", start=False) == [expected]


def test_the_library_needs_its_directory_in_the_environment(kit, monkeypatch):
    monkeypatch.setattr(plugins, "environment", lambda directory, library_dir: {"PYTHONPATH": directory})
    assert results(kit, "answer(init())", start=False) == [16053]


def test_reading_past_an_old_info_ends_the_process(kit):
    kit.take("6.5")
    code = (
        "h = open_disk(); info = POINTER(Info)(); lib.GetInfo(h, byref(info));"
        "at = ctypes.addressof(info.contents)\n"
        "answer(info.contents.capacity, {} and ctypes.c_uint32.from_address(at + 56).value)"
    )
    assert results(kit, code.format(0)) == [kit.capacity // 512, 0]
    assert run(kit, code.format(1)).returncode == -11
