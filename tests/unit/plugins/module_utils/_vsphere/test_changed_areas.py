# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The decision per disk, against servers that are honest, clumsy or lying."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    ConnectionFailed,
    InvalidInput,
    NotFound,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas as arithmetic
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import changed_areas as subject
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import reverts
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.changed_areas import Host, Page, Since
from hypothesis import given
from hypothesis import strategies as st

KIB = 1024
CAPACITY = 1 << 20
BEFORE, NOW = "52 aa-bb/4", "52 aa-bb/7"
MOMENT = datetime(2026, 11, 19, 2, 15, tzinfo=timezone.utc)


def disk(**changes):
    known = {"key": 2000, "label": "Hard disk 1", "backing_uuid": "uuid-1", "capacity": CAPACITY, "change_id": NOW}
    return SimpleNamespace(**{**known, **changes})


def since(**changes):
    return Since(**{"change_id": BEFORE, "capacity": CAPACITY, "backing_uuid": "uuid-1", **changes})


def never(key, offset, change_id):
    raise AssertionError("the server was asked although the answer could not be used")


def decide(query=never, of=None, record=None, host=None, reverted=None):
    return subject.decide(of or disk(), record or since(), query, arithmetic.normalise, host, reverted)


def serve(areas, cuts=()):
    """An honest server of the areas that ends its answers at each of the cuts."""
    ends = [*sorted(cut for cut in cuts if 0 < cut < CAPACITY), CAPACITY]

    def query(key, offset, change_id):
        assert (key, change_id) == (2000, BEFORE)
        end = next(end for end in ends if end > offset)
        return Page(offset, end - offset, arithmetic.intersect(areas, [(offset, end - offset)]))

    return query


