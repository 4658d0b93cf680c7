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
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._nbd import jobs, nfc, servers, vddk
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_disk import begin
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_interface import Ticket
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.nfc_tickets import NfcTickets
from ansible_collections.holdfast.backup.tests.benchmarks import measure
from ansible_collections.holdfast.backup.tests.benchmarks.machine import GIB, MIB, Machine, empty, setting, workplace
from ansible_collections.holdfast.backup.tests.benchmarks.report import Section
from ansible_collections.holdfast.backup.tests.lab.client import Lab

REQUEST = MIB // 2  # what vddk_copy takes for whole disks, as many in flight
DEPTH = 16
LOOPBACK = str(Path(__file__).with_name("loopback.py"))
BARE = {"nbd": "bare TCP in Python", "nbdssl": "bare TLS in Python"}
PROGRAMS = {"nbd": ("socat", "bare TCP to socat"), "nbdssl": ("openssl", "bare TLS to openssl s_client")}
CLIENT, PLUGIN, STANDIN = "client alone", "plugin to nbdcopy", "VDDK's stand-in to nbdcopy"


class _Reader:
    """Reads one disk, of no matter which content, in several ways; each returns (seconds, CPU seconds)."""

    def __init__(self, lab: Lab, machine: Machine, snapshot: str, c: Connection, place: Path) -> None:
        self.machine, self.snapshot, self.place = machine, snapshot, place
        self.tickets, self.thumbprint = NfcTickets(c), c.thumbprint()
        self.lab = lab
        self._numbers = itertools.count()

    def loopback(self, transport: str, *program: str) -> tuple[float, float]:
        kind = "tls" if transport == "nbdssl" else "plain"
        command = [sys.executable, LOOPBACK, kind, str(self.machine.size), str(self.place), *program]
        before = _cpu(resource.RUSAGE_CHILDREN)
        rate = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return self.machine.size / rate, _cpu(resource.RUSAGE_CHILDREN) - before

    def client(self, transport: str) -> tuple[float, float]:
        """Our session in this process, by as many threads as vddk_copy has requests in flight."""
        dummy, session = begin(lambda: Ticket.parse(self._ticket()), transport, 60, 2 << 20)
        session.open_disk(self.machine.path, read_only=True)
        buffers = [memoryview(bytearray(REQUEST)) for _number in range(DEPTH)]

        def read(number: int) -> None:
            for offset in range(number * REQUEST, self.machine.size, DEPTH * REQUEST):
                error = session.read(buffers[number], offset)
                if error:
                    raise error

        began, before = time.monotonic(), _cpu(resource.RUSAGE_SELF)
        with ThreadPoolExecutor(DEPTH) as pool:
            list(pool.map(read, range(DEPTH)))
        spent = time.monotonic() - began, _cpu(resource.RUSAGE_SELF) - before
        session.close()
        return spent

    def plugin(self, transport: str, depth: int = DEPTH) -> tuple[float, float]:
        directory = empty(self.place / f"read-{next(self._numbers)}")
        parameters = {"owner": "bench", "transport": transport, "read_only": True, "capacity": self.machine.size}
        disk = nfc.NfcDisk(
            nfc.ship(str(directory / "plugin")),
            parameters,
            str(directory / "status"),
            lambda: self.machine.path,
            self._ticket,
        )
        return self._nbdcopy(disk, depth)

    def standin(self, transport: str) -> tuple[float, float]:
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
        return self._nbdcopy(vddk.VddkDisk(plugin, parameters, str(directory / "status")), DEPTH)

    def _ticket(self) -> dict[str, Any]:
        return self.tickets.get(self.machine.moid)

    def _nbdcopy(self, disk: jobs.DiskAccess, depth: int) -> tuple[float, float]:
        with disk.open() as served:
            assert served.descriptor is not None
            source = servers.disk_server(served, threads=depth)
            command = servers.nbdcopy(source, [], ["--connections=1", *jobs.queue(REQUEST, depth)[1:]])
            began, before = time.monotonic(), _cpu(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, pass_fds=[served.descriptor], env={**os.environ, "LC_ALL": "C"})
            return time.monotonic() - began, _cpu(resource.RUSAGE_CHILDREN) - before


def section() -> Section:
    """Read one disk in all ways, and through latency."""
    runs, size = int(setting("RUNS", "3")), int(setting("SIZE_MIB", "1024")) * MIB
    place = workplace("native", 2 * size, in_memory=True)
    report = Section("Native access", {"runs": runs, "disk": f"{size // MIB} MiB", "requests": f"{DEPTH} of 512 KiB"})
    try:
        with Lab.start() as lab, Connection(Endpoint(**lab.module_args())) as c:
            machine = Machine(lab, "native", size)
            lab.scatter(machine.moid, machine.key, places=size // MIB, length=MIB)
            reader = _Reader(lab, machine, machine.snapshot(), c, place)
            for transport in ("nbd", "nbdssl"):
                ways: dict[str, Callable[[], tuple[float, float]]] = {
                    BARE[transport]: partial(reader.loopback, transport),
                    CLIENT: partial(reader.client, transport),
                    PLUGIN: partial(reader.plugin, transport),
                    STANDIN: partial(reader.standin, transport),
                }
                program, name = PROGRAMS[transport]
                if shutil.which(program):
                    ways[name] = partial(reader.loopback, transport, program)
                found = measure.alternate(runs, ways)
                rates = {name: _row(report, transport, name, spent, size) for name, spent in found.items()}
                limit = rates[BARE[transport]]
                against = f"to {BARE[transport]}"
                report.at_least(f"{transport}: rate of the {CLIENT} {against}", rates[CLIENT] / limit, 0.7)
                pipeline = f"{transport}: rate of the whole pipeline (plugin, nbdkit, nbdcopy) {against}"
                report.at_least(pipeline, rates[PLUGIN] / limit, 0.7)
            for latency in (1, 5):
                lab.nfc(latency_ms=latency)
                for depth in (1, 4, 16):
                    spent = [reader.plugin("nbdssl", depth) for _run in range(runs)]
                    _row(report, "nbdssl", f"{PLUGIN}, {latency} ms latency, {depth} in flight", spent, size)
    finally:
        shutil.rmtree(place.parent, ignore_errors=True)
    return report


def _row(report: Section, transport: str, name: str, spent: list[tuple[float, float]], size: int) -> float:
    seconds, cpu = (measure.median([each[part] for each in spent]) for part in (0, 1))
    report.rows.append(
        {"transport": transport, "read by": name, "MiB/s": size / MIB / seconds, "CPU s/GiB": cpu * GIB / size}
    )
    report.raw[f"{transport}: {name}"] = spent
    return size / seconds


def _cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime
