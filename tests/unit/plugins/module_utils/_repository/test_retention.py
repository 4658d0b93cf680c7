# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rules of retention: examples that can be counted by hand, and what must hold whatever the rules and times."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._repository import retention
from ansible_collections.holdfast.backup.plugins.module_utils._repository.retention import (
    PERIODS,
    PROXMOX,
    RESTIC,
    Candidate,
    Rules,
)
from hypothesis import given
from hypothesis import strategies as some

NOW = datetime(2027, 1, 1, tzinfo=timezone.utc)
ZONES = some.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Kiritimati"]).map(retention.zone)
MOMENTS = some.datetimes(datetime(2024, 1, 1), datetime(2026, 12, 31), timezones=some.just(timezone.utc))
# Crowds of points: several within an hour or a day are what the rules are about.
STEPS = some.lists(some.sampled_from([1, 7, 31, 60, 359, 720, 1440, 1441, 10080, 44640]), max_size=40)
COUNTS = some.dictionaries(some.sampled_from(PERIODS), some.integers(-1, 6))
SPANS = some.builds(
    lambda years, months, days, hours: retention.span(f"{years}y{months}m{days}d{hours}h"),
    some.integers(0, 1), some.integers(0, 13), some.integers(0, 40), some.integers(1, 50),
)  # fmt: skip
RULES = some.builds(
    Rules,
    COUNTS,
    some.none() | SPANS,
    some.dictionaries(some.sampled_from(PERIODS[1:]), SPANS, max_size=2),
    some.sampled_from(retention.SEMANTICS),
    ZONES,
)


@some.composite
def candidates(draw: some.DrawFn, pins: bool = True) -> list[Candidate]:
    moment, found = draw(MOMENTS), []
    for step in draw(STEPS):
        moment -= timedelta(minutes=step)
        found.append(Candidate(moment.isoformat(), moment, pins and draw(some.integers(0, 9)) == 0))
    return found


def kept(given_points: list[Candidate], rules: Rules) -> set[str]:
    return {name for name, reasons in retention.judge(given_points, rules, NOW).items() if reasons}


def points(*texts: str) -> list[Candidate]:
    return [Candidate(text, datetime.fromisoformat(text).replace(tzinfo=timezone.utc)) for text in texts]


def daily(count: int) -> list[Candidate]:
    """One a day at noon, the newest on the last day of 2026, the oldest first."""
    newest = datetime(2026, 12, 31, 12, tzinfo=timezone.utc)
    moments = [newest - timedelta(days=back) for back in range(count)]
    return [Candidate(f"{moment:%Y-%m-%d}", moment) for moment in reversed(moments)]


def test_each_rule_keeps_the_newest_of_its_periods() -> None:
    reasons = retention.judge(daily(70), Rules({"last": 1, "daily": 3, "weekly": 2, "monthly": 3}), NOW)
    assert {name: why for name, why in reasons.items() if why} == {
        "2026-12-31": ["last", "daily 2026-12-31", "weekly 2026-W53", "monthly 2026-12"],
        "2026-12-30": ["daily 2026-12-30"],
        "2026-12-29": ["daily 2026-12-29"],
        "2026-12-27": ["weekly 2026-W52"],
        "2026-11-30": ["monthly 2026-11"],
        "2026-10-31": ["monthly 2026-10"],
    }


def test_history_grows_to_its_full_length() -> None:
    # Without the oldest one nothing would ever become a year old.
    reasons = retention.judge(daily(40), Rules({"yearly": 3}), NOW)
    assert {name for name, why in reasons.items() if why} == {"2026-12-31", "2026-11-22"}
    assert reasons["2026-11-22"] == ["yearly 2026, the oldest"]


def test_proxmox_counts_no_period_that_an_earlier_rule_has() -> None:
    reasons = retention.judge(daily(70), Rules({"last": 2, "daily": 2, "weekly": 1}, semantics=PROXMOX), NOW)
    assert {name: why for name, why in reasons.items() if why} == {
        "2026-12-31": ["last"],
        "2026-12-30": ["last"],
        "2026-12-29": ["daily 2026-12-29"],
        "2026-12-28": ["daily 2026-12-28"],
        "2026-12-27": ["weekly 2026-W52"],
    }


