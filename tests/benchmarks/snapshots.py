# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots beside both peers, on the same lab in the same run: single modules, slow tasks, one play for many VMs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Callable

from ansible_collections.holdfast.backup.tests.benchmarks import measure
from ansible_collections.holdfast.backup.tests.benchmarks.counting import FOLDER, PEERS, Counter, requests_of, versions
from ansible_collections.holdfast.backup.tests.benchmarks.machine import (
    MIB,
    OURS,
    RUNNER,
    setting,
    task,
    workplace,
)
from ansible_collections.holdfast.backup.tests.benchmarks.report import Section
from ansible_collections.holdfast.backup.tests.lab.client import BUILD, Lab

ALL = (OURS, *PEERS)
SESSION = f"{OURS}, one session"
PINGS = "as many pings"
STAGGER = 0.7  # seconds between the starts of modules that then wait at the same time
SHARE = 0.5  # of the better peer's requests, at most


def section() -> Section:
    """Measure everything; the rows of the table are jobs, one for each collection that has it."""
    runs, size = int(setting("RUNS", "3")), max(int(size) for size in setting("VMS", "10,2000").split(","))
    seconds = [int(one) for one in setting("TASKS", "5,10,40").split(",")]
    machines = int(setting("MACHINES", "50"))
    report = Section("Snapshots beside the peers", {"runs": runs, "VMs": size, **dict(versions())})
    place = workplace("snapshots", 0, in_memory=False)
    try:
        with Lab.start(vms=size) as lab:
            found = _single_tasks(lab, runs)
            found.update(_plays(lab, place, machines, runs))
        found.update(_late(seconds))
    finally:
        shutil.rmtree(place.parent, ignore_errors=True)
    for (what, collection), results in found.items():
        columns = ("requests", "logins", "seconds", "cpu", "late")
        middle = {name: measure.median([one[name] for one in results]) for name in columns if name in results[0]}
        counts = {name: int(middle[name]) for name in columns[:2]}
        times = {"seconds": middle["seconds"], "CPU s": middle.get("cpu"), "seconds late": middle.get("late")}
        report.rows.append({"what": what, "collection": collection, **counts, **times})
    report.raw = {f"{what} / {collection}": results for (what, collection), results in found.items()}
    _judge(report)
    return report


Found = dict[tuple[str, str], list[dict[str, float]]]


def _single_tasks(lab: Lab, runs: int) -> Found:
    """Each module in a process of its own, by the VM's managed object ID unless the row says otherwise."""
    for vm in lab.vms():
        lab.take_snapshot(vm["moid"], "old", age=86400)
    counter = Counter(lab)
    for run in range(runs):
        for collection in ALL if run % 2 == 0 else reversed(ALL):
            _life_of_a_snapshot(counter, collection, f"bench-{run}-{collection}")
    found: Found = {}
    for what in sorted({step[0] for step in counter.found}):
        for collection in ALL:
            for state, text in (("acting", what), ("idle", f"{what}, nothing to do"), ("info", what)):
                if results := counter.found.get((what, state, collection)):
                    found[text, collection] = results
    return {key: found[key] for key in sorted(found, key=lambda key: (key[0], ALL.index(key[1])))}


def _life_of_a_snapshot(counter: Counter, collection: str, name: str) -> None:
    """What can be done to snapshots, acting and finding nothing to do."""
    lab = counter.lab
    moid = lab.create_vm(name, disks=[MIB])["moid"]
    vm = {**_options(lab, collection), "moid": moid}
    named = {**_options(lab, collection), "name": name}
    manage, revert, info = _modules(collection)
    if collection != OURS:
        named["folder"] = "/DC0/vm"
    for state in ("acting", "idle"):
        counter.step("create", state, manage, snapshot_name="bench", **vm)
    for state, old in (("acting", "bench"), ("idle", "new")):
        counter.step("rename", state, manage, snapshot_name=old, new_snapshot_name="new", **vm)
    counter.step("info of one VM", "info", info, **vm)
    counter.step("info of one VM by its name", "info", info, **named)
    way = {} if revert != manage else {"state": "revert"}
    counter.step("revert", "acting", revert, snapshot_name="new", **way, **vm)
    for state in ("acting", "idle"):
        counter.step("remove", state, manage, state="absent", snapshot_name="new", **vm)
    for number in range(3):
        lab.take_snapshot(moid, f"bench-{number}")
    gone = {"state": "remove_all"} if collection == "community.vmware" else {"state": "absent", "remove_all": True}
    for state in ("acting", "idle"):
        counter.step("remove all", state, manage, **gone, **vm)
    lab.destroy_vm(moid)
    if collection == OURS:
        counter.step("info of all VMs", "info", info, disks=False, sizes=False, **_options(lab, collection))
        counter.step("info of all VMs with sizes and disks", "info", info, **_options(lab, collection))
    elif collection == "community.vmware":  # the other peer asks for one VM at a time
        counter.step("info of all VMs", "info", f"{collection}.vmware_all_snapshots_info", **_options(lab, collection))