@st.composite
def blocks(draw):
    numbers = draw(st.sets(st.integers(0, CAPACITY // (64 * KIB) - 1)))
    return arithmetic.normalise([(n * 64 * KIB, 64 * KIB) for n in numbers], CAPACITY)


@given(blocks(), st.lists(st.integers(1, CAPACITY // 512 - 1).map(lambda sector: sector * 512)))
def test_every_page_counts(areas, cuts):
    decision = decide(serve(areas, cuts))
    assert (decision.kind, decision.reason, decision.areas) == ("incremental", None, areas)


@given(st.lists(st.tuples(st.integers(0, CAPACITY - 1), st.integers(1, 200_000)), max_size=8))
def test_overlaps_and_disorder_lose_nothing(raw):
    raw = [(start, min(length, CAPACITY - start)) for start, length in raw]
    decision = decide(lambda key, offset, change_id: Page(0, CAPACITY, raw))
    assert decision.areas == arithmetic.normalise(raw, CAPACITY, 512)


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (Page(0, 0, []), "covers 0 bytes"),
        (Page(0, -512, []), "covers -512 bytes"),
        (Page(512, CAPACITY, []), "from 512"),
        (Page(-512, CAPACITY, []), "from -512"),
        (Page(0, CAPACITY + 512, []), f"covers {CAPACITY + 512} bytes"),
        (Page(0, CAPACITY, [(-512, 1024)]), "does not lie on a disk"),
        (Page(0, CAPACITY, [(0, -1)]), "does not lie on a disk"),
        (Page(0, CAPACITY, [(CAPACITY - 512, 1024)]), "does not lie on a disk"),
    ],
)
def test_a_lying_answer_is_a_full_copy(page, says):
    decision = decide(lambda key, offset, change_id: page)
    assert (decision.kind, decision.areas) == ("full", None)
    assert decision.reason.startswith("the changed areas cannot be trusted: ")
    assert says in decision.reason


def test_a_later_page_that_starts_elsewhere_is_a_full_copy():
    def gap(key, offset, change_id):
        return Page(offset, 4096, []) if offset == 0 else Page(offset + 4096, CAPACITY - offset, [])

    assert f"covers {CAPACITY - 4096} bytes from 8192" in decide(gap).reason


def test_endless_answers_end(monkeypatch):
    monkeypatch.setattr(subject, "MAX_PAGES", 50)
    calls = []

    def crawl(key, offset, change_id):
        calls.append(offset)
        return Page(offset, 1, [])

    assert "50 answers covered only 50 of" in decide(crawl).reason
    assert len(calls) == 50


@pytest.mark.parametrize(
    ("of", "record", "says"),
    [
        ({}, {"reason": "chain is 20 long"}, "chain is 20 long"),
        ({}, {"backing_uuid": "uuid-0"}, "the disk was replaced: its backing UUID was uuid-0"),
        ({}, {"change_id": None}, "no change ID"),
        ({}, {"change_id": ""}, "no change ID"),
        ({"change_id": None}, {}, "was not active"),
        ({"change_id": ""}, {"change_id": "*"}, "was not active"),
        ({"capacity": 2 * CAPACITY}, {}, f"the capacity changed from {CAPACITY} to {2 * CAPACITY} bytes"),
        ({"change_id": "52 aa-cc/7"}, {}, "another product or a reset restarted change tracking"),
        ({"change_id": "52 aa-bb/4"}, {}, "did not advance"),
        ({"change_id": "52 aa-bb/3"}, {}, "did not advance"),
        ({"change_id": "junk"}, {}, "'junk' is not a change ID"),
        ({}, {"change_id": "52 aa-bb/x"}, "is not a change ID"),
    ],
)
def test_a_broken_chain_is_a_full_copy_without_asking(of, record, says):
    decision = decide(never, disk(**of), since(**record))
    assert (decision.kind, decision.areas) == ("full", None)
    assert says in decision.reason


@pytest.mark.parametrize("after", [timedelta(days=1), timedelta(0), -reverts.MARGIN])
def test_a_revert_after_the_snapshot_is_a_full_copy_whatever_the_change_ids_say(after):
    decision = decide(record=since(snapshot_time=MOMENT), reverted=MOMENT + after)
    assert (decision.kind, "reverted to a snapshot at 2026-11-" in decision.reason) == ("full", True)


@pytest.mark.parametrize(
    ("moment", "reverted"), [(MOMENT, MOMENT - 2 * reverts.MARGIN), (None, MOMENT), (MOMENT, None)]
)
def test_an_older_revert_does_no_harm(moment, reverted):
    assert decide(serve([]), record=since(snapshot_time=moment), reverted=reverted).kind == "incremental"


def test_a_disk_without_record_is_a_full_copy():
    decision = subject.decide(disk(), None, never, arithmetic.normalise)
    assert (decision.kind, decision.reason) == ("full", "no earlier restore point has this disk")


@pytest.mark.parametrize(
    ("version", "build", "source"),
    [
        ("4.1.0", "260247", "KB 2090639"),
        ("5.5.0", "9999999", "KB 2090639"),
        ("6.0.0", "2494585", "KB 2136854"),
        ("6.0.0", "unknown", "KB 2136854"),
        ("6.0.0", "3073146", None),
        ("6.5.0", "1", None),
        ("8.0.3", "24022510", None),
    ],
)
def test_hosts_known_to_lose_changes_are_not_asked(version, build, source):
    host = Host(version, build)
    if source is None:
        assert decide(serve([]), host=host).kind == "incremental"
    else:
        decision = decide(never, host=host)
        assert decision.kind == "full"
        assert f"ESXi {version} build {build} loses changes (VMware {source})" == decision.reason


@pytest.mark.parametrize("name", ["FileFault", "InvalidArgument", "NotFound", "NoPermission", "SystemError"])
def test_a_fault_is_a_full_copy(name):
    def refuse(key, offset, change_id):
        raise VsphereFault(f"{name}: no", fault=name)

    decision = decide(refuse)
    assert (decision.kind, decision.reason) == ("full", f"the query for changed areas failed: {name}: no")


@pytest.mark.parametrize("error", [NotFound("gone"), ConnectionFailed("cut")])
def test_a_lost_vm_or_server_is_no_reason_for_a_full_copy(error):
    def lose(key, offset, change_id):
        raise error

    with pytest.raises(type(error)):
        decide(lose)


def test_everything_changed_is_worth_a_word():
    decision = decide(lambda key, offset, change_id: Page(0, CAPACITY, [(0, CAPACITY)]))
    assert decision.kind == "incremental"
    assert "Hard disk 1: the whole disk is reported as changed" in decision.warning
    assert decide(serve([(0, CAPACITY - 512)])).warning is None


def test_the_areas_in_use_are_asked_for_by_a_star():
    asked = []

    def query(key, offset, change_id):
        asked.append(change_id)
        return Page(0, CAPACITY, [(0, 512)])

    decision = decide(query, record=Since(change_id="*"))
    assert asked == ["*"]
    assert (decision.kind, decision.areas) == ("full", [(0, 512)])
    assert "deprecated" in decision.warning


@pytest.mark.parametrize(
    ("known", "host", "reason"),
    [
        ({"layered": True}, None, "earlier snapshot"),
        ({"change_id": None}, None, "not active"),
        ({}, Host("6.0.0", "2494585"), "KB 2136854"),
    ],
)
def test_the_areas_in_use_are_not_asked_for_where_they_could_be_wrong(known, host, reason):
    with pytest.raises(subject.NeedsFull, match=reason):
        subject.in_use(disk(**{"layered": False, **known}), never, arithmetic.normalise, host)


@given(st.text(min_size=1).filter(lambda text: text == text.strip()), st.integers(0, 1 << 40))
def test_a_change_id_has_two_parts(tracking, number):
    if "\n" not in tracking and tracking.isprintable():
        assert subject.parse_change_id(f"{tracking}/{number}") == (tracking, number)


@pytest.mark.parametrize("text", ["", "/", "/5", "abc", "abc/", "abc/x", "*", "abc/-1"])
def test_other_texts_are_no_change_id(text):
    with pytest.raises(InvalidInput):
        subject.parse_change_id(text)


# which record speaks of which disk


def two_disks():
    return [disk(), disk(key=2001, label="Hard disk 2", backing_uuid="uuid-2")]


def record(**known):
    return {"parent": "/p", "something": "else", **known}


def test_a_moved_disk_is_known_by_its_backing_uuid():
    found = subject.match([record(key=2000, backing_uuid="uuid-2", capacity="1048576")], two_disks())
    assert found == {2001: Since(backing_uuid="uuid-2", capacity=CAPACITY, parent="/p")}


def test_a_replaced_disk_is_known_by_its_key():
    found = subject.match(
        [record(key=2000, backing_uuid="uuid-0"), record(key=2001, backing_uuid="uuid-2")], two_disks()
    )
    assert {key: since.backing_uuid for key, since in found.items()} == {2000: "uuid-0", 2001: "uuid-2"}


def test_the_key_gives_way_to_the_backing_uuid():
    """Two disks changed places: no record may be taken for the other's."""
    found = subject.match([record(key=2001, backing_uuid="uuid-1"), record(key=2000, backing_uuid="gone")], two_disks())
    assert {key: since.backing_uuid for key, since in found.items()} == {2000: "uuid-1"}


def test_a_disk_that_is_gone_has_no_say():
    assert subject.match([record(key=2007, backing_uuid="uuid-7")], two_disks()) == {}


@pytest.mark.parametrize("selector", [2001, "2001", "Hard disk 2", "UUID-2"])
def test_a_record_by_hand_names_its_disk(selector):
    assert list(subject.match([{"disk": selector, "change_id": "*"}], two_disks())) == [2001]


def test_two_records_of_one_disk_are_refused():
    with pytest.raises(InvalidInput, match="Two records of since speak of the disk 2000"):
        subject.match([{"disk": 2000}, record(backing_uuid="uuid-1")], two_disks())


def test_a_capacity_that_is_no_number_is_refused():
    with pytest.raises(InvalidInput, match="no number of bytes"):
        subject.match([record(backing_uuid="uuid-1", capacity="big")], two_disks())


def test_two_disks_with_one_backing_uuid_are_both_full():
    twins = [disk(), disk(key=2001)]
    found = subject.match([record(backing_uuid="uuid-1", change_id=BEFORE)], twins)
    for twin in twins:
        decision = subject.decide(twin, found[twin.key], never, arithmetic.normalise)
        assert decision.reason == "2 disks have the backing UUID uuid-1"
