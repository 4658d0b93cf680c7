# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the rules by which restore points stay.

Pure: moments in, reasons out. Each rule goes from the newest point to the oldest and keeps the newest of each period.

``restic``
    The rules know nothing of each other. While a rule has found fewer than it may keep, it keeps the oldest point too,
    so that history grows to its full length. A pinned point counts like any other.
``proxmox``
    The rules work one after another, the finest first. A period of which an earlier rule keeps a point is not counted,
    nor is a pinned point; what shares its period with one that a rule keeps is of no use to the later rules.

Periods are those of a clock on the wall in a time zone; weeks are ISO weeks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Callable, Iterable, Mapping, Sequence, Tuple
from zoneinfo import ZoneInfo

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput

RESTIC, PROXMOX = SEMANTICS = ("restic", "proxmox")
ALL = -1
PINNED = "pinned"

_UNITS = {"y": "years", "m": "months", "d": "days", "h": "hours"}
_LARGEST = 10**6


@dataclass(frozen=True)
class Span:
    """A length of time by the calendar, and how it was written."""

    text: str
    years: int = 0
    months: int = 0
    days: int = 0
    hours: int = 0

    def before(self, moment: datetime) -> datetime:
        """This long before a moment, by the clock of its zone.

        A day that a month does not have runs over into the next: a month before the 31st of October is the 1st of
        October.
        """
        month = moment.year * 12 + moment.month - 1 - self.years * 12 - self.months
        try:
            first = moment.replace(year=month // 12, month=month % 12 + 1, day=1)
            day = first + timedelta(days=moment.day - 1 - self.days)
            # Days are days of the calendar, hours are hours: only in UTC are all of the same length.
            return day.astimezone(timezone.utc) - timedelta(hours=self.hours)
        except (ValueError, OverflowError):
            return datetime.min.replace(tzinfo=timezone.utc)


@dataclass(frozen=True)
class Candidate:
    """A restore point that the rules judge."""

    id: str
    moment: datetime
    pinned: bool = False


@dataclass(frozen=True)
class Rules:
    """What stays. Counts: 0 is off, :data:`ALL` keeps one of every period.

    :param counts: by the name of a period (:data:`PERIODS`)
    :param within: everything that is at most so much older than the newest point
    :param within_periods: the newest of each period in this time before the newest point
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    within: Span | None = None
    within_periods: Mapping[str, Span] = field(default_factory=dict)
    semantics: str = RESTIC
    zone: tzinfo = timezone.utc

    @property
    def are_none(self) -> bool:
        """Whether nothing is asked for: then everything stays."""
        return not (any(self.counts.values()) or self.within or self.within_periods)


def _hour(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H")


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")


def _week(moment: datetime) -> str:
    year, week, _day_of_week = moment.isocalendar()
    return f"{year}-W{week:02d}"


def _month(moment: datetime) -> str:
    return moment.strftime("%Y-%m")


def _year(moment: datetime) -> str:
    return moment.strftime("%Y")


_NAMES: dict[str, Callable[[datetime], str]] = {
    "hourly": _hour, "daily": _day, "weekly": _week, "monthly": _month, "yearly": _year,
}  # fmt: skip
LAST = "last"
PERIODS = (LAST, *_NAMES)
"""The rules that count, the finest first."""


def span(text: str) -> Span:
    """The length of time in ``1y5m7d2h``: years, months, days and hours.

    :raises InvalidInput: it has another form, or is nothing
    """
    given = text.strip().lower()
    parts = re.findall(r"([0-9]{1,7})([ymdh])", given)
    found = {_UNITS[unit]: int(number) for number, unit in parts}
    if not parts or len(found) != len(parts) or "".join(map("".join, parts)) != given or not any(found.values()):
        raise InvalidInput(
            f"{text!r} is not a length of time.", "Write years, months, days and hours, in a form like 7d, 36h or 1y6m."
        )
    if max(found.values()) > _LARGEST:
        raise InvalidInput(f"{text!r} is too long a time.", "Leave the rule out, or give -1 to a count.")
    return Span(given, **found)


def zone(name: str) -> tzinfo:
    """The time zone of this name.

    :raises InvalidInput: the machine knows none
    """
    if name.upper() == "UTC":
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise InvalidInput(
            f"The time zone {name!r} is not known here.", "Give a name like Europe/Berlin, or install tzdata."
        ) from error


def judge(candidates: Iterable[Candidate], rules: Rules, now: datetime) -> dict[str, list[str]]:
    """Why each point stays, by its ID; no reason means that no rule keeps it.

    :param now: a point of a later moment is not taken for the newest of which ``within`` counts
    """
    ordered = sorted(candidates, key=lambda one: (one.moment, one.id), reverse=True)
    reasons: dict[str, list[str]] = {one.id: [PINNED] if one.pinned else [] for one in ordered}
    if rules.are_none:
        for found in reasons.values():
            found.append("no rule is set")
        return reasons
    local = [(one, one.moment.astimezone(rules.zone)) for one in ordered]
    _keep_within(local, rules, now, reasons)
    (_as_proxmox if rules.semantics == PROXMOX else _as_restic)(local, rules, reasons)
    return reasons


_Local = Sequence[Tuple[Candidate, datetime]]


def _keep_within(local: _Local, rules: Rules, now: datetime, reasons: dict[str, list[str]]) -> None:
    newest = next((moment for one, moment in local if one.moment <= now), None)

    def inside(length: Span) -> list[tuple[Candidate, datetime]]:
        # All of them are of the future: the clock says nothing then, and nothing may go for it.
        return [(one, moment) for one, moment in local if newest is None or one.moment > length.before(newest)]

    if rules.within is not None:
        for one, _moment in inside(rules.within):
            reasons[one.id].append(f"within {rules.within.text}")
    for period, length in rules.within_periods.items():
        last = None
        for one, moment in inside(length):
            name = _NAMES[period](moment)
            oldest = rules.semantics == RESTIC and one is local[-1][0]
            if name != last or oldest:
                found = f"{period} {name}" + (", the oldest" if name == last else ",")
                reasons[one.id].append(f"{found} within {length.text}")
                last = name


def _as_restic(local: _Local, rules: Rules, reasons: dict[str, list[str]]) -> None:
    for period in PERIODS:
        left, last = rules.counts.get(period, 0), None
        for number, (one, moment) in enumerate(local):
            if not left:
                break
            name = _period_name(period, one, moment)
            oldest = number == len(local) - 1
            if name != last or oldest:
                reasons[one.id].append(_reason(period, moment) + (", the oldest" if name == last else ""))
                last = name
                left -= left > 0


def _as_proxmox(local: _Local, rules: Rules, reasons: dict[str, list[str]]) -> None:
    kept = {one.id for one, _moment in local if reasons[one.id] and not one.pinned}
    useless: set[str] = set()
    for period in PERIODS:
        count = rules.counts.get(period, 0)
        if not count:
            continue
        earlier = {_period_name(period, one, moment) for one, moment in local if one.id in kept}
        found: set[str] = set()
        for one, moment in local:
            name = _period_name(period, one, moment)
            if one.pinned or one.id in kept or one.id in useless or name in earlier:
                continue
            if name in found:
                useless.add(one.id)
                continue
            if len(found) == count:
                break
            found.add(name)
            kept.add(one.id)
            reasons[one.id].append(_reason(period, moment))


def _period_name(period: str, one: Candidate, moment: datetime) -> str:
    return one.id if period == LAST else _NAMES[period](moment)


def _reason(period: str, moment: datetime) -> str:
    return period if period == LAST else f"{period} {_NAMES[period](moment)}"
