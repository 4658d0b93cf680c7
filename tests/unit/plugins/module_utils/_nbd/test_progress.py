# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The copy's side of being watched."""

from __future__ import annotations

import json
import os
import time

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError, TimedOut
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch


@pytest.fixture
def watched(tmp_path):
    (tmp_path / "watched").touch()
    return tmp_path


def test_nobody_watches():
    watch = Watch()
    watch.tell("d", "copy", 1, 2)
    watch.check()


def test_watcher_that_touches_no_more(watched):
    watch = Watch(str(watched), patience=60)
    watch.check()
    os.utime(watched / "watched", (time.time() - 61,) * 2)
    with pytest.raises(BackupError, match="is gone"):
        watch.check()


def test_watcher_that_takes_everything_along(watched):
    watch = Watch(str(watched))
    for name in ("watched", "pid"):
        (watched / name).unlink()
    watched.rmdir()
    watch.tell("d", "copy", 1, 2)
    with pytest.raises(BackupError, match="is gone"):
        watch.check()


def test_stopped_and_timed_out():
    watch = Watch(timeout=0.01)
    time.sleep(0.02)
    with pytest.raises(TimedOut, match=r"0\.01 seconds"):
        watch.check()
    watch.stop()
    with pytest.raises(BackupError, match="was stopped"):
        watch.check()


def test_one_line_a_second_and_the_last_one_always(watched):
    watch = Watch(str(watched))
    for done in range(100):
        watch.tell("a", "copy", done, 100, done)
    watch.tell("b", "copy", 5, 100)
    watch.tell("a", "copy", 120, 100, 77)
    events = [json.loads(line) for line in (watched / "progress").read_text().splitlines()]
    assert [(event["disk"], event["done"], event["passed"]) for event in events] == [
        ("a", 0, 0),
        ("b", 5, 0),
        ("a", 100, 77),
    ]
