# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The native access: NFC client and plugin against the bare loopback and the stand-in for VDDK, and with latency."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._nbd import jobs, nfc, plugins, servers, vddk
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_disk import begin
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_interface import Ticket
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.nfc_tickets import NfcTickets
from ansible_collections.holdfast.backup.tests.benchmarks import measure
from ansible_collections.holdfast.backup.tests.benchmarks.machine import GIB, MIB, Machine, empty, setting, workplace
from ansible_collections.holdfast.backup.tests.benchmarks.report import Section
from ansible_collections.holdfast.backup.tests.lab.client import Lab

LARGE = (MIB // 2, 16)  # bytes in a request, and how many in flight, as vddk_copy takes them for whole disks
SMALL = (64 << 10, 32)  # and for scattered changes
LOOPBACK = str(Path(__file__).with_name("loopback.py"))
BARE = {"nbd": "bare TCP in Python", "nbdssl": "bare TLS in Python"}
PROGRAMS = {"nbd": ("socat", "bare TCP to socat"), "nbdssl": ("openssl", "bare TLS to openssl s_client")}
CLIENT, PLUGIN, STANDIN = "client alone", "plugin to nbdcopy", "VDDK's stand-in to nbdcopy"
IN_SMALL = ", requests of 64 KiB"


@dataclass(frozen=True)
class _Spent:
    """What one reading of the disk cost.

    :param seconds: from when the disk was open
    :param start: seconds before that, of a pipeline
    :param cpu: processor seconds of the host or who else sends, of who reads, and of nbdcopy behind that
    """

    seconds: float
    start: float | None = None
    cpu: dict[str, float] = field(default_factory=dict)


class _Reader:
    """Reads one disk, of no matter which content, in several ways."""

    def __init__(self, lab: Lab, machine: Machine, snapshot: str, c: Connection, place: Path) -> None:
        self.machine, self.snapshot, self.place = machine, snapshot, place
        self.tickets, self.thumbprint = NfcTickets(c), c.thumbprint()
        self.lab = lab
        self._numbers = itertools.count()

    def loopback(self, transport: str, *program: str) -> _Spent:
        kind = "tls" if transport == "nbdssl" else "plain"
        command = [sys.executable, LOOPBACK, kind, str(self.machine.size), str(self.place), *program]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds, sender, reader = map(float, said.split())
        return _Spent(seconds, cpu={"host": sender, "reader": reader})

    def client(self, transport: str, request: int, depth: int) -> _Spent:
        """Our session in this process, by as many threads as there are requests in flight."""
        dummy, session = begin(lambda: Ticket.parse(self._ticket()), transport, 60, 2 << 20)
        session.open_disk(self.machine.path, read_only=True)
        buffers = [memoryview(bytearray(request)) for _number in range(depth)]

        def read(number: int) -> None:
            for offset in range(number * request, self.machine.size, depth * request):
                error = session.read(buffers[number], offset)
                if error:
                    raise error

        began, host, reader = time.monotonic(), measure.cpu_so_far("lab"), _cpu(resource.RUSAGE_SELF)
        with ThreadPoolExecutor(depth) as pool:
            list(pool.map(read, range(depth)))
        seconds, reader = time.monotonic() - began, _cpu(resource.RUSAGE_SELF) - reader
        session.close()
        return _Spent(seconds, cpu={"host": measure.cpu_so_far("lab") - host, "reader": reader})

    def plugin(self, transport: str, request: int, depth: int) -> _Spent:
        directory = empty(self.place / f"read-{next(self._numbers)}")
        parameters = {"owner": "bench", "transport": transport, "read_only": True, "capacity": self.machine.size}
        disk = nfc.NfcDisk(
            nfc.ship(str(directory / "plugin")),
            parameters,
            str(directory / "status"),
            lambda: self.machine.path,
            self._ticket,
        )
        return self._nbdcopy(disk, disk.status_file, request, depth)

    def standin(self, transport: str, request: int, depth: int) -> _Spent:
        directory = empty(self.place / f"read-{next(self._numbers)}")
        endpoint = self.lab.module_args()
        parameters = {
            "vm": self.machine.moid,
            "snapshot": self.snapshot,
            "path": self.machine.path,
            "library_dir": self.lab.vddk_libdir,
            "server": endpoint["hostname"],
            "port": endpoint["port"],
            "username": endpoint["username"],
            "password": endpoint["password"],
            "thumbprint": self.thumbprint,
            "read_only": True,
            "transports": transport,
            "extents": False,
        }
        plugin = vddk.ship(str(directory / "plugin"), self.lab.vddk_libdir)
        disk = vddk.VddkDisk(plugin, parameters, str(directory / "status"))
        return self._nbdcopy(disk, disk.status_file, request, depth)

    def _ticket(self) -> dict[str, Any]:
        return self.tickets.get(self.machine.moid)

    def _nbdcopy(self, disk: jobs.DiskAccess, status_file: str, request: int, depth: int) -> _Spent:
        """Through one connection, as there is one to an image."""
        with disk.open() as served:
            assert served.descriptor is not None
            source = servers.disk_server(served, threads=depth)
            command = servers.nbdcopy(source, [], ["--connections=1", *jobs.queue(request, depth)[1:]])
            sampler, host, before = measure.Sampler(), measure.cpu_so_far("lab"), _cpu(resource.RUSAGE_CHILDREN)
            sampler.start()
            began = time.time()
            subprocess.run(command, check=True, pass_fds=[served.descriptor], env={**os.environ, "LC_ALL": "C"})
            ended = time.time()
            nbdcopy = sampler.stop()["nbdcopy"].cpu
        # What the sampler misses of nbdcopy counts as the plugin's.
        reader = _cpu(resource.RUSAGE_CHILDREN) - before - nbdcopy
        opened = next(event["time"] for event in plugins.events(status_file) if event["event"] == "opened")
        cpu = {"host": measure.cpu_so_far("lab") - host, "reader": reader, "nbdcopy": nbdcopy}
        return _Spent(ended - opened, opened - began, cpu)


def section() -> Section:
    """Read one disk in all ways, and through latency."""
    runs, size = int(setting("RUNS", "3")), int(setting("SIZE_MIB", "1024")) * MIB
    place = workplace("native", 2 * size, in_memory=True)
    report = Section("Native access", {"runs": runs, "disk": f"{size // MIB} MiB", "requests": "512 KiB, 16 in flight"})
    try:
        with Lab.start() as lab, Connection(Endpoint(**lab.module_args())) as c:
            machine = Machine(lab, "native", size)
            lab.scatter(machine.moid, machine.key, places=size // MIB, length=MIB)
            reader = _Reader(lab, machine, machine.snapshot(), c, place)
            for transport in ("nbd", "nbdssl"):
                _compare(report, reader, transport, runs)
            for latency in (1, 5):
                lab.nfc(latency_ms=latency)
                for depth in (1, 4, 16):
                    spent = [reader.plugin("nbdssl", LARGE[0], depth) for _run in range(runs)]
                    _row(report, "nbdssl", f"{PLUGIN}, {latency} ms latency, {depth} in flight", spent, size)
    finally:
        shutil.rmtree(place.parent, ignore_errors=True)
    return report


def _compare(report: Section, reader: _Reader, transport: str, runs: int) -> None:
    """Read by one transport in all ways, in turn."""
    ways: dict[str, Callable[[], _Spent]] = {
        BARE[transport]: partial(reader.loopback, transport),
        CLIENT: partial(reader.client, transport, *LARGE),
        PLUGIN: partial(reader.plugin, transport, *LARGE),
        STANDIN: partial(reader.standin, transport, *LARGE),
        CLIENT + IN_SMALL: partial(reader.client, transport, *SMALL),
        PLUGIN + IN_SMALL: partial(reader.plugin, transport, *SMALL),
        STANDIN + IN_SMALL: partial(reader.standin, transport, *SMALL),
    }
    program, name = PROGRAMS[transport]
    if shutil.which(program):
        ways[name] = partial(reader.loopback, transport, program)
    found = measure.alternate(runs, ways)
    rates = {name: _row(report, transport, name, spent, reader.machine.size) for name, spent in found.items()}
    limit = rates[BARE[transport]]
    report.at_least(f"{transport}: rate of the {CLIENT} to {BARE[transport]}", rates[CLIENT] / limit, 0.7)
    pipeline = f"{transport}: rate of the whole pipeline (plugin, nbdkit, nbdcopy) to {BARE[transport]}"
    report.at_least(pipeline, rates[PLUGIN] / limit, 0.7)
    if name in rates:
        report.at_least(f"{transport}: rate of the {CLIENT} to {name}", rates[CLIENT] / rates[name], 0.7)


def _row(report: Section, transport: str, name: str, spent: list[_Spent], size: int) -> float:
    seconds = measure.median([each.seconds for each in spent])
    row: dict[str, Any] = {"transport": transport, "read by": name, "MiB/s": size / MIB / seconds, "start s": None}
    if spent[0].start is not None:
        row["start s"] = measure.median([each.start or 0 for each in spent])
    for part in ("host", "reader", "nbdcopy"):
        known = [each.cpu[part] for each in spent if part in each.cpu]
        row[f"{part} CPU s/GiB"] = measure.median(known) * GIB / size if known else None
    report.rows.append(row)
    report.raw[f"{transport}: {name}"] = [vars(each) for each in spent]
    return size / seconds


def _cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime
