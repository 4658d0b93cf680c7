# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The VI JSON session against the lab, which speaks it strictly. Queries are tested with disk_changed_areas."""

from __future__ import annotations

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils import _errors
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.vi_json import ViJson, reference


def endpoint(lab, **changes):
    return Endpoint(**{**lab.module_args(), **changes})


def ask(session, moid="vm-4711", snapshot="snapshot-4711"):
    return session.read(
        "VirtualMachine",
        moid,
        "QueryChangedDiskAreas",
        snapshot=reference("VirtualMachineSnapshot", snapshot),
        deviceKey=2000,
        startOffset=0,
        changeId="*",
    )


def test_a_session_is_opened_and_closed(lab):
    before = lab.sessions()
    with ViJson(endpoint(lab)) as session:
        assert session.release == "8.0.3.0"
        assert len(lab.sessions()) == len(before) + 1
    assert lab.sessions() == before


def test_the_session_is_closed_after_an_error(lab):
    before = lab.sessions()
    with pytest.raises(ZeroDivisionError), ViJson(endpoint(lab)):
        raise ZeroDivisionError
    assert lab.sessions() == before


def test_a_lost_server_at_the_end_is_no_error(fresh_lab):
    lab = fresh_lab()
    session = ViJson(endpoint(lab)).__enter__()
    lab.stop()
    session.__exit__()


def test_the_first_release_has_no_negotiation(fresh_lab):
    with ViJson(endpoint(fresh_lab(**{"vi-releases": "8.0.1.0"}))) as session:
        assert session.release == "8.0.1.0"


@pytest.mark.parametrize("releases", ["", "9.9.9.0"])
def test_a_server_without_it_is_named(fresh_lab, releases):
    lab = fresh_lab(**{"vi-releases": releases})
    with (
        pytest.raises(_errors.NotSupported, match=r"8\.0 Update 1 or later; use api: soap") as caught,
        ViJson(endpoint(lab)),
    ):
        pass
    assert f"{lab.hostname}:{lab.port}" in str(caught.value)


def test_a_wrong_password(lab):
    with pytest.raises(_errors.AuthenticationFailed) as caught, ViJson(endpoint(lab, password="Wrong-1")):
        pass
    assert "Wrong-1" not in str(caught.value)


def test_an_untrusted_certificate(lab):
    with pytest.raises(_errors.CertificateRejected), ViJson(endpoint(lab, ca_path=None)):
        pass
    with ViJson(endpoint(lab, ca_path=None, validate_certs=False)):
        pass


def test_nobody_listens(lab):
    with pytest.raises(_errors.ConnectionFailed), ViJson(endpoint(lab, port=1)):
        pass


def test_a_vm_that_is_gone(lab):
    with ViJson(endpoint(lab)) as session, pytest.raises(_errors.NotFound, match="vm-4711"):
        ask(session)


def test_what_the_lab_refuses_is_told(lab):
    with ViJson(endpoint(lab)) as session, pytest.raises(_errors.ConnectionFailed, match="answered 400"):
        session.read("VirtualMachine", "vm-4711", "QueryChangedDiskAreas", snapshotId="snapshot-1")


def test_a_status_that_is_no_fault(lab):
    lab.fault("QueryChangedDiskAreas", status=503)
    with ViJson(endpoint(lab)) as session, pytest.raises(_errors.ConnectionFailed, match="answered 503"):
        ask(session)


def test_a_fault_by_its_name(lab):
    lab.fault("QueryChangedDiskAreas", fault="FileFault", fields={"file": "x-ctk.vmdk"}, message="no tracking file")
    with ViJson(endpoint(lab)) as session, pytest.raises(_errors.VsphereFault, match="no tracking file") as caught:
        ask(session)
    assert caught.value.details == {"fault": "FileFault"}


def test_an_expired_session_is_renewed_once(lab):
    with ViJson(endpoint(lab)) as session:
        lab.expire_sessions()
        lab.requests(reset=True)
        with pytest.raises(_errors.NotFound):
            ask(session)
        assert lab.requests()["logins"] == 1
        lab.fault("QueryChangedDiskAreas", fault="NotAuthenticated", count=2)
        with pytest.raises(_errors.VsphereFault, match="NotAuthenticated"):
            ask(session)