def _modules(collection: str) -> tuple[str, str, str]:
    """Its modules that manage snapshots, revert to them and list them."""
    if collection == "community.vmware":
        manage = f"{collection}.vmware_guest_snapshot"
        return manage, manage, f"{manage}_info"
    manage = f"{collection}.vm_snapshot"
    return manage, manage if collection == OURS else f"{manage}_revert", f"{manage}_info"


def _options(lab: Lab, collection: str) -> dict[str, Any]:
    """How a module of the collection reaches the lab; the peers find the certificate by SSL_CERT_FILE."""
    options = lab.module_args()
    if collection != OURS:
        del options["ca_path"]
        options["datacenter"] = "DC0"
    return options


def _plays(lab: Lab, place: Path, machines: int, runs: int) -> Found:
    """One play of ansible-playbook, in which each of many VMs gets a snapshot and loses it again."""
    hosts = {}
    for number in range(machines):
        name = f"host{number:03}"
        hosts[name] = {"moid": lab.create_vm(name, disks=[MIB])["moid"]}
    variables = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (place / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": variables}}))
    plays = {SESSION: _with_session(), PINGS: [{"ansible.builtin.ping": {}}] * 2}
    plays.update({collection: _create_and_remove(collection) for collection in ALL})

    def runner(tasks: list[dict[str, Any]]) -> Callable[[], dict[str, float]]:
        return lambda: _run_play(lab, place, tasks)

    found = measure.alternate(runs, {name: runner(tasks) for name, tasks in plays.items()})
    return {(f"create and remove, {machines} VMs in one play", name): results for name, results in found.items()}


def _create_and_remove(collection: str) -> list[dict[str, Any]]:
    """Two tasks; the connection is in the environment."""
    common = {"moid": "{{ moid }}", "snapshot_name": "bench"}
    if collection != OURS:
        common["datacenter"] = "DC0"
    return [{_modules(collection)[0]: {**common, "state": state}} for state in ("present", "absent")]


def _with_session() -> list[dict[str, Any]]:
    """The same with one log-in for all VMs, as docs/session.md shows it."""
    session = f"{OURS}.vcenter_session"
    login = {session: {}, "register": "login", "run_once": True}
    logout = {session: {"state": "absent", "session": "{{ login.session }}"}, "run_once": True}
    options = {"module_defaults": {f"group/{OURS}.vcenter": {"session": "{{ login.session }}"}}}
    return [login, {"block": _create_and_remove(OURS), "always": [logout], **options}]


def _run_play(lab: Lab, place: Path, tasks: list[dict[str, Any]]) -> dict[str, float]:
    playbook = place / "playbook.json"
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    environment = {
        **lab.env(),
        "SSL_CERT_FILE": lab.ca_file,
        "ANSIBLE_COLLECTIONS_PATH": f"{BUILD / 'collections'}:{FOLDER}",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_LOCAL_TEMP": str(place / "local"),
        "ANSIBLE_REMOTE_TEMP": str(place / "remote"),
    }
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    lab.requests(reset=True)
    cost = measure.run([program, "-i", str(place / "inventory.json"), str(playbook)], environment=environment)
    return {**requests_of(lab), "seconds": cost.seconds, "cpu": cost.cpu}


def _late(durations: list[int]) -> Found:
    """How long after the end of a slow task its module ends. All wait at the same time, each on a lab of its own."""
    jobs = [(seconds, collection) for seconds in durations for collection in ALL]
    with ThreadPoolExecutor(len(jobs)) as pool:
        waiting = []
        for job in jobs:
            waiting.append(pool.submit(_slow_task, *job))
            time.sleep(STAGGER)
        return {(f"create, {job[0]} s", job[1]): [one.result()] for job, one in zip(jobs, waiting)}


def _slow_task(seconds: int, collection: str) -> dict[str, float]:
    with Lab.start() as lab:
        moid = lab.create_vm("slow", disks=[MIB])["moid"]
        lab.fault(task="createSnapshot*", delay_ms=seconds * 1000)
        args = {**_options(lab, collection), "moid": moid, "snapshot_name": "bench"}
        started = time.monotonic()
        subprocess.run(
            [sys.executable, RUNNER],
            input=task(_modules(collection)[0], args),
            env={**os.environ, "SSL_CERT_FILE": lab.ca_file},
            capture_output=True,
            text=True,
            check=True,
        )
        took, ended = time.monotonic() - started, time.time()
        completed = datetime.fromisoformat(lab.tasks(moid)[-1]["completed"]).timestamp()
        return {**requests_of(lab), "seconds": took, "late": ended - completed}


def _judge(report: Section) -> None:
    """Ours needs at most half of the requests of the better peer, in each row that a peer has."""
    rows: dict[str, dict[str, int]] = {}
    for row in report.rows:
        rows.setdefault(row["what"], {})[row["collection"]] = row["requests"]
    good = compared = 0
    for what, requests in rows.items():
        if best := min((requests[peer] for peer in PEERS if peer in requests), default=0):
            for ours in (name for name in (OURS, SESSION) if name in requests):
                report.at_most(f"requests to those of the better peer: {what}, {ours}", requests[ours] / best, SHARE)
                good += requests[ours] <= SHARE * best
                compared += 1
    report.at_least("rows with at most half of the better peer's requests", good, compared)
