# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role snapshot_report by real runs of its playbook: the page, the mail, the data, and what it fails for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import stamps
from ansible_collections.holdfast.backup.tests.lab.client import REPOSITORY, Lab

MIB = 1 << 20
DAY = 86400
HOSTILE = "<script>alert(1)</script> & \"x\" 'y' {{ 7 * 7 }}"
ARABIC, EMOJI = "قبل التحديث", "🚀 release 🧪"
EXPIRED = stamps.join("", stamps.Stamp("<b>nightly</b>", "r1", stamps.datetime(2026, 1, 1, tzinfo=stamps.timezone.utc)))
VOID = {"meta", "br", "line", "circle", "path"}
ALLOWED = {"html", "head", "meta", "title", "style", "body", "div", "h1", "h2", "h3", "p", "b", "br", "span", "bdi"}
ALLOWED |= {"table", "thead", "tbody", "tr", "td", "th"}
DRAWN = {"svg", "line", "circle", "path", "text", "title"}


class Page(HTMLParser):
    """Checks that every element is closed where it must be; keeps elements, attributes and texts."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if tag in {"circle"}:  # it has a title
            return
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style" and data.strip():
            self.texts.append(data.strip())


@dataclass
class Desk:
    lab: Lab
    directory: Path

    def run(self, rc: int = 0, check: bool = False, **variables: Any) -> str:
        given = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        given |= {f"snapshot_report_{name}": value for name, value in variables.items()}
        env = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(self.directory),
            "PWD": str(self.directory),  # where relative paths begin
            "LANG": "C.UTF-8",
            "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / ".build" / "collections"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0",
            "ANSIBLE_SHOW_CUSTOM_STATS": "1",
            "VMWARE_HOST": self.lab.hostname,
            "VMWARE_PORT": str(self.lab.port),
            "VMWARE_USER": self.lab.username,
            "VMWARE_PASSWORD": self.lab.password,
            "VMWARE_CA_PATH": self.lab.ca_file,
        }
        command = ["ansible-playbook", "holdfast.backup.snapshot_report", "-e", json.dumps(given)]
        done = subprocess.run(
            [*command, *(["--check"] if check else [])],
            capture_output=True,
            text=True,
            env=env,
            timeout=100,
            check=False,
        )
        assert done.returncode == rc, done.stdout + done.stderr
        assert "WARNING" not in done.stderr, done.stderr
        return done.stdout

    def path(self, name: str) -> Path:
        return self.directory / name


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    with Lab.start(vms=1, datastores=2) as lab:
        yield Desk(lab, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def reported(desk):
    """One run over a small inventory of hard names."""
    web, db = (desk.lab.create_vm(name, disks=[MIB], power="poweredOn") for name in ("web <i>", "מחשב"))
    for number, name in enumerate((HOSTILE, ARABIC, EMOJI, "n" * 70)):
        desk.lab.take_snapshot(web["moid"], name, age=(9 - number) * DAY, memory=number == 3)
    desk.lab.take_snapshot(db["moid"], "own", description=EXPIRED, age=3600)
    desk.lab.connection(db["moid"], "orphaned")
    files = {"html": "report.html", **{name: str(desk.path(f"report.{name}")) for name in ("mail", "json")}}
    output = desk.run(title="Lab <North>", large="1M", deep=3, **files)
    assert desk.lab.sessions() == []
    return output


def test_the_page_is_one_sound_file_that_loads_nothing(desk, reported):
    page = Page(desk.path("report.html").read_text(encoding="utf-8"))
    assert set(page.elements) <= ALLOWED | DRAWN
    assert page.elements["svg"] >= 2
    loading = {"src", "href", "xlink:href", "action", "background", "srcset", "data"}
    assert [one for one in page.attributes if one[1] in loading or one[1].startswith("on")] == []
    assert "url(" not in desk.path("report.html").read_text(encoding="utf-8")


def test_names_are_shown_as_they_are(desk, reported):
    page = Page(desk.path("report.html").read_text(encoding="utf-8"))
    for name in ("Lab <North>", "web <i>", "מחשב", HOSTILE, ARABIC, EMOJI, "<b>nightly</b>"):
        assert name in page.texts, name
    assert "n" * 43 + "…" in page.texts  # in the drawing of the tree


def test_the_mail_says_the_same_without_drawings(desk, reported):
    page, mail = (Page(desk.path(f"report.{name}").read_text(encoding="utf-8")) for name in ("html", "mail"))
    assert set(mail.elements) <= ALLOWED
    cells = [page.elements["td"], mail.elements["td"]]
    assert cells[0] == cells[1] > 40
    assert set(mail.texts) <= set(page.texts)


def test_the_data_are_complete(desk, reported):
    data = json.loads(desk.path("report.json").read_text(encoding="utf-8"))
    assert set(data) == {
        *("schema", "title", "time", "limits", "totals", "findings", "snapshots", "ages", "datastores", "machines"),
        *("jobs", "creators", "chains", "plot", "needs_consolidation", "unreadable"),
    }
    assert (data["schema"], data["title"]) == (1, "Lab <North>")
    assert data["findings"] == {
        "old": 4,
        "large": 1,
        "deep": 1,
        "expired": 1,
        "foreign": 4,
        "ours": 1,
        "consolidation": 0,
        "unreadable": 1,
    }
    assert {row["name"] for row in data["snapshots"]} == {"n" * 70, HOSTILE, ARABIC, EMOJI, "own"}
    assert data["snapshots"][0]["reasons"] == ["old", "large", "deep"]
    assert sum(one["size_bytes"] for one in data["datastores"]) == data["totals"]["size_bytes"] > 32 * MIB
    assert "orphaned" in data["unreadable"][0]["reason"]


def test_the_summary_and_the_artifact(desk, reported):
    lines = [line.strip().rstrip(",").strip('"') for line in reported.splitlines()]
    first = next(line for line in lines if line.startswith("Lab <North>: 5 snapshots of 2 virtual machines"))
    assert "looked at 3" in first
    assert "4 older than 3d" in lines
    assert reported.count("Lab <North>: 5 snapshots") >= 2  # in the custom stats, too
    assert "CUSTOM STATS" in reported
    assert "49" not in first  # templates in names stay text


def test_it_fails_for_what_it_is_told_to_and_writes_nothing_in_check_mode(desk, reported):
    page = desk.path("check.html")
    output = desk.run(rc=2, check=True, fail_on=["old", "expired", "consolidation"], large="1M", html=str(page))
    assert "4 older than 3d, 1 expired." in output
    assert not page.exists()


def test_nothing_to_report(desk, reported):
    files = {name: str(desk.path(f"none.{name}")) for name in ("html", "mail")}
    output = desk.run(vms=["idle0001"], fail_on=["old", "unreadable"], **files)
    assert "Snapshots: 0 snapshots of 0 virtual machines" in output
    for name in files:
        assert "There are no snapshots." in Page(desk.path(f"none.{name}").read_text(encoding="utf-8")).texts
