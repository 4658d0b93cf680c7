# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import jq
import pytest
import yaml
from ansible_collections.holdfast.backup.tests.unit.documents import MODULES, ROOT, document, sample

QUERIES = yaml.safe_load((ROOT / "extensions/audit/event_query.yml").read_text())
VM = {"name": "web01", "moid": "vm-12", "instance_uuid": "500be0ab-e4e6-8fa5-1a34-93a0b4c9a1b5"}


def records(result: object) -> list[dict]:
    (query,) = (entry["query"] for entry in QUERIES.values())
    return jq.compile(query).input_value(result).all()


def test_a_machine_is_named_by_its_instance_uuid_alone():
    (record,) = records({"changed": True, "vm": VM})
    assert record["name"] == "web01"
    assert record["canonical_facts"] == {"instance_uuid": VM["instance_uuid"]}
    assert record["facts"]["device_type"] == "virtual_machine"


def test_each_machine_of_a_set_is_named():
    other = {"name": "db01", "moid": "vm-13", "instance_uuid": "500be0ab-e4e6-8fa5-1a34-93a0b4c9a1b6"}
    found = records({"members": [{"vm": VM, "action": "taken"}, {"vm": other, "action": "taken"}, {"vm": None}, 3]})
    assert [record["name"] for record in found] == ["web01", "db01"]


@pytest.mark.parametrize(
    "result",
    [
        None,
        [],
        "text",
        3,
        {},
        {"vm": None},
        {"vm": "web01"},
        {"vm": [VM]},
        {"members": None},
        {"members": "web01"},
        {"vm": {"name": "web01", "moid": "vm-12", "instance_uuid": None}},
        {"failed": True, "msg": "not found"},
    ],
)
def test_what_names_no_machine_gives_no_record_and_no_error(result: object):
    assert records(result) == []


@pytest.mark.parametrize("module", MODULES)
def test_the_documented_result_of_every_module_counts_its_machine_once(module: str):
    entries = document(module, "RETURN")
    result = {key: sample(entry) for key, entry in entries.items()}
    assert len(records(result)) == ("vm" in entries) + ("members" in entries)
