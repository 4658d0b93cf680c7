# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page of traps leaves none out, and what it says is tested has its tests."""

from __future__ import annotations

import re

import pytest
from ansible_collections.holdfast.backup.tests.unit.documents import ROOT

PAGE = ROOT / "docs" / "traps.md"
COUNTS = {"A": 15, "B": 9, "C": 10, "D": 10, "E": 13, "F": 2, "T": 2}
TRAPS = [f"{letter}{number}" for letter, count in COUNTS.items() for number in range(1, count + 1)]
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if re.match(r"\| *[A-Z]\d+ *\|", line)
]
NAMED = re.compile(r"`([\w.]+)::(\w+)`")


def _tests() -> dict[str, list[set[str]]]:
    """The functions of each file of tests, by its name; several files may have one."""
    found: dict[str, list[set[str]]] = {}
    for path in sorted((ROOT / "tests").rglob("*test*")):
        if path.suffix in (".py", ".go"):
            functions = re.findall(r"^(?:def|func) (\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
            found.setdefault(path.name, []).append(set(functions))
    return found


TESTS = _tests()


def test_every_trap_has_its_row_in_order():
    assert [row[0] for row in ROWS] == TRAPS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_tests_that_exist_or_says_why_there_are_none(row: list[str]):
    assert len(row) == 4
    assert all(row)
    named = NAMED.findall(row[3])
    assert len(named) == row[3].count("::")
    assert named or row[3].startswith("No test: ")
    missing = [f"{file}::{name}" for file, name in named if sum(name in each for each in TESTS.get(file, ())) != 1]
    assert missing == []
