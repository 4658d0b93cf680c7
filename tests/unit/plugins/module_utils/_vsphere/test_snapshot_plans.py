# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plans for any tree and any choice: nothing is lost that nobody asked for."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous, InvalidInput, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import snapshot_plans, snapshots, stamps
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_plans import Adjustment, Choice
from ansible_collections.holdfast.backup.tests.unit.plugins.module_utils._vsphere.snapshot_trees import (
    BEGIN,
    BRANCHED,
    forest,
    forests,
    ids,
)
from hypothesis import assume, given
from hypothesis import strategies as st

NOW = BEGIN + timedelta(hours=12)
OURS = [None, *(stamps.Stamp(job, run, BEGIN + timedelta(hours=6)) for job in ("a", "b") for run in ("1", "2"))]


@st.composite
def trees(draw):
    """A VM's snapshots, with few names and stamps, so that they repeat; created in any order."""
    flat = snapshots.flatten(forest(draw(forests(8))))
    current = draw(st.sampled_from([*ids(flat), None]))
    return [
        replace(
            one,
            name=draw(st.sampled_from(["x", "y", "x y"])),
            stamp=draw(st.sampled_from(OURS)),
            created=BEGIN + timedelta(hours=draw(st.integers(0, 24))),
            current=one.id == current,
        )
        for one in flat
    ]


CHOICES = st.builds(
    Choice,
    name=st.sampled_from([None, None, "x", "y", "z"]),
    name_pattern=st.sampled_from([None, "x*", "*"]),
    job=st.sampled_from([None, "a"]),
    run=st.sampled_from([None, "1"]),
    expired_only=st.booleans(),
    older_than=st.sampled_from([None, timedelta(0), timedelta(hours=5)]),
    keep_last=st.sampled_from([None, 0, 1, 3]),
    duplicates=st.sampled_from(["newest", "oldest", "all"]),
).filter(lambda choice: not choice.empty)


def fits(one, choice):
    """Whether a snapshot may be chosen at all, said in another way than the code says it."""
    stamp = one.stamp or stamps.Stamp("", "", NOW + timedelta(days=1))
    return not (
        (choice.name and one.name != choice.name)
        or (choice.name_pattern == "x*" and not one.name.startswith("x"))
        or (choice.job and stamp.job != choice.job)
        or (choice.job and choice.run and stamp.run != choice.run)
        or (choice.older_than is not None and NOW - one.created <= choice.older_than)
        or (choice.expired_only and stamp.expires > NOW)
    )


def carry_out(everything, removal):
    """What vSphere makes of a plan: the IDs that are left."""
    assert removal.everything is False
    there = list(everything)
    for step in removal.steps:
        assert step.snapshot.id in ids(there), "nothing is removed twice"
        gone = snapshots.with_descendants(there, [step.snapshot]) if step.children else [step.snapshot]
        there = snapshot_plans.without(there, gone)
    return there


@given(trees(), CHOICES)
def test_only_what_is_chosen_goes_and_all_of_it(everything, choice):
    removal = snapshot_plans.plan_removal(everything, choice, children=False, now=NOW)
    assert all(fits(one, choice) for one in removal.doomed)
    assert not any(step.children for step in removal.steps)
    assert ids(carry_out(everything, removal)) == [one.id for one in everything if one not in removal.doomed]
    if choice.keep_last is None and (choice.name is None or choice.duplicates == "all"):
        assert list(removal.doomed) == [one for one in everything if fits(one, choice)]


@given(trees(), CHOICES)
def test_children_go_too_but_nothing_else(everything, choice):
    alone = snapshot_plans.plan_removal(everything, choice, children=False, now=NOW)
    removal = snapshot_plans.plan_removal(everything, choice, children=True, now=NOW)
    below = snapshots.with_descendants(everything, alone.doomed)
    assert set(alone.doomed) <= set(removal.doomed) <= set(below)
    if choice.keep_last is None:
        assert list(removal.doomed) == below
    assert ids(carry_out(everything, removal)) == [one.id for one in everything if one not in removal.doomed]


@given(trees(), CHOICES, st.booleans(), st.integers(1, 5))
def test_the_newest_stay(everything, choice, children, number):
    assume(choice.name is None or choice.duplicates == "all")
    choice = replace(choice, keep_last=number)
    removal = snapshot_plans.plan_removal(everything, choice, children=children, now=NOW)
    always = replace(choice, older_than=None, expired_only=False)
    series = sorted((one for one in everything if fits(one, always)), key=lambda one: (one.created, one.id))
    assert not set(series[-number:]) & set(removal.doomed)


