# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Logging in with SAML tokens: the lab checks signatures, times, audience and keys."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from ansible_collections.holdfast.backup.tests import modules


@pytest.fixture
def args(lab):
    return lab.module_args()


@pytest.fixture
def nobody(args):
    """The server, and no user."""
    return {name: value for name, value in args.items() if name not in ("username", "password")}


@pytest.fixture
def open_session(lab, nobody):
    """Opens a session, which is ended; returns the result of the module."""

    def opened(**options):
        result = modules.run("vcenter_session", {**nobody, **options})
        assert len(lab.sessions()) == 1
        given = {**nobody, "session": result["session"]}
        assert modules.run("vm_snapshot_info", {**given, "moid": "vm-0"}, fail=True)["error_type"] == "NotFound"
        assert modules.run("vcenter_session", {**given, "state": "absent"})["outcome"] == "ended"
        return result

    yield opened
    assert lab.sessions() == []


def refused(nobody, **options):
    failed = modules.run("vcenter_session", {**nobody, **options}, fail=True)
    assert failed["next_step"]
    return f"{failed['error_type']}: {failed['msg']}"


def keys(directory, name):
    """A certificate and its key, as files."""
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={name}"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return {"certificate": str(certificate), "private_key": str(key)}


@pytest.fixture(scope="module")
def robot(tmp_path_factory, _lab_of_file):
    """A user who has a key and no password."""
    files = keys(tmp_path_factory.mktemp("robot"), "robot")
    with open(files["certificate"], encoding="ascii") as file:
        _lab_of_file.solution_user("robot@vsphere.local", file.read())
    return files


def test_a_bearer_token_of_single_sign_on(lab, args, open_session):
    credentials = {"username": args["username"], "password": args["password"]}
    assert open_session(**credentials, sso=True)["user"] == lab.username
    assert lab.requests()["methods"].get("Login") is None
    assert lab.requests()["http"]["POST /sts/STSService"] == 1


def test_a_user_whose_name_and_password_are_xml(nobody):
    assert "Invalid credentials" in refused(nobody, sso=True, username="<a&b>", password="</c>&")


def test_a_wrong_password(args):
    message = refused(args, sso=True, password="wrong-1")
    assert message.startswith("AuthenticationFailed: Single Sign-On on")
    assert "Invalid credentials (FailedAuthentication)" in message
    assert "wrong-1" not in message


def test_the_holder_of_a_key(open_session, robot):
    assert open_session(**robot, sso=True)["user"] == "robot@vsphere.local"


def test_the_holder_of_another_key(nobody, robot, tmp_path):
    other = keys(tmp_path, "other")
    assert "Invalid credentials" in refused(nobody, **other, sso=True)
    mixed = {**robot, "private_key": other["private_key"]}
    assert "verification error" in refused(nobody, **mixed, sso=True)


def test_keys_that_cannot_be_used(nobody, robot, tmp_path):
    assert "cannot be read: No such file" in refused(nobody, **{**robot, "private_key": "/nowhere.key"}, sso=True)
    (tmp_path / "nonsense").write_text("nonsense")
    broken = {**robot, "private_key": str(tmp_path / "nonsense")}
    assert refused(nobody, **broken, sso=True).startswith("InvalidInput: ")


@pytest.mark.parametrize("as_file", [False, True])
def test_a_token_from_elsewhere(lab, open_session, tmp_path, as_file):
    token = lab.saml_token(audience=lab.url)
    if as_file:
        (tmp_path / "token.xml").write_text(f'<?xml version="1.0"?>\n{token}\n')
        token = str(tmp_path / "token.xml")
    assert open_session(token=token)["user"] == lab.username


def test_tokens_that_are_refused(lab, nobody):
    ended = refused(nobody, token=lab.saml_token(seconds=-1))
    assert re.match(r"AuthenticationFailed: .* refused the SAML token\. It is good until 20\S+Z\. Get a new one", ended)
    good = lab.saml_token()
    for token in (
        lab.saml_token(user="administrator@vsphere.local"),
        lab.saml_token(audience="https://other.example.com/sdk"),
        good.replace(lab.username, "administrator@vsphere.local"),
        re.sub("<ds:Signature .*</ds:Signature>", "", good),
    ):
        assert "refused the SAML token" in refused(nobody, token=token)
    assert lab.sessions() == []


def test_what_is_no_token(nobody, tmp_path):
    assert "that the option token names cannot be read: No such file" in refused(
        nobody, token=str(tmp_path / "nothing.xml")
    )
    (tmp_path / "other.xml").write_text("<a/>")
    assert "holds no SAML token" in refused(nobody, token=str(tmp_path / "other.xml"))
    assert "sso asks for one" in refused(nobody, token="<Assertion >", sso=True)


def test_without_the_libraries(lab, args, open_session, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyVim.sso", None)
    monkeypatch.delattr("pyVim.sso", raising=False)
    assert "pyvmomi[sso]" in refused(args, sso=True)
    assert open_session(token=lab.saml_token())
