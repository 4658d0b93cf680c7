# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_tag, and choosing by tags, through the modules' main() against the lab."""

from __future__ import annotations

import pytest
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.lab.client import Lab

KEYS = {"changed", "vm", "tags", "attached", "detached", "created", "diff"}


class Stock:
    """Three VMs: a has nightly and gold, b has nightly, c has none; each has a snapshot."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.vms = {name: lab.create_vm(name, disks=[1 << 20]) for name in ("a", "b", "c")}
        self.ids = {name: lab.create_tag("backup", name) for name in ("nightly", "a:b")}
        self.ids["gold"] = lab.create_tag("service level", "gold")
        for vm in self.vms.values():
            lab.take_snapshot(vm["moid"], "s")
        self.tag("a", "backup:nightly", "service level:gold")
        self.tag("b", self.ids["nightly"])

    def run(self, module, fail=False, check=False, **args):
        self.lab.requests(reset=True)
        result = modules.run(module, {**self.lab.module_args(), **args}, fail=fail, check=check)
        http = self.lab.requests()["http"]
        assert http.get("POST /api/session", 0) == http.get("DELETE /api/session", 0)  # no session stays
        return result

    def tag(self, vm, *tags, **args):
        return self.run("vm_tag", moid=self.vms[vm]["moid"], tags=list(tags), **args)

    def chosen(self, *tags, **args):
        found = self.run("vm_snapshot_info", tags=list(tags), **args)
        return [one["vm"]["name"] for one in found["virtual_machines"]]

    def rest(self):
        """Requests to the tagging service."""
        return sum(count for what, count in self.lab.requests()["http"].items() if "/tagging/" in what)


@pytest.fixture(scope="module")
def stock():
    with Lab.start(vms=2) as lab:
        yield Stock(lab)


@pytest.fixture
def bare(stock):
    """The VM without tags, which has none afterwards either."""
    yield stock.vms["c"]
    stock.tag("c", *stock.tag("c", "backup:nightly", check=True)["tags"], state="absent")


def test_attach_and_detach(stock, bare):
    first = stock.tag("c", "backup:nightly", "backup:a:b")
    assert set(first) - {"invocation"} == KEYS
    assert {key: first[key] for key in KEYS} == {
        "changed": True,
        "vm": {key: bare[key] for key in ("name", "moid", "instance_uuid")},
        "tags": ["backup:a:b", "backup:nightly"],
        "attached": ["backup:nightly", "backup:a:b"],
        "detached": [],
        "created": [],
        "diff": {"before": {"tags": []}, "after": {"tags": ["backup:a:b", "backup:nightly"]}},
    }
    again = stock.tag("c", "backup:nightly")
    assert (again["changed"], again["tags"], again["attached"]) == (False, ["backup:a:b", "backup:nightly"], [])
    off = stock.tag("c", stock.ids["nightly"], "service level:gold", state="absent")
    assert (off["changed"], off["tags"], off["detached"]) == (True, ["backup:a:b"], ["backup:nightly"])
    assert not stock.tag("c", "backup:nightly", state="absent")["changed"]


def test_check_mode_says_what_it_would_do(stock, bare):
    told = stock.tag("c", "backup:nightly", "new:made up", create=True, check=True)
    assert (told["changed"], told["created"]) == (True, ["new:made up"])
    assert told["tags"] == ["backup:nightly", "new:made up"]
    done = stock.tag("c", "backup:nightly", "new:made up", create=True)
    assert {**done, "invocation": None} == {**told, "invocation": None}


def test_tags_and_categories_are_made_if_wished(stock, bare):
    assert "There is no tag fresh:one." in stock.tag("c", "fresh:one", fail=True)["msg"]
    assert stock.tag("c", "fresh:one", create=True, single=True)["created"] == ["fresh:one"]
    assert stock.tag("c", "fresh:one", create=True)["created"] == []
    refused = stock.tag("c", "fresh:two", create=True, fail=True)
    assert "has a tag of this category already" in refused["msg"]
    assert not stock.tag("c", "none:such", state="absent")["changed"]


def test_a_name_without_a_category_is_no_tag(stock, bare):
    assert "names no tag" in stock.tag("c", "nightly", create=True, fail=True)["msg"]


@pytest.mark.parametrize(
    ("tags", "options", "names"),
    [
        (["backup:nightly"], {}, ["a", "b"]),
        (["backup:nightly", "service level:gold"], {}, ["a"]),
        (["backup:nightly", "service level:gold"], {"tag_match": "any"}, ["a", "b"]),
        (["backup:a:b"], {}, []),
        (["backup:nightly"], {"folder_recursive": False}, ["a", "b"]),
        (["backup:nightly"], {"vms": ["b", "c"]}, ["b"]),
        (["backup:nightly"], {"folder": "/DC0/vm", "folder_recursive": False}, ["a", "b"]),
    ],
)
def test_choosing_by_tags(stock, tags, options, names):
    assert stock.chosen(*tags, **options) == names


def test_a_tag_that_does_not_exist_is_an_error_and_not_nothing(stock):
    result = stock.run("vm_snapshot_info", tags=["backup:weekly", "backup:nightly"], fail=True)
    assert "There is no tag backup:weekly." in result["msg"]


def test_what_choosing_by_tags_costs(stock):
    stock.chosen(stock.ids["nightly"], stock.ids["gold"])
    assert stock.rest() == 1
    stock.chosen("backup:nightly")
    categories, tags = 5, 5  # at most: all that this file makes
    assert stock.rest() <= 3 + categories + tags
    assert stock.lab.requests()["methods"]["RetrievePropertiesEx"] == 2


def test_no_session_stays(stock):
    assert stock.lab.sessions() == []
