# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role safety_snapshot and its playbooks: each host of one run is one day; each step of a workflow is a process."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.roles.support import (
    MIB,
    Machine,
    Run,
    Site,
)
from ansible_collections.holdfast.backup.tests.integration.running import kill, processes, wait_for

pytestmark = pytest.mark.timeout(600)

PRE_CHANGE, STEP, SWEEP = (f"holdfast.backup.{name}" for name in ("pre_change", "safety_snapshot", "snapshot_sweep"))
SECRET = "tr0ub4dor"
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}


@dataclass
class Day:
    """Some VMs, what is done to them, and what their disks held before."""

    site: Site
    machines: list[Machine]
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = self.contents()

    def contents(self) -> list[bytes]:
        return [machine.content(0) for machine in self.machines]

    def ours(self) -> list[int]:
        """How many snapshots each VM has beside those of somebody else, which must all be there."""
        for machine in self.machines:
            assert {one["moid"] for one in machine.foreign} <= {one["moid"] for one in machine.snapshots}
        return [len(machine.snapshots) - len(machine.foreign) for machine in self.machines]

    @property
    def variables(self) -> dict[str, Any]:
        named = {f"safety_snapshot_{name}": value for name, value in self.options.items()}
        return {"safety_snapshot_vms": [machine.name for machine in self.machines], **named}


