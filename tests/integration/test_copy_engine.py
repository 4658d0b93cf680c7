# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copies between real servers; qemu-img and byte for byte comparison are the judges.

A raw file behind nbdkit's own file plugin stands for the disk.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import random
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    CopyFailed,
    Damaged,
    InvalidInput,
    NoSpace,
    TimedOut,
)
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas, copy, images, jobs, servers
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.backup import backup, is_done
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.restore import restore
from ansible_collections.holdfast.backup.tests.integration.running import once

MIB = areas.MIB
CLUSTER = servers.CLUSTER


@dataclass
class FileDisk:
    """A disk access of the engine over a raw file, optionally behind further nbdkit filters."""

    path: Path
    filters: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    transport: str = "file"
    warnings: list[str] = field(default_factory=list)
    error: BackupError | None = None

    @contextlib.contextmanager
    def open(self):
        filters = [f"--filter={name}" for name in self.filters]
        yield servers.Disk((*filters, "file", str(self.path), *self.parameters))


@dataclass
class Guest:
    """Writes to a raw disk and remembers where, as change tracking does."""

    path: Path
    capacity: int
    changed: list[areas.Area] = field(default_factory=list)
    seed: int = 1

    def __post_init__(self):
        self.random = random.Random(self.seed)
        with open(self.path, "wb") as stream:
            stream.truncate(self.capacity)

    def write(self, offset, data):
        with open(self.path, "r+b") as stream:
            stream.seek(offset)
            stream.write(data)
        self.changed.append((offset, len(data)))

    def scatter(self, writes, longest=300_000):
        for dummy in range(writes):
            length = self.random.randrange(1, longest)
            offset = self.random.randrange(0, self.capacity - length)
            kind = self.random.randrange(3)
            block = self.random.randbytes(length) if kind else bytes(length)
            self.write(offset, block if kind != 1 else (b"lorem ipsum " * (length // 12 + 1))[:length])

    def take_changes(self):
        changed, self.changed = areas.normalise(self.changed, self.capacity), []
        return changed


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "work").mkdir()
    return jobs.Settings(str(tmp_path / "work"))


@pytest.fixture
def guest(tmp_path):
    # Neither a whole number of clusters nor of MiB.
    return Guest(tmp_path / "disk.raw", 100 * MIB + 3 * 512)


def task(guest, image, **options):
    return jobs.Task("Hard disk 1", FileDisk(guest.path), str(image), guest.capacity, **options)


def holds(image, raw):
    """The judge of a backup: the image with all below it is sound and equal to the disk."""
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", image], check=True)
    subprocess.run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", image, raw], check=True)
    return True


def test_full_then_changes_then_restore(guest, settings, tmp_path):
    """A chain of restore points in directories of their own; every one can be had back, wherever it lies."""
    before, points = None, []
    for number in range(4):
        guest.scatter(25)
        changes = guest.take_changes()
        image = tmp_path / f"repository/{number}/disk.qcow2"
        image.parent.mkdir(parents=True)
        options = {"work": changes, "parent": before} if before else {}
        result = backup(task(guest, image, **options), settings, Watch())
        assert (result["changed"], result["resumed"], result["transport"]) == (True, False, "file")
        assert result["bytes_stored"] == image.stat().st_size
        assert holds(image, guest.path)
        if before:
            rounded = areas.total(areas.normalise(changes, guest.capacity, CLUSTER))
            assert rounded <= result["bytes_read"] <= 1.1 * rounded
        kept = tmp_path / f"{number}.raw"
        subprocess.run(["cp", "--sparse=always", guest.path, kept], check=True)
        before = str(image)
        points.append(kept)
    (tmp_path / "repository").rename(tmp_path / "moved")
    for number, kept in enumerate(points):
        target = Guest(tmp_path / "target.raw", guest.capacity, seed=2)
        target.scatter(20)
        image = tmp_path / f"moved/{number}/disk.qcow2"
        result = restore(task(target, image), settings, Watch())
        assert result["changed"]
        assert filecmp.cmp(kept, target.path, shallow=False)


def test_image_says_how_it_is_made(guest, settings, tmp_path):
    guest.scatter(3)
    first, second = tmp_path / "first.qcow2", tmp_path / "second.qcow2"
    backup(task(guest, first), settings, Watch())
    backup(task(guest, second, work=[(0, 1)], parent=str(first)), settings, Watch())
    header = images.info(str(second))
    assert header["virtual-size"] == 100 * MIB + CLUSTER
    assert (header["backing-filename"], header["backing-filename-format"]) == ("first.qcow2", "qcow2")
    details = header["format-specific"]["data"]
    assert (details["compression-type"], details["lazy-refcounts"], details["corrupt"]) == ("zstd", False, False)


@pytest.mark.parametrize("compression", ["zstd", "zlib", "none"])
def test_compression(guest, settings, tmp_path, compression):
    guest.write(0, b"always the same " * (MIB // 2))
    result = backup(task(guest, tmp_path / "i.qcow2"), replace(settings, compression=compression), Watch())
    assert holds(tmp_path / "i.qcow2", guest.path)
    assert (result["bytes_stored"] < 2 * MIB) == (compression != "none")


def test_areas_that_became_zero_hide_the_old_content(guest, settings, tmp_path):
    guest.write(0, os.urandom(4 * MIB))
    full, after = tmp_path / "full.qcow2", tmp_path / "after.qcow2"
    backup(task(guest, full), settings, Watch())
    guest.take_changes()
    guest.write(MIB, bytes(2 * MIB))
    backup(task(guest, after, work=guest.take_changes(), parent=str(full)), settings, Watch())
    assert holds(after, guest.path)


def test_nothing_changed(guest, settings, tmp_path):
    guest.scatter(3)
    full, after = tmp_path / "full.qcow2", tmp_path / "after.qcow2"
    backup(task(guest, full), settings, Watch())
    result = backup(task(guest, after, work=[], parent=str(full)), settings, Watch())
    assert result["bytes_read"] == 0
    assert holds(after, guest.path)


def test_second_run_does_nothing(guest, settings, tmp_path):
    guest.scatter(3)
    point = task(guest, tmp_path / "i.qcow2", identity={"change_id": "52 aa/1"})
    assert not is_done(point)
    first = backup(point, settings, Watch())
    assert is_done(point)
    again = backup(point, settings, Watch())
    assert again == {**first, "changed": False}
    other = replace(point, identity={"change_id": "52 aa/2"})
    assert not is_done(other)
    assert backup(other, settings, Watch())["changed"]


def test_image_that_was_cut_short_is_made_again(guest, settings, tmp_path):
    guest.scatter(3)
    point = task(guest, tmp_path / "i.qcow2")
    backup(point, settings, Watch())
    os.truncate(point.image, 4096)
    assert backup(point, settings, Watch())["changed"]
    assert holds(point.image, guest.path)


def test_restored_areas_leave_the_rest_alone(guest, settings, tmp_path):
    guest.scatter(30)
    backup(task(guest, tmp_path / "i.qcow2"), settings, Watch())
    target = Guest(tmp_path / "target.raw", guest.capacity)
    target.write(0, os.urandom(guest.capacity))
    expected = bytearray(target.path.read_bytes())
    wanted = areas.normalise([(3 * MIB, 5 * MIB), (guest.capacity - 1000, 1000)], guest.capacity, CLUSTER)
    content = guest.path.read_bytes()
    for start, length in wanted:
        expected[start : start + length] = content[start : start + length]
    restore(task(target, tmp_path / "i.qcow2", work=wanted), settings, Watch())
    assert target.path.read_bytes() == expected


def test_fresh_target_keeps_its_holes(guest, settings, tmp_path):
    guest.write(50 * MIB, b"x" * CLUSTER)
    backup(task(guest, tmp_path / "i.qcow2"), settings, Watch())
    target = Guest(tmp_path / "target.raw", guest.capacity)
    result = restore(task(target, tmp_path / "i.qcow2"), replace(settings, target_is_zero=True), Watch())
    assert filecmp.cmp(guest.path, target.path, shallow=False)
    assert result["bytes_written"] <= MIB
    assert target.path.stat().st_blocks * 512 <= MIB


def test_image_of_another_size_is_not_restored(guest, settings, tmp_path):
    backup(task(guest, tmp_path / "i.qcow2"), settings, Watch())
    target = Guest(tmp_path / "target.raw", 200 * MIB)
    with pytest.raises(InvalidInput, match="is of a disk of about"):
        restore(task(target, tmp_path / "i.qcow2"), settings, Watch())


def test_grown_disk_over_the_smaller_parent(guest, settings, tmp_path):
    guest.scatter(10)
    full, after = tmp_path / "full.qcow2", tmp_path / "after.qcow2"
    backup(task(guest, full), settings, Watch())
    guest.take_changes()
    old, guest.capacity = guest.capacity, 130 * MIB + 512
    os.truncate(guest.path, guest.capacity)
    guest.write(guest.capacity - 5000, b"the end" * 100)
    guest.changed.append((old, guest.capacity - old))
    backup(task(guest, after, work=guest.take_changes(), parent=str(full)), settings, Watch())
    assert holds(after, guest.path)


def test_verify_tells_an_image_that_lies(guest, settings, tmp_path):
    """Change tracking that forgets a change is found by comparing with the disk."""
    guest.scatter(10)
    full, after = tmp_path / "full.qcow2", tmp_path / "after.qcow2"
    strict = replace(settings, verify=True)
    backup(task(guest, full), strict, Watch())
    guest.take_changes()
    guest.write(MIB, b"seen")
    changes = guest.take_changes()
    backup(task(guest, after, work=changes, parent=str(full)), strict, Watch())
    guest.write(90 * MIB, b"forgotten")
    with pytest.raises(Damaged, match="not the same"):
        backup(task(guest, tmp_path / "third.qcow2", work=changes, parent=str(full)), strict, Watch())


def slow(point):
    """The same task with a disk that answers late, so that there is time to interfere."""
    return replace(point, disk=FileDisk(point.disk.path, ("delay",), ("delay-read=20ms",)))


def process(name, image):
    """Wait for a process of the copy into this image and return its id."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (entry / "comm").read_text().strip() == name and image in (entry / "environ").read_text():
                    return int(entry.name)
        time.sleep(0.01)
    raise AssertionError(f"no {name}")


@pytest.fixture
def marked(monkeypatch, tmp_path):
    """Marks the processes of this test by their environment, which all three inherit."""
    monkeypatch.setenv("HOLDFAST_TEST", str(tmp_path))
    return str(tmp_path)


def interrupted(point, settings, mark, megabytes=4):
    """Run a task slowly and kill its nbdcopy when the image has this size."""

    def kill():
        while not os.path.exists(point.image) or os.path.getsize(point.image) < megabytes * MIB:
            time.sleep(0.01)
        os.kill(process("nbdcopy", mark), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(CopyFailed):
        backup(slow(point), replace(settings, request_depth=1), Watch())
    killer.join()


def gone(mark):
    """All servers of the copy have ended."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "comm").read_text().strip() in ("nbdkit", "qemu-nbd", "nbdcopy"):
                assert mark not in (entry / "environ").read_text(), entry.name
    return True


@pytest.mark.parametrize("kind", ["full", "incremental"])
@pytest.mark.parametrize("victim", ["nbdcopy", "nbdkit", "qemu-nbd"])
def test_killed_and_run_again(guest, settings, tmp_path, marked, kind, victim):
    """Whoever is killed whenever: the error says who, and the next run makes a right image."""
    guest.scatter(60)
    point = task(guest, tmp_path / "full.qcow2")
    if kind == "incremental":
        backup(point, settings, Watch())
        guest.take_changes()
        guest.scatter(60)
        point = task(guest, tmp_path / "after.qcow2", work=guest.take_changes(), parent=point.image)
    everything = areas.total(areas.normalise(point.work or [(0, guest.capacity)], guest.capacity, CLUSTER))
    spared = 0
    for attempt in range(4):
        for path in (point.image, point.image + ".state"):
            Path(path).unlink(missing_ok=True)

        def kill(delay=0.03 + attempt * 0.1):
            number = process(victim, marked)
            time.sleep(delay)
            os.kill(number, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(CopyFailed, match=f"{victim} was ended by SIGKILL"):
            backup(slow(point), replace(settings, request_depth=1), Watch())
        killer.join()
        assert gone(marked)
        result = backup(point, settings, Watch())
        assert holds(point.image, guest.path)
        if result["resumed"]:
            spared += everything - result["bytes_read"]
    # Of a writer that was killed nobody knows what it still owed to the file.
    assert (spared > 0) == (victim != "qemu-nbd")


def test_killed_with_nobody_left_to_tidy_up(guest, settings, tmp_path, marked):
    """Kill the process that runs the copy, as the kernel does: nothing runs on, and the next run begins again."""
    guest.write(0, random.Random(8).randbytes(40 * MIB))
    point = task(guest, tmp_path / "i.qcow2")
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            backup(slow(point), replace(settings, request_depth=1), Watch())
        os._exit(0)
    while not os.path.exists(point.image) or os.path.getsize(point.image) < 4 * MIB:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(AssertionError):
            if gone(marked):
                break
        time.sleep(0.05)
    assert gone(marked)
    result = backup(point, settings, Watch())
    assert not result["resumed"]
    assert holds(point.image, guest.path)


def test_servers_that_nobody_told_to_end():
    """nbdcopy was killed before they had seen it."""
    started = time.monotonic()
    outcome = copy.run(["sh", "-c", "sleep 600 & kill -KILL $$"], copy.RequestLog())
    assert time.monotonic() - started < 20
    assert "was ended by SIGKILL" in str(outcome.error)
    assert not outcome.orderly


def test_resumed_full_reads_only_what_is_missing(guest, settings, tmp_path, marked):
    guest.write(0, random.Random(3).randbytes(40 * MIB))
    point = task(guest, tmp_path / "i.qcow2")
    interrupted(point, settings, marked)
    there = areas.total(images.present(point.image))
    assert there
    result = backup(point, settings, Watch())
    assert result["resumed"]
    assert result["bytes_read"] == 40 * MIB - there
    assert holds(point.image, guest.path)


def test_image_spoilt_after_the_interruption_is_not_gone_on_with(guest, settings, tmp_path, marked):
    guest.write(0, random.Random(7).randbytes(20 * MIB).hex().encode())
    point = task(guest, tmp_path / "i.qcow2")
    interrupted(point, settings, marked)
    layers = subprocess.run(
        ["qemu-img", "check", "--output=json", "-f", "qcow2", point.image], check=True, capture_output=True
    )
    end = json.loads(layers.stdout)["image-end-offset"]
    with open(point.image, "r+b") as stream:
        # The very last one may hold little but padding.
        stream.seek(end - 4 * CLUSTER)
        stream.write(bytes(4 * CLUSTER))
    result = backup(point, settings, Watch())
    assert not result["resumed"]
    assert holds(point.image, guest.path)


def test_broken_disk(guest, settings, tmp_path):
    guest.scatter(30)
    point = task(guest, tmp_path / "i.qcow2")
    broken = replace(point, disk=FileDisk(guest.path, ("error",), ("error-pread-rate=50%",)))
    with pytest.raises(CopyFailed, match="injecting EIO error into pread"):
        backup(broken, settings, Watch())
    backup(point, settings, Watch())
    assert holds(point.image, guest.path)


def test_missing_disk(tmp_path, settings):
    point = jobs.Task("Hard disk 1", FileDisk(tmp_path / "none"), str(tmp_path / "i.qcow2"), MIB)
    with pytest.raises(CopyFailed, match="No such file or directory"):
        backup(point, settings, Watch())


def test_what_the_disk_says_goes_first(guest, settings, tmp_path):
    disk = FileDisk(tmp_path / "none", error=CopyFailed("The disk is locked.", "Wait."))
    with pytest.raises(CopyFailed, match=r"The disk is locked\. Wait\."):
        backup(jobs.Task("d", disk, str(tmp_path / "i.qcow2"), MIB), settings, Watch())


def test_missing_parent(guest, settings, tmp_path):
    with pytest.raises(InvalidInput, match="does not exist"):
        backup(task(guest, tmp_path / "i.qcow2", work=[], parent=str(tmp_path / "none.qcow2")), settings, Watch())


def test_parent_that_is_no_image(guest, settings, tmp_path):
    parent = tmp_path / "parent.qcow2"
    parent.write_bytes(b"not an image" * 100)
    with pytest.raises(Damaged, match="not in qcow2 format"):
        backup(task(guest, tmp_path / "i.qcow2", work=[], parent=str(parent)), settings, Watch())


@pytest.mark.parametrize("name", ["/etc/passwd", "nbd://host/x", "json:{}"])
def test_backing_names_that_lead_elsewhere_are_not_followed(tmp_path, name):
    image = str(tmp_path / "i.qcow2")
    images.create(image, MIB)
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", name, image], check=True)
    with pytest.raises(Damaged, match="no image beside it"):
        images.chain(image)


def test_loop_of_images(tmp_path):
    image = str(tmp_path / "i.qcow2")
    images.create(image, MIB)
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "i.qcow2", image], check=True)
    with pytest.raises(Damaged, match="lead back"):
        images.chain(image)


@pytest.fixture
def small(tmp_path):
    """A file system of 16 MiB."""
    if os.geteuid():
        pytest.skip("only root can mount")
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", where], check=True)
    yield where
    subprocess.run(["umount", "-l", where], check=True)


def test_no_space_in_the_middle(guest, settings, small):
    guest.write(0, random.Random(4).randbytes(40 * MIB))
    with pytest.raises(NoSpace, match="No space left on device") as failure:
        backup(task(guest, small / "i.qcow2"), settings, Watch())
    assert "Make room" in failure.value.next_step
    assert os.listdir(small) == []


def test_no_space_from_the_start(guest, settings, small):
    (small / "filler").write_bytes(bytes(15 * MIB))
    with contextlib.suppress(OSError), open(small / "filler", "ab", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    with pytest.raises(NoSpace):
        jobs.run_all(backup, [task(guest, small / "i.qcow2")], settings, Watch(), 1)


def test_several_disks_and_one_fails(guest, settings, tmp_path):
    guest.scatter(5)
    good = task(guest, tmp_path / "good.qcow2")
    bad = replace(good, name="Hard disk 2", disk=FileDisk(tmp_path / "none"), image=str(tmp_path / "bad.qcow2"))
    with pytest.raises(CopyFailed, match=r"1 of 2 disks failed\. Hard disk 2:") as failure:
        jobs.run_all(backup, [bad, good], settings, Watch(), 2)
    assert [result["image"] for result in failure.value.details["disks"]] == [good.image]
    assert [item["disk"] for item in failure.value.details["failed_disks"]] == ["Hard disk 2"]
    assert holds(good.image, guest.path)


def test_timeout_leaves_what_can_be_gone_on_with(guest, settings, tmp_path, marked):
    guest.write(0, random.Random(5).randbytes(40 * MIB))
    point = task(guest, tmp_path / "i.qcow2")
    with pytest.raises(TimedOut):
        backup(slow(point), replace(settings, request_depth=1, request_size=CLUSTER), Watch(timeout=4))
    assert gone(marked)
    assert backup(point, settings, Watch())["resumed"]
    assert holds(point.image, guest.path)


def test_watched(guest, settings, tmp_path, marked):
    """Progress goes up to the whole; without a watcher the copy ends."""
    guest.write(0, random.Random(6).randbytes(40 * MIB))
    point = task(guest, tmp_path / "i.qcow2")
    where = tmp_path / "watch"
    where.mkdir()
    (where / "watched").touch()
    with (
        once(lambda: os.path.exists(point.image), (where / "watched").unlink),
        pytest.raises(BackupError, match="playbook that started it is gone"),
    ):
        backup(slow(point), replace(settings, request_depth=1, request_size=CLUSTER), Watch(str(where)))
    assert gone(marked)
    (where / "watched").touch()
    with pytest.raises(BackupError, match="playbook that started it is gone"):
        backup(slow(point), replace(settings, request_depth=1, request_size=CLUSTER), Watch(str(where), patience=0.5))
    (where / "watched").touch()
    backup(point, settings, Watch(str(where)))
    events = [json.loads(line) for line in (where / "progress").read_text().splitlines()]
    assert int((where / "pid").read_text()) == os.getpid()
    assert {event["stage"] for event in events} == {"copy", "hash"}
    assert all(0 <= event["done"] <= event["total"] for event in events)
    assert events[-1]["done"] == events[-1]["total"]


def test_cost_follows_the_changes(settings, tmp_path):
    """One TiB, a few scattered changes: read no more than a tenth in vain, in seconds, with little memory."""
    guest = Guest(tmp_path / "disk.raw", 1 << 40)
    block = os.urandom(CLUSTER)
    for start in range(0, 1 << 40, 1 << 32):
        guest.write(start, block)
    full = str(tmp_path / "full.qcow2")
    images.create(full, guest.capacity)
    result = backup(task(guest, tmp_path / "i.qcow2", work=guest.take_changes(), parent=full), settings, Watch())
    assert result["bytes_read"] == 256 * CLUSTER
    assert result["seconds"] < 20
