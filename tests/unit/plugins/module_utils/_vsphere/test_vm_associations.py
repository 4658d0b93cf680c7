# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The storage policies of a VM that is made again: which of those that are there are applied."""

from __future__ import annotations

import copy

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.storage_policies import Policy
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.vm_associations import choose, policies_of
from hypothesis import given
from hypothesis import strategies as st

HERE = [Policy("1", "gold"), Policy("2", "silver"), Policy("3", "bronze")]
NAMES = st.sampled_from(["gold", "silver", "bronze", "lead"])
POLICIES = st.builds(
    lambda name, **values: {"name": name, **{key: value for key, value in values.items() if value}},
    name=NAMES,
    id=st.sampled_from(["1", "2", "3", "9", None]),
)
HOLDERS = st.lists(
    st.fixed_dictionaries({"storage_policy": POLICIES, "encryption": st.sampled_from([None, {"key_id": "k"}])}),
    max_size=8,
).map(lambda holders: [{**holder, "label": f"disk {number}"} for number, holder in enumerate(holders)])


def expected(holder, mapping):
    """What the holder is to have, said in another way."""
    old = holder["storage_policy"]
    if old["name"] in mapping:
        return next(policy for policy in HERE if policy.name == mapping[old["name"]])
    if holder["encryption"]:
        return None
    by_id = {policy.id: policy for policy in HERE}
    by_name = {policy.name: policy for policy in HERE}
    return by_id.get(old.get("id")) or by_name.get(old["name"])


@given(HOLDERS, st.dictionaries(NAMES, st.sampled_from([policy.name for policy in HERE])))
def test_each_gets_one_that_is_here_or_is_told(holders, mapping):
    before = copy.deepcopy(holders)
    warnings = choose(holders, HERE, mapping, "vc")
    for old, new in zip(before, holders):
        wanted = expected(old, mapping)
        assert new == {**old, "storage_policy": wanted and {"id": wanted.id, "name": wanted.name}}
        said = [line for line in warnings if old["label"] in line.partition(" is not applied")[0]]
        assert len(said) == (wanted is None)
        assert all(line.startswith(f"The storage policy {old['storage_policy']['name']} of ") for line in said)


def test_one_that_was_asked_for_must_be_here():
    with pytest.raises(NotFound, match="platinum"):
        choose([{"storage_policy": {"name": "gold"}}], HERE, {"gold": "platinum"}, "vc")


def test_the_home_and_the_disks_have_policies():
    first, second = {"storage_policy": {"name": "gold"}}, {"storage_policy": None}
    document = {"storage_policy": {"name": "gold"}, "disks": [first, second, {}]}
    assert list(policies_of(document)) == [document, first]
    assert list(policies_of({"disks": [{}]})) == []