@pytest.fixture(scope="module")
def health() -> Iterator[str]:
    """A service that is well for those who know the secret."""

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers.get("X-Key") == SECRET
            self.send_response(200 if known else 503)
            self.end_headers()
            self.wfile.write(f"fine {SECRET}".encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/health?token={SECRET}"
    server.shutdown()
    server.server_close()


def machines(site: Site, name: str, *specs: dict[str, Any]) -> list[Machine]:
    return [site.machine(f"{name}-{number}", [MIB], tracking=False, **spec) for number, spec in enumerate(specs)]


def tasks(site: Site, name: str, *listed: dict[str, Any]) -> str:
    path = site.home / f"{name}.yml"
    path.write_text(json.dumps(listed))
    return str(path)


def write(site: Site, machines: list[Machine]) -> dict[str, Any]:
    """A task by which the guests write."""
    return {
        "name": "The guests write",
        "ansible.builtin.uri": {
            "url": f"{site.lab.control}/control/write",
            "method": "POST",
            "body_format": "json",
            "body": {"vm": "{{ item }}", "key": machines[0].disks[0]["key"], "offset": 0, "data": "Y2hhbmdlZA=="},
        },
        "loop": [machine.moid for machine in machines],
    }


class Days:
    """The days of one run of the role; each changes its machines and then does what its options say."""

    def __init__(self, site: Site, url: str) -> None:
        self.site, self.url = site, url
        self.days: dict[str, Day] = {}

    def add(self, name: str, *specs: dict[str, Any], **options: Any) -> Day:
        """A day with machines; what it changes is theirs to say by :meth:`change`."""
        self.days[name] = Day(self.site, machines(self.site, name, *specs), options)
        self.change(name)
        return self.days[name]

    def change(self, name: str, *then: dict[str, Any]) -> None:
        """The guests write, and this happens."""
        day = self.days[name]
        day.options["change"] = tasks(self.site, name, write(self.site, day.machines), *then)

    def run(self, *args: str, rc: int) -> Run:
        play = {"hosts": "all", "gather_facts": False, "roles": ["holdfast.backup.safety_snapshot"]}
        common = {"safety_snapshot_health_retries": 1, "safety_snapshot_health_delay": 1, **LOCAL}
        book = self.site.home / "role.yml"
        book.write_text(json.dumps([play]))
        hosts = {name: {**common, **day.variables} for name, day in self.days.items()}
        return self.site.run(str(book), hosts, rc=rc, args=args)


FAIL = {"name": "Restart the service", "ansible.builtin.fail": {"msg": "It does not start."}}


@pytest.fixture(scope="module")
def days(site: Site, health: str) -> Days:
    made = Days(site, health)
    off = {"power": "poweredOff"}
    well = {"url": health, "headers": {"X-Key": SECRET}, "content": "^fine"}
    good = made.add("good", {}, off, {}, health_urls=[well], health_ports=[f"127.0.0.1:{site.lab.port}"])
    site.snapshot(good.machines[0])
    secretly = made.add("secretly", {}, off)
    made.change("secretly", {"name": "Tell a secret", "ansible.builtin.fail": {"msg": SECRET}, "no_log": True})
    site.snapshot(secretly.machines[1])
    checks = {"health_tasks": tasks(site, "check", FAIL), "health_ports": "127.0.0.1:9", "remove_after_rollback": True}
    made.add("unwell", {}, health_urls=[health, {"url": f"http://admin:{SECRET}@127.0.0.1:9/"}], **checks)
    refused = made.add("refused", {}, {}, {})
    site.lab.fault(task="createSnapshot*", fault="FileLocked", count=0, object=refused.machines[1].moid)
    torn = made.add("torn", {}, {}, {})
    site.lab.fault(task="revertToSnapshot*", fault="FileLocked", count=0, object=torn.machines[0].moid)
    everything = {"moid": torn.machines[2].moid, "state": "absent", "remove_all": True}
    made.change("torn", {"name": "Remove its snapshot", "holdfast.backup.vm_snapshot": everything}, FAIL)
    made.add("kept", {}, decision="keep")
    made.change("kept", FAIL)
    return made


@pytest.fixture(scope="module")
def planned(days: Days) -> Run:
    """Some of it in check mode first, which must leave all as it is."""
    run = days.run("--check", "--limit", "good:refused", rc=0)
    for name in ("good", "refused"):
        assert days.days[name].ours() == [0, 0, 0]
        assert days.days[name].contents() == days.days[name].before
    return run


@pytest.fixture(scope="module")
def ran(days: Days, planned: Run) -> Run:
    return days.run("-v", rc=2)


def test_check_mode_says_what_would_be_done(planned: Run):
    assert planned["good"].summary[0].endswith("would be taken")
    assert "The health would be checked" in planned.output


def test_a_change_that_succeeds_is_committed(days: Days, ran: Run):
    good = days.days["good"]
    assert not ran["good"].failed
    assert ran["good"].result["action"] == "commit"
    assert [member["action"] for member in ran["good"].result["members"]] == ["removed"] * 3
    assert good.ours() == [0, 0, 0]
    assert [content[:7] for content in good.contents()] == [b"changed"] * 3


def test_a_change_that_fails_is_rolled_back(days: Days, ran: Run):
    day = days.days["secretly"]
    message = ran["secretly"].message
    assert message.startswith("The virtual machines were rolled back; the snapshots of the set 20")
    assert message.endswith(" stay until it is removed by commit. Tell a secret: what it said is hidden (no_log)")
    assert day.contents() == day.before
    assert [member["power_state"] for member in ran["secretly"].result["members"]] == ["poweredOn", "poweredOff"]
    assert day.ours() == [1, 1]


def test_what_is_not_well_is_rolled_back_and_said(days: Days, ran: Run):
    day = days.days["unwell"]
    before, after = ran["unwell"].message.split(" The virtual machines were rolled back. After that: ")
    for said in (before, after):
        assert "Port 127.0.0.1:9 does not answer." in said
        assert "http://127.0.0.1:9/ does not answer as it should (status -1)." in said
        assert "/health does not answer as it should (status 503)." in said
        assert "Restart the service: It does not start." in said
    assert day.contents() == day.before
    assert day.ours() == [0]


def test_a_set_is_taken_whole_or_not_at_all(days: Days, ran: Run):
    day = days.days["refused"]
    assert "refused-1: The task VirtualMachine.createSnapshot" in ran["refused"].message
    assert day.ours() == [0, 0, 0]
    assert day.contents() == day.before


def test_those_that_cannot_be_rolled_back_are_named(days: Days, ran: Run):
    day = days.days["torn"]
    assert [member["action"] for member in ran["torn"].result["members"]] == ["failed", "reverted", "failed"]
    for said in (FAIL["ansible.builtin.fail"]["msg"], "torn-0: The task", "torn-2: It has no snapshot of the set"):
        assert said in ran["torn"].message
    assert day.ours() == [1, 1, 0]
    assert [content == before for content, before in zip(day.contents(), day.before)] == [False, True, False]


def test_the_decision_may_be_somebody_elses(days: Days, ran: Run):
    day = days.days["kept"]
    assert ran["kept"].message.startswith("The virtual machines were left as they are; the snapshots of the set ")
    assert (day.ours(), day.contents()[0][:7]) == ([1], b"changed")


def test_secrets_are_not_shown(days: Days, planned: Run, ran: Run):
    # Ansible itself shows the message of a failed task in spite of no_log.
    output = (planned.output + ran.output).replace(f"Action failed: {SECRET}", "")
    assert SECRET not in output
    assert days.site.lab.password not in output


# each step of a workflow is a process of its own


def artifacts(run: Run) -> dict[str, Any]:
    [text] = re.findall(r"RUN: (\{.*\})", run.output.replace("\n", " "))
    return json.loads(text)


def step(site: Site, name: str, rc: int = 0, **variables: Any) -> Run:
    extra = {"step": name, "awx_workflow_job_id": 77, "awx_job_id": os.urandom(2).hex(), **variables}
    return site.run(STEP, {}, rc=rc, args=["-e", json.dumps(extra)])


def test_nodes_of_a_workflow_find_the_set(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANSIBLE_SHOW_CUSTOM_STATS", "1")
    day = Day(site, machines(site, "node", {}, {}))
    handed_on = artifacts(step(site, "take", safety_snapshot_vms="node-0\nnode-1"))
    assert handed_on == {
        "safety_snapshot_job": "safety_snapshot",
        "safety_snapshot_set": "workflow 77",
        "safety_snapshot_vms": [machine.moid for machine in day.machines],
    }
    for machine in day.machines:
        machine.write(0, 0, b"changed")
    # Found by its stamp, without a list of machines, too. Files are looked for where the user is.
    monkeypatch.setenv("PWD", str(site.home))
    tasks(site, "node-check", {"name": "Look", "ansible.builtin.debug": {"msg": "All is well."}})
    step(site, "rollback", safety_snapshot_health_tasks="node-check.yml")
    assert day.contents() == day.before
    assert day.ours() == [1, 1]
    step(site, "commit", **handed_on)
    assert day.ours() == [0, 0]
    assert step(site, "commit")["localhost"].summary == ["set workflow 77 of the job safety_snapshot: there is none"]
    assert "Give step as take, verify" in step(site, "undo", rc=2)["localhost"].message


def test_only_what_expired_is_swept_after_a_kill(site: Site):
    day = Day(site, machines(site, "killed", {"folder": "night"}, {"folder": "night"}, {}))
    site.snapshot(day.machines[0])
    unexpired = {"vms": ["killed-1"], "stamp": {"job": "killed", "run": "unexpired", "expires_in": "1h"}}
    modules.run("vm_snapshot_set", {**site.lab.module_args(), **unexpired})
    hang = tasks(site, "hang", {"name": "Hang", "ansible.builtin.pause": {"seconds": 600}})
    extra = {"safety_snapshot_job": "killed", "safety_snapshot_expires_in": "0s", "pre_change_tasks": hang}
    run = site.start(
        PRE_CHANGE, {}, args=["-e", json.dumps({**extra, "safety_snapshot_vms": "killed-0,killed-1,killed-2"})]
    )
    wait_for(lambda: "TASK [Hang]" in run.output, seconds=120)
    workers = processes(hang)
    os.killpg(run.process.pid, signal.SIGKILL)
    kill(*workers)  # each has a session of its own
    run.process.wait()
    assert day.ours() == [1, 2, 1]
    where = {"safety_snapshot_job": "killed", "safety_snapshot_folder": "/DC0/vm/night"}
    swept = site.run(SWEEP, {}, args=["-e", json.dumps(where)])["localhost"].summary
    assert swept[0] == "expired snapshots of the job killed: swept"
    assert [line.split(":")[0].strip() for line in swept[1:] if line] == ["killed-0", "killed-1"]
    assert day.ours() == [0, 1, 1]


@pytest.fixture(scope="module")
def changes(site: Site) -> dict[str, tuple[Run, Day]]:
    """The playbook on two hosts each: all goes well; a task that runs once fails; a host cannot be reached any more."""
    once = {"name": "Migrate", "run_once": True, "ansible.builtin.fail": {"msg": "The schema is locked."}}
    ping = {"name": "Restart", "ansible.builtin.ping": {}}
    days, runs = {}, {}
    for name, last in (("well", ping), ("once", once), ("cut", ping)):
        days[name] = Day(site, machines(site, name, {}, {}))
        change = tasks(site, f"{name}-change", write(site, days[name].machines), last)
        hosts: dict[str, dict[str, Any]] = {machine.name: dict(LOCAL) for machine in days[name].machines}
        if name == "cut":
            hosts["cut-1"] = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}
            hosts["cut-0"]["moid"] = days[name].machines[0].moid
        extra = {"target": f"{name}-*", "pre_change_tasks": change}
        runs[name] = site.start(PRE_CHANGE, hosts, args=["-e", json.dumps(extra)])
    for run in runs.values():
        run.end()
    assert [run.process.returncode == 0 for run in runs.values()] == [True, False, False]
    return {name: (run, days[name]) for name, run in runs.items()}


def test_a_change_on_hosts_that_succeeds(changes: dict[str, tuple[Run, Day]]):
    run, day = changes["well"]
    assert run["localhost"].result["action"] == "commit"
    assert day.ours() == [0, 0]
    assert [content[:7] for content in day.contents()] == [b"changed"] * 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("once", ["once-0: Migrate: The schema is locked.", "once-1: stopped, by the failure of another host"]),
        ("cut", ["Unreachable, or left before the end of the change: cut-1."]),
    ],
)
def test_a_change_on_hosts_that_fails_anywhere_is_rolled_back_everywhere(
    changes: dict[str, tuple[Run, Day]], name: str, said: list[str]
):
    run, day = changes[name]
    assert run["localhost"].result["action"] == "rollback"
    assert all(text in run["localhost"].message for text in said)
    assert day.contents() == day.before
    assert day.ours() == [1, 1]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"pre_change_tasks": "/no/such.yml"}, "There is no file /no/such.yml (pre_change_tasks). Nothing was done."),
        ({"safety_snapshot_health_tasks": "/no/health.yml"}, "There is no file /no/health.yml (safety_snapshot_health"),
        ({"safety_snapshot_health_ports": "web01,db01:5432"}, "Of safety_snapshot_health_ports, web01 is not"),
        ({"safety_snapshot_health_urls": ["http://web01", {"link": ""}]}, "Not every element of safety_snapshot_"),
        ({"target": "elsewhere"}, "No host of the inventory fits target=elsewhere. Nothing was done."),
    ],
)
def test_what_is_not_there_is_said_before_the_first_snapshot(site: Site, extra: dict[str, Any], said: str):
    day = Day(site, machines(site, os.urandom(3).hex(), {}))
    name = day.machines[0].name
    given = {"target": name, "pre_change_tasks": tasks(site, "nothing", FAIL), **extra}
    run = site.run(PRE_CHANGE, {name: dict(LOCAL)}, rc=2, args=["-e", json.dumps(given)])
    assert run["localhost"].message.startswith(said)
    assert site.lab.tasks(day.machines[0].moid) == []


def test_nothing_is_changed_without_a_set(site: Site):
    day = Day(site, machines(site, "alone", {}))
    change = tasks(site, "alone-change", write(site, day.machines))
    extra = json.dumps({"target": "alone-0", "pre_change_tasks": change})
    run = site.run(PRE_CHANGE, {"alone-0": dict(LOCAL)}, rc=2, args=["--limit", "alone-0", "-e", extra])
    assert "No set of snapshots was taken" in run["alone-0"].message
    assert day.contents() == day.before