def test_proxmox_skips_what_shares_its_period_with_one_that_is_kept() -> None:
    given_points = points(
        "2026-06-03T20:00", "2026-06-03T08:00", "2026-06-02T20:00", "2026-06-02T08:00", "2026-05-02T08:00"
    )
    rules = Rules({"last": 1, "daily": 1, "monthly": 2}, semantics=PROXMOX)
    assert kept(given_points, rules) == {"2026-06-03T20:00", "2026-06-02T20:00", "2026-05-02T08:00"}


def test_proxmox_takes_for_no_later_rule_what_an_earlier_one_passed_over() -> None:
    # The 27th of February is in the week of the 1st of March, so it does not stand for its month.
    given_points = points("2026-03-04T12:00", "2026-03-01T12:00", "2026-02-27T12:00", "2026-02-20T12:00")
    rules = Rules({"daily": 1, "weekly": 1, "monthly": 1}, semantics=PROXMOX)
    assert kept(given_points, rules) == {"2026-03-04T12:00", "2026-03-01T12:00", "2026-02-20T12:00"}


def test_proxmox_does_not_count_pinned_points() -> None:
    given_points = [Candidate(one.id, one.moment, one.id == "2026-12-30") for one in daily(5)]
    assert kept(given_points, Rules({"last": 2}, semantics=PROXMOX)) == {"2026-12-31", "2026-12-30", "2026-12-29"}
    assert kept(given_points, Rules({"last": 2})) == {"2026-12-31", "2026-12-30"}
    # Nor does it stand for its day: the other one of the day does.
    morning = Candidate("morning", datetime(2026, 12, 30, 8, tzinfo=timezone.utc))
    found = kept([*given_points, morning], Rules({"daily": 2}, semantics=PROXMOX))
    assert found == {"2026-12-31", "2026-12-30", "morning"}


def test_zone_decides_periods() -> None:
    given_points = points("2026-06-01T21:00", "2026-06-01T23:00")  # in Berlin the second is of the next day
    assert kept(given_points, Rules({"daily": 5})) == {"2026-06-01T21:00", "2026-06-01T23:00"}  # the oldest
    assert kept(given_points, Rules({"daily": 5}, semantics=PROXMOX)) == {"2026-06-01T23:00"}
    berlin = Rules({"daily": 5}, semantics=PROXMOX, zone=retention.zone("Europe/Berlin"))
    assert len(kept(given_points, berlin)) == 2


def test_days_are_those_of_the_calendar() -> None:
    # On the 25th of October 2026 the day in Berlin has 25 hours.
    zone = retention.zone("Europe/Berlin")
    moment = datetime(2026, 10, 25, 12, tzinfo=zone)
    assert retention.span("1d").before(moment) == datetime(2026, 10, 24, 12, tzinfo=zone)
    assert retention.span("24h").before(moment) == datetime(2026, 10, 24, 13, tzinfo=zone)


@pytest.mark.parametrize(
    ("length", "before"),
    [
        ("1m", "2026-10-01T12:00"),
        ("1y", "2025-10-31T12:00"),
        ("32y", "1994-10-31T12:00"),
        ("1d12h", "2026-10-30T00:00"),
    ],
)
def test_lengths_of_time(length: str, before: str) -> None:
    moment = datetime(2026, 10, 31, 12, tzinfo=timezone.utc)
    assert retention.span(length).before(moment) == datetime.fromisoformat(before).replace(tzinfo=timezone.utc)


def test_longer_than_the_calendar_keeps_everything() -> None:
    assert len(kept(daily(30), Rules(within=retention.span("9999y")))) == 30


@pytest.mark.parametrize("text", ["", "7", "d", "7d7d", "7w", "1d 2h", "-1d", "1.5d", "0d", "7dx", "9999999y"])
def test_no_length_of_time(text: str) -> None:
    with pytest.raises(InvalidInput):
        retention.span(text)


