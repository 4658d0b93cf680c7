# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the mark by which a later run knows a snapshot as ours.

The stamp is one line of the snapshot's description, after the user's own text::

    holdfast.backup {"job": "nightly", "run": "5b6f...", "expires": "2026-11-21T02:00:00Z"}

Only a line written exactly like this counts. Nothing is ever concluded from a snapshot's name. Those of a set also tell
the power state that the VM had (``"power": "poweredOn"``): a revert that was killed halfway has changed it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone

MARK = "holdfast.backup "
POWER = ("poweredOn", "poweredOff", "suspended")


@dataclass(frozen=True)
class Stamp:
    """Whose snapshot this is (``job``), from which ``run``, and until when it may live (UTC; None for ever).

    ``power`` is the power state of the VM when the snapshot was taken; None if nobody asked for it to be noted.
    """

    job: str
    run: str
    expires: datetime | None = None
    power: str | None = None

    def expired(self, now: datetime) -> bool:
        return self.expires is not None and self.expires <= now

    def as_dict(self) -> dict[str, str | None]:
        return {"job": self.job, "run": self.run, "expires": timestamp(self.expires) if self.expires else None}


def timestamp(moment: datetime) -> str:
    """``2026-11-21T02:00:00Z``, in whole seconds."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def precise(moment: datetime) -> str:
    """``2026-11-21T02:00:00.123456+00:00``: the form of the peers, which playbooks take apart."""
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds")


def join(text: str, stamp: Stamp | None) -> str:
    """The description that holds the user's text and the stamp."""
    if stamp is None:
        return text
    line = _line(stamp)
    return f"{text}\n{line}" if text else line


def split(description: str) -> tuple[str, Stamp | None]:
    """The user's text and the stamp of a description; undoes :func:`join`.

    The last line that is a stamp counts, so text that somebody added below it changes nothing.
    """
    lines = description.split("\n")
    for position in reversed(range(len(lines))):
        stamp = _parse(lines[position])
        if stamp is not None:
            return "\n".join(lines[:position] + lines[position + 1 :]), stamp
    return description, None


def _line(stamp: Stamp) -> str:
    return MARK + json.dumps({**stamp.as_dict(), **({"power": stamp.power} if stamp.power else {})})


def _parse(line: str) -> Stamp | None:
    if not line.startswith(MARK):
        return None
    try:
        content = json.loads(line[len(MARK) :])
        expires = content["expires"]
        until = None
        if expires is not None:
            until = datetime.strptime(expires, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
        stamp = Stamp(job=content["job"], run=content["run"], expires=until, power=content.get("power"))
    except (ValueError, TypeError, KeyError):
        return None
    exact = isinstance(stamp.job, str) and isinstance(stamp.run, str) and stamp.power in (None, *POWER)
    return stamp if exact and _line(stamp) == line else None
