# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the VDDK plugin is told and tells, without a library."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import plugins
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import vddk_interface as subject
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.plugin_interface import Status

DOCUMENT = {
    "library_dir": "/opt/vddk",
    "server": "vc",
    "username": "u",
    "password": "Geheim-1",
    "thumbprint": "AA:BB",
    "vm": "vm-1",
}


def test_parameters_have_defaults():
    parameters = subject.Parameters.parse(json.dumps(DOCUMENT))
    assert (parameters.port, parameters.transports, parameters.read_only) == (443, "nbdssl:nbd", True)
    assert "Geheim" not in repr(parameters)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"server": None, "sever": "x"}, "unknown: sever"), ({"password": ...}, "password"), ("[]", "mapping")],
)
def test_wrong_parameters_are_named(change, words):
    text = (
        change
        if isinstance(change, str)
        else json.dumps({key: value for key, value in {**DOCUMENT, **change}.items() if value is not ...})
    )
    with pytest.raises(subject.VddkError, match=words):
        subject.Parameters.parse(text)


FCD = {"vm": ..., "fcd_id": "0a1b", "datastore": "datastore-12"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vm": ...}, "either vm or fcd_id"),
        ({"fcd_id": "0a1b", "datastore": "datastore-12"}, "either vm or fcd_id"),
        ({**FCD, "datastore": ...}, "go together"),
        ({"datastore": "datastore-12"}, "go together"),
    ],
)
def test_a_disk_is_named_by_its_vm_or_as_first_class_disk(change, words):
    text = json.dumps({key: value for key, value in {**DOCUMENT, **change}.items() if value is not ...})
    with pytest.raises(subject.VddkError, match=words):
        subject.Parameters.parse(text)


def test_messages_name_the_vm_or_the_first_class_disk():
    fcd = json.dumps({key: value for key, value in {**DOCUMENT, **FCD}.items() if value is not ...})
    assert subject.Parameters.parse(json.dumps(DOCUMENT)).owner == "vm-1"
    assert subject.Parameters.parse(fcd).owner == "the first class disk 0a1b in datastore-12"


def test_the_parameters_file_is_deleted_once_read(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(DOCUMENT))
    assert subject.read_parameters(str(path)).vm == "vm-1"
    assert not path.exists()


def test_parameters_come_through_a_descriptor():
    reader, writer = os.pipe()
    os.write(writer, json.dumps(DOCUMENT).encode())
    os.close(writer)
    assert subject.read_parameters(f"-{reader}").vm == "vm-1"


def test_config_lays_the_users_settings_over_ours():
    text = subject.config_text({"vixDiskLib.nfcAio.Session.BufCount": 8, "a": True, "b": "x y"}, "/var/t")
    assert 'tmpDirectory="/var/t"\n' in text
    assert "vixDiskLib.nfcAio.Session.BufSizeIn64KB=16\n" in text
    assert "vixDiskLib.nfcAio.Session.BufCount=8\n" in text
    assert text.endswith('a=1\nb="x y"\n')
    assert "phoneHome" not in subject.config_text({"vixDiskLib.phoneHome.EnablePhoneHome": None}, "/var/t")


@pytest.mark.parametrize("config", [{"a=b": 1}, {"a\n": 1}, {"a": "1\nb=2"}])
def test_config_settings_cannot_smuggle_others(config):
    with pytest.raises(subject.VddkError, match="line break or an equals sign"):
        subject.config_text(config, "/var/t")


def test_the_configuration_file_is_private_and_shared_by_equal_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, again, other = subject.write_config({}), subject.write_config({}), subject.write_config({"a": 1})
    assert first == again != other
    assert os.stat(os.path.dirname(first)).st_mode & 0o777 == 0o700
    assert len(os.listdir(os.path.dirname(first))) == 2


@pytest.mark.parametrize("code", sorted(subject.ERRORS))
def test_every_known_error_has_a_name_and_a_bounded_number_of_repeats(code):
    name, repeats, hint = subject.ERRORS[code]
    assert name.startswith("VIX_E_")
    assert repeats in (0, 1, 2, subject.MANY)
    assert hint == "" or hint.endswith(".")


def test_errors_know_what_to_do_next():
    error = subject.VddkError("open", "Opening x failed.", 14009)
    assert "902" in error.hint
    assert error.repeats > 0
    assert subject.VddkError("open", "?", 4711).repeats == 0
    assert subject.VddkError("load", "?", hint="Do this.").hint == "Do this."


def test_status_lines_hold_no_secret_and_each_error_once(tmp_path):
    path = tmp_path / "status"
    seen = []
    status = Status(str(path), "Geheim-1", seen.append)
    status.log("login with Geheim-1 failed", True)
    error = subject.VddkError("open", "Opening with Geheim-1 failed.", 1)
    status.error(error)
    status.error(error)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["error"]
    assert lines[0]["log"] == ["login with ******** failed"] == seen
    assert "Geheim" not in path.read_text()


def test_the_shipped_plugin_stands_alone_and_loads_no_openssl(tmp_path):
    script = plugins.ship(str(tmp_path))
    code = f"import runpy, sys; runpy.run_path({script!r}); sys.exit(bool({{'_hashlib', '_ssl'}} & set(sys.modules)))"
    environment = {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_environment_keeps_what_is_inherited_behind(monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/inherited")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert plugins.environment("/tmp/x", "/opt/vddk") == {
        "PYTHONPATH": "/tmp/x",
        "LD_LIBRARY_PATH": "/opt/vddk/lib64:/inherited",
    }