@pytest.mark.parametrize("name", ["Europe/Nowhere", "../../etc/passwd", "/etc/localtime", "", "Europe"])
def test_no_zone(name: str) -> None:
    with pytest.raises(InvalidInput):
        retention.zone(name)


def test_clock_that_ran_ahead_lets_nothing_go() -> None:
    ahead = Candidate("ahead", NOW + timedelta(days=400))
    given_points = [*daily(10), ahead]
    assert kept(given_points, Rules(within=retention.span("5d"))) == {one.id for one in daily(5)} | {"ahead"}
    assert kept([ahead], Rules(within=retention.span("1h"))) == {"ahead"}


@given(candidates(), RULES)
def test_pins_stay_and_no_rule_keeps_all(given_points: list[Candidate], rules: Rules) -> None:
    found = kept(given_points, rules)
    assert {one.id for one in given_points if one.pinned} <= found
    nothing = Rules({}, semantics=rules.semantics)
    assert kept(given_points, nothing) == {one.id for one in given_points}


@given(candidates(), RULES, some.randoms(use_true_random=False))
def test_order_does_not_matter(given_points: list[Candidate], rules: Rules, random: object) -> None:
    shuffled = list(given_points)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert retention.judge(shuffled, rules, NOW) == retention.judge(given_points, rules, NOW)


@given(candidates(), RULES, some.sampled_from(PERIODS), some.integers(1, 5))
def test_more_never_keeps_less(given_points: list[Candidate], rules: Rules, period: str, more: int) -> None:
    if rules.semantics == PROXMOX or rules.are_none:
        return  # there a rule that keeps more leaves less to the coarser ones; see the next test
    count = rules.counts.get(period, 0)
    for larger in (retention.ALL, count + more if count >= 0 else retention.ALL):
        raised = Rules({**rules.counts, period: larger}, rules.within, rules.within_periods, RESTIC, rules.zone)
        assert kept(given_points, rules) <= kept(given_points, raised)


@given(candidates(), some.sampled_from(PERIODS), some.integers(1, 6), ZONES)
def test_one_rule_of_proxmox_keeps_so_many(
    given_points: list[Candidate], period: str, count: int, zone: object
) -> None:
    unpinned = [Candidate(one.id, one.moment) for one in given_points]
    found = kept(unpinned, Rules({period: count}, semantics=PROXMOX, zone=zone))  # type: ignore[arg-type]
    more = kept(unpinned, Rules({period: count + 1}, semantics=PROXMOX, zone=zone))  # type: ignore[arg-type]
    assert found <= more
    assert len(found) <= count


@given(candidates(pins=False), RULES)
def test_newest_stays_whatever_the_rules(given_points: list[Candidate], rules: Rules) -> None:
    if given_points and (rules.are_none or any(rules.counts.values()) or rules.within):
        newest = max(given_points, key=lambda one: one.moment)
        assert newest.id in kept(given_points, rules)


@given(candidates(pins=False), some.sampled_from(PERIODS[1:]), some.sampled_from(retention.SEMANTICS), ZONES)
def test_all_of_a_period(given_points: list[Candidate], period: str, semantics: str, zone: ZoneInfo) -> None:
    found = kept(given_points, Rules({period: retention.ALL}, semantics=semantics, zone=zone))
    newest = {}
    for one in sorted(given_points, key=lambda one: one.moment):
        newest[retention._NAMES[period](one.moment.astimezone(zone))] = one.id
    extra = found - set(newest.values())
    assert set(newest.values()) <= found
    oldest = min((one.moment.isoformat() for one in given_points), default=None)
    assert extra <= ({oldest} if semantics == RESTIC else set())


@given(candidates(), RULES)
def test_again_changes_nothing(given_points: list[Candidate], rules: Rules) -> None:
    if rules.semantics == PROXMOX and any(one.pinned for one in given_points):
        return  # a pinned one counts for nothing, so what it shared its period with may go
    found = kept(given_points, rules)
    assert kept([one for one in given_points if one.id in found], rules) == found
