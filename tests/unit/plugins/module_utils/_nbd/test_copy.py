# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is made of the log of requests and of the messages of failed copies."""

from __future__ import annotations

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import CopyFailed, NoSpace
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import copy
from hypothesis import given
from hypothesis import strategies as st

KINDS = ("Read", "Write", "Zero", "Trim", "Extents", "Cache", "Flush")


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 1 << 45), st.integers(1, 1 << 25))),
    st.integers(1, 50),
)
def test_tally(requests, cut):
    """The sums come out, wherever the pipe cuts the log into pieces."""
    log = b"2026-11-20 10:00:00.000000 connection=1 Connect export='' size=0x4000 ...\n"
    for number, (kind, offset, count) in enumerate(requests):
        start = f"2026-11-20 10:00:00.{number:06} connection=1 {kind} id={number} offset={offset:#x} count={count:#x}"
        end = f"2026-11-20 10:00:00.{number:06} connection=1 ...{kind} id={number} return=0"
        log += f"{start} fua=0 ...\n{end}\n".encode()
    tally = copy.Tally()
    for start in range(0, len(log), cut):
        tally.feed(log[start : start + cut])
    assert tally.read == sum(count for kind, offset, count in requests if kind == "Read")
    assert tally.written == sum(count for kind, offset, count in requests if kind == "Write")
    ends = [offset + count for kind, offset, count in requests if kind in ("Read", "Write", "Zero", "Trim")]
    starts = [offset for kind, offset, count in requests if kind == "Extents"]
    assert tally.position == max(ends + starts, default=0)


READ_FAILED = "nbdcopy: read at offset 131072000 failed: Input/output error"
GONE = "nbdcopy: read at offset 270532608 failed: Transport endpoint is not connected"
ECHO = "qemu-nbd: Disconnect client, due to: Failed to send reply: Unable to write to socket: Broken pipe"


@pytest.mark.parametrize(
    ("ended", "messages", "kind", "text"),
    [
        ({"nbdcopy": 1}, [READ_FAILED, ECHO], CopyFailed, READ_FAILED),
        ({"nbdcopy": 1, "nbdkit": -9, "qemu-nbd": 0}, [GONE, ECHO], CopyFailed, "nbdkit was ended by SIGKILL"),
        ({"nbdcopy": -9}, [], CopyFailed, "nbdcopy was ended by SIGKILL"),
        (
            {"nbdcopy": 1, "nbdkit": -6},
            [READ_FAILED, "nbdkit: x: Assertion `sock >= 0' failed."],
            CopyFailed,
            READ_FAILED,
        ),
        ({"nbdcopy": 1, "nbdkit": -11}, [GONE, ECHO], CopyFailed, "nbdkit was ended by SIGSEGV"),
        (
            {"nbdcopy": 1},
            ["nbdcopy: write at offset 212860928 failed: No space left on device", ECHO],
            NoSpace,
            "No space left on device",
        ),
        ({"nbdcopy": 1}, [ECHO], CopyFailed, ECHO),
        ({"nbdcopy": 1}, [], CopyFailed, "there is no message"),
    ],
)
def test_failure_names_the_cause_and_not_the_echo(ended, messages, kind, text):
    error = copy._failure(ended, "\n".join(messages))
    assert error.__class__ is kind
    assert text in error.message
    assert text == ECHO or ECHO not in error.message
    assert error.next_step
    assert error.details["messages"] == [message.rstrip(".") for message in messages]
