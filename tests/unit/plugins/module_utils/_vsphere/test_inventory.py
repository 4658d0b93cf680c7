# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names as people see them and as vCenter stores them."""

from __future__ import annotations

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import inventory
from hypothesis import given
from hypothesis import strategies as st


@given(st.text(st.sampled_from("a2fF%/\\ 5c")))
def test_escaping_is_undone(name):
    assert inventory.unescape(inventory.escape(name)) == name


@pytest.mark.parametrize(
    ("name", "stored"), [("a/b", "a%2fb"), ("c:\\d", "c:%5cd"), ("100%", "100%25"), ("a b", "a b")]
)
def test_escape(name, stored):
    assert inventory.escape(name) == stored


@pytest.mark.parametrize("stored", ["a%2fb", "a%2Fb"])
@pytest.mark.parametrize("given_name", ["a/b", "a%2fb"])
def test_a_name_may_be_given_either_way(stored, given_name):
    assert inventory.same_name(stored, given_name)


def test_nothing_else_is_an_escape():
    assert inventory.unescape("50%20off %ff") == "50%20off %ff"


def test_names_are_compared_whole_and_with_case():
    assert not inventory.same_name("web01", "web0")
    assert not inventory.same_name("web01", "WEB01")
