# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real plays in one session: how often they log in, what they leave, and where the secret gets to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.session import Session
from ansible_collections.holdfast.backup.tests.lab.client import REPOSITORY

pytestmark = pytest.mark.timeout(600)

GROUP = "group/holdfast.backup.vcenter"
LOGIN = {"name": "Log in", "holdfast.backup.vcenter_session": {}, "register": "login", "run_once": True}
LOGOUT = {
    "name": "Log out",
    "holdfast.backup.vcenter_session": {"state": "absent"},
    "when": "login.session is defined",
    "run_once": True,
}
TAKE = {
    "name": "Take a snapshot",
    "holdfast.backup.vm_snapshot": {"moid": "{{ moid }}", "snapshot_name": "before"},
    "register": "taken",
}
LOOK = {"name": "Look", "holdfast.backup.vm_snapshot_info": {"moid": "{{ moid }}"}}
# The session as nobody should do it, hidden as the module does it, for the test to compare.
KEEP = {
    "name": "Keep it",
    "ansible.builtin.copy": {"content": "{{ login.session }}", "dest": "{{ secret }}", "mode": "0600"},
    "no_log": True,
    "run_once": True,
}


@pytest.fixture
def play(lab, tmp_path):
    """Runs tasks on VMs by a real ansible-playbook that stores and shows all it can; returns status and output."""

    def run(tasks, vms, *, session=True, user=True, always=()):
        options = {name: lab.module_args()[name] for name in ("hostname", "port", "ca_path")}
        if session:
            options["session"] = "{{ login.session | default(omit) }}"
        block = {"name": "Work", "block": tasks, "always": list(always)} if always else {"name": "Work", "block": tasks}
        given = {
            "name": "A play",
            "hosts": "all",
            "connection": "local",
            "module_defaults": {GROUP: options},
            "vars": {"secret": str(tmp_path / "secret"), "control": lab.control},
            "tasks": [block],
        }
        (tmp_path / "play.yml").write_text(yaml.safe_dump([given], sort_keys=False))
        hosts = {vm["name"]: {"moid": vm["moid"], "ansible_python_interpreter": sys.executable} for vm in vms}
        (tmp_path / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts}}))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VMWARE_")}
        if user:
            environment |= {"VMWARE_USER": lab.username, "VMWARE_PASSWORD": lab.password}
        environment |= {
            "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / ".build" / "collections"),
            "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).parent / "roles" / "callback_plugins"),
            "ANSIBLE_CALLBACKS_ENABLED": "recorder",
            "RECORD": str(tmp_path / "record"),
            "ANSIBLE_HOME": str(tmp_path / "ansible"),
            "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
            "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
            "ANSIBLE_KEEP_REMOTE_FILES": "0",
            "ANSIBLE_CACHE_PLUGIN": "jsonfile",
            "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(tmp_path / "cache"),
            "ANSIBLE_LOG_PATH": str(tmp_path / "log"),
            "ANSIBLE_DISPLAY_ARGS_TO_STDOUT": "1",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORKS": "5",
        }
        command = [Path(sys.executable).parent / "ansible-playbook", "-vvvv", "-i", "inventory.json", "play.yml"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        (tmp_path / "output").write_text(done.stdout + done.stderr)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def machines(_lab_of_file):
    return [_lab_of_file.create_vm(f"host{number}", disks=[1 << 20]) for number in range(10)]


def results(tmp_path, task):
    events = [json.loads(line) for line in (tmp_path / "record").read_text().splitlines()]
    return [event["result"] for event in events if event["task"] == task]


def test_ten_hosts_in_one_session_that_nobody_sees(lab, play, machines, tmp_path):
    caching = {"name": "Cache", "ansible.builtin.set_fact": {"taken": "{{ taken }}", "cacheable": True}}
    status, output = play([LOGIN, KEEP, TAKE, caching], machines, always=[LOGOUT])
    assert status == 0, output
    assert lab.requests()["logins"] == 1
    assert lab.requests()["methods"]["Logout"] == 1
    assert lab.sessions() == []
    for machine in machines:
        assert [one["name"] for one in lab.snapshots(machine["moid"])] == ["before"]

    text = (tmp_path / "secret").read_text()
    session = Session.parse(text)
    secrets = [text.split(":")[1], session.soap.split("=")[1].strip('"')]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "secret"]
    assert {"output", "log", "record", "s1_host9"} <= {path.name for path in files}
    assert [path for path in files for secret in secrets if secret in path.read_text(errors="replace")] == []
    # It was hidden, and it was the module's result that was.
    [shown] = results(tmp_path, "Log in")
    assert "no_log" in shown["censored"]
    assert "session" not in shown
    assert (
        results(tmp_path, "Take a snapshot")[0]["invocation"]["module_args"]["session"]
        == "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"
    )


def test_without_a_session_each_task_logs_in(lab, play, machines):
    status, output = play([TAKE, LOOK], machines[:2], session=False)
    assert status == 0, output
    assert lab.requests()["logins"] == 4
    assert lab.sessions() == []


def test_a_session_that_ends_in_mid_play(lab, play, machines, tmp_path):
    expire = {
        "name": "A long pause",
        "ansible.builtin.uri": {"url": "{{ control }}/control/expire_sessions", "method": "POST", "body": "{}"},
    }
    tasks = [LOGIN, expire, {**LOOK, "ignore_errors": True}, {**LOGIN, "name": "Log in again"}, LOOK]
    status, output = play(tasks, machines[:1], always=[LOGOUT])
    assert status == 0, output
    assert lab.requests()["logins"] == 3  # the task by itself, and the play twice
    assert lab.sessions() == []


def test_a_failed_task_and_a_log_out_in_always(lab, play, machines, tmp_path):
    """By who has no password but for the log-in, which is in a loop."""
    user = {"username": lab.username, "password": lab.password}
    login = {**LOGIN, "holdfast.backup.vcenter_session": user, "register": "logins", "loop": [1]}
    use = {"session": "{{ logins.results[0].session }}"}
    look = {**LOOK, "holdfast.backup.vm_snapshot_info": {"moid": "vm-0", **use}}
    ended = {"name": "Log out", "holdfast.backup.vcenter_session": {"state": "absent", **use}}
    late = {**look, "name": "Too late", "ignore_errors": True}
    status, output = play([login, look], machines[:1], user=False, always=[ended, late, {**ended, "name": "Again"}])
    assert status == 2, output
    assert lab.sessions() == []
    assert lab.requests()["logins"] == 1
    [missing] = results(tmp_path, "Look")
    assert missing["error_type"] == "NotFound"
    [refused] = results(tmp_path, "Too late")
    assert refused["error_type"] == "AuthenticationFailed"
    assert "has ended, and there is no password" in refused["msg"]
    assert "holdfast-session" not in output


def test_a_failed_log_in_says_why(lab, play, machines, tmp_path):
    wrong = {"username": lab.username, "password": "wrong-1"}
    login = {**LOGIN, "holdfast.backup.vcenter_session": wrong}
    background = {**LOGIN, "async": 60, "ignore_errors": True}
    status, _output = play([background, login], machines[:1])
    assert status == 2
    [never, failed] = results(tmp_path, "Log in")
    assert "async" in never["msg"]
    assert "refused the user name or password" in failed["msg"]
    assert lab.sessions() == []
