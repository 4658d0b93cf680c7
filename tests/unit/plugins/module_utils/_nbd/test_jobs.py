# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Several disks at a time, without any disk."""

from __future__ import annotations

import errno
import threading

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    CopyFailed,
    InvalidInput,
    NoSpace,
)
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import jobs
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch

MIB = 1 << 20


def tasks(count):
    return [jobs.Task(f"disk {number}", None, f"/{number}.qcow2", MIB) for number in range(count)]


def test_at_most_so_many_at_a_time_and_in_order():
    running, most = set(), []
    barrier = threading.Barrier(2, timeout=10)

    def job(task, settings, watch):
        running.add(task.name)
        most.append(len(running))
        barrier.wait()
        running.discard(task.name)
        return {"name": task.name}

    results = jobs.run_all(job, tasks(6), jobs.Settings("/"), Watch(), 2)
    assert [result["name"] for result in results] == [task.name for task in tasks(6)]
    assert max(most) == 2


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (CopyFailed("It broke.", "Mend it.", code=7), CopyFailed),
        (OSError(errno.ENOSPC, "No space left on device"), NoSpace),
        (OSError(errno.EIO, "Input/output error", "/1.qcow2"), CopyFailed),
    ],
)
def test_the_others_are_finished(error, kind):
    def job(task, settings, watch):
        if task.name == "disk 1":
            raise error
        return {"name": task.name}

    with pytest.raises(kind, match=r"1 of 3 disks failed\. disk 1: ") as failure:
        jobs.run_all(job, tasks(3), jobs.Settings("/"), Watch(), 1)
    details = failure.value.details
    assert [result["name"] for result in details["disks"]] == ["disk 0", "disk 2"]
    assert details["failed_disks"][0]["image"] == "/1.qcow2"
    assert failure.value.next_step


def test_a_signal_stops_them_all():
    watch = Watch()
    stopped = []

    def job(task, settings, watch):
        if task.name == "disk 0":
            raise KeyboardInterrupt
        try:
            while True:
                watch.check()
        except BackupError:
            stopped.append(task.name)
            raise

    with pytest.raises(KeyboardInterrupt):
        jobs.run_all(job, tasks(2), jobs.Settings("/"), watch, 2)
    assert stopped == ["disk 1"]


@pytest.mark.parametrize("size", [0, 512, 32768, 65537, 3 * 65536, 4 * MIB])
def test_request_sizes_that_cannot_be(size):
    with pytest.raises(InvalidInput, match="request size"):
        jobs.Settings("/", request_size=size)


def test_request_size():
    scattered = [(number * 10 * MIB, 65536) for number in range(50)]
    assert jobs.request_size(jobs.Settings("/"), None) == MIB // 2
    assert jobs.request_size(jobs.Settings("/"), scattered) == 65536
    assert jobs.request_size(jobs.Settings("/", request_size=2 * MIB), scattered) == 2 * MIB
