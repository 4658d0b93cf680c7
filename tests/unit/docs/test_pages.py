# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the pages name is there: files, headings, modules, roles, playbooks and the variables of roles."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from ansible_collections.holdfast.backup.tests.unit.documents import MODULES, ROOT

ROLES = {path.parent.parent.name: path for path in sorted((ROOT / "roles").glob("*/meta/argument_specs.yml"))}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "roles").glob("*/README.md"))
VARIABLES = {
    name
    for path in ROLES.values()
    for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"].values()
    for name in entry["options"]
}
FACTS = {f"{role}_result" for role in ROLES}


def anchors(page: Path) -> set[str]:
    """What links can lead to in a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        name, dummy, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_variables_are_those_of_the_roles(page: Path):
    text = re.sub(r"\]\([^)]*\)", "", page.read_text(encoding="utf-8"))
    named = set(re.findall(rf"\b(?:{'|'.join(ROLES)})_[a-z0-9_]+\b", text))
    assert named <= VARIABLES | FACTS | set(ROLES) | set(MODULES)


def test_the_readme_names_everything():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    playbooks = [f"holdfast.backup.{path.stem}" for path in (ROOT / "playbooks").glob("*.yml")]
    pages = [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]
    assert [name for name in [*MODULES, *ROLES, *playbooks] if f"`{name}`" not in text] == []
    assert [page for page in pages if page not in text] == []