@given(trees(), CHOICES, st.booleans())
def test_parents_go_first(everything, choice, children):
    removal = snapshot_plans.plan_removal(everything, choice, children=children, now=NOW)
    done = set()
    for step in removal.steps:
        done.add(step.snapshot.id)
        above = [one for one in removal.doomed if step.snapshot in snapshots.with_descendants(everything, [one])]
        assert all(one.id in done for one in above)


@given(trees(), st.data())
def test_what_a_removal_leaves_is_a_tree(everything, data):
    doomed = [one for one in everything if data.draw(st.booleans())]
    left = snapshot_plans.without(everything, doomed)
    by_id = {one.id: one for one in left}
    for one in left:
        was = next(other for other in everything if other.id == one.id)
        parent = by_id.get(one.parent_id)
        assert one.depth == (parent.depth + 1 if parent else 1) <= was.depth
        assert parent is None or one.id in parent.child_ids
        assert all(by_id[child].parent_id == one.id for child in one.child_ids)
        # All that stood above it and stays still does.
        above = [other for other in everything if was in snapshots.with_descendants(everything, [other])]
        now_above = [other for other in left if one in snapshots.with_descendants(left, [other])]
        assert ids(now_above) == [other.id for other in above if other.id in by_id]
    assert sum(one.current for one in left) <= 1
    current = next((one for one in everything if one.current), None)
    if current is not None and current.id in by_id:
        assert by_id[current.id].current


def test_all_go_at_once():
    removal = snapshot_plans.plan_remove_all(snapshots.flatten(BRANCHED))
    assert (ids(removal.doomed), removal.steps, removal.everything) == ([1, 2, 3, 4, 5, 6], (), True)


def test_a_whole_branch_is_one_call_and_what_is_spared_splits_it():
    flat = snapshots.flatten(BRANCHED)

    def calls(choice):
        removal = snapshot_plans.plan_removal(flat, choice, children=True, now=NOW)
        return [(step.snapshot.id, step.children) for step in removal.steps]

    assert calls(Choice(snapshot_id=1)) == [(1, True)]
    assert calls(Choice(name_pattern="[!o]*")) == [(1, True)]
    # The newest is 6, then the leaf 5: below 3, which then goes alone.
    assert calls(Choice(keep_last=2)) == [(1, False), (2, True), (3, False), (4, True)]


def test_nothing_was_chosen():
    with pytest.raises(InvalidInput, match="No snapshot was chosen"):
        snapshot_plans.plan_removal([], Choice(), children=False, now=NOW)


# present


@given(trees(), st.sampled_from([None, "a"]), st.sampled_from([None, "x*"]), st.integers(0, 24))
def test_a_young_one_will_do(everything, job, pattern, hours):
    choice = Choice(name="x", job=job, name_pattern=pattern)
    found = snapshot_plans.plan_present(everything, choice, Adjustment(), min_age=timedelta(hours=hours), now=NOW)
    named = replace(choice, name=None if job or pattern else "x")
    young = [one for one in everything if fits(one, named) and NOW - one.created < timedelta(hours=hours)]
    assert found == max(young, key=lambda one: (one.created, one.id), default=None)


@given(trees(), st.sampled_from(["x", "z"]), st.sampled_from([None, "y", "z"]), st.booleans())
def test_one_that_exists_will_do(everything, name, new_name, only):
    choice = Choice(name=name, duplicates="newest")
    names = [one.name for one in everything]

    def plan():
        wish = Adjustment(name=new_name, only=only)
        return snapshot_plans.plan_present(everything, choice, wish, min_age=None, now=NOW)

    if name in names:
        assert plan().name == name
    elif new_name in names:
        assert plan().name == new_name
    elif only:
        with pytest.raises(NotFound):
            plan()
    else:
        assert plan() is None


# revert


@given(trees(), CHOICES, st.sampled_from(["newest", "oldest", "fail"]))
def test_one_is_gone_back_to_or_none(everything, choice, duplicates):
    choice = replace(choice, duplicates=duplicates, keep_last=None)
    assume(not choice.empty)
    fitting = sorted((one for one in everything if fits(one, choice)), key=lambda one: (one.created, one.id))
    if choice.name is not None and duplicates != "fail":  # the name is told apart first
        fitting = [one for one in snapshots.choose(everything, name=choice.name, duplicates="all") if one in fitting]
    try:
        found = snapshot_plans.plan_revert(everything, choice, NOW)
    except NotFound:
        assert not fitting or choice.name is not None
    except Ambiguous:
        assert duplicates == "fail"
        assert len(fitting) > 1 or choice.name is not None
    else:
        assert found in fitting
        assert [one.id for one in snapshot_plans.running_on(everything, found) if one.current] == [found.id]
