# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The vSphere layer against the lab: sessions, bad wires, look-ups, waiting."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import ssl
import threading
import time

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    Ambiguous,
    AuthenticationFailed,
    CertificateRejected,
    ConnectionFailed,
    NotFound,
    TaskFailed,
    TimedOut,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import connection, tasks
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.inventory import find_vm, paths, vm_dict
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.session import Session


@pytest.fixture
def endpoint(lab):
    return Endpoint(**lab.module_args())


@pytest.fixture
def c(lab, endpoint):
    """A connection; its log-in is in the lab's count."""
    with Connection(endpoint) as c:
        yield c


@pytest.fixture
def vm(lab):
    """A powered-on VM of the test's own."""
    record = lab.create_vm(f"own-{time.monotonic_ns()}", disks=[1 << 20], power="poweredOn")
    yield record
    lab.destroy_vm(record["moid"])


def methods(lab):
    return lab.requests()["methods"]


# the session


def test_a_session_costs_three_requests_and_is_closed(lab, endpoint):
    with Connection(endpoint) as c:
        assert c.is_vcenter
        assert len(lab.sessions()) == 1
    assert methods(lab) == {"RetrieveServiceContent": 1, "Login": 1, "Logout": 1}
    assert lab.sessions() == []


def test_the_session_is_closed_after_an_error(lab, endpoint):
    with pytest.raises(KeyboardInterrupt), Connection(endpoint):
        raise KeyboardInterrupt
    assert lab.sessions() == []


def test_the_session_is_closed_although_the_connection_dropped(lab, endpoint):
    with Connection(endpoint):
        lab.drop_connections()
    assert lab.sessions() == []


def test_a_login_whose_reply_is_lost_leaves_no_session(lab, endpoint, monkeypatch):
    real = Connection._login

    def login(self):
        real(self)
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(Connection, "_login", login)
    with pytest.raises(ConnectionFailed), Connection(endpoint):
        pass
    assert lab.sessions() == []


def test_closing_hides_no_error(lab, endpoint):
    lab.fault(method="Logout", drop=True, count=0)
    with pytest.raises(ZeroDivisionError), Connection(endpoint):
        raise ZeroDivisionError
    assert lab.expire_sessions() == 1  # so no other test meets it


def test_the_server_chooses_the_version(c):
    assert c.stub.version == connection.newest_version(c.about.apiVersion)


def test_an_expired_session_is_renewed_once(lab, c):
    lab.expire_sessions()
    assert c.call(c.content.rootFolder.CreateFolder, f"f{time.monotonic_ns()}")._GetMoId()
    assert lab.requests()["logins"] == 2
    assert methods(lab)["CreateFolder"] == 2


def test_a_session_expires_and_the_connection_drops(lab, c):
    lab.expire_sessions()
    lab.drop_connections()
    assert c.retrieve([c.content.rootFolder], {vim.Folder: ["name"]})
    assert lab.requests()["logins"] == 2


def test_a_read_is_repeated_after_a_drop(lab, c):
    lab.fault(method="RetrievePropertiesEx", drop=True)
    assert c.retrieve([c.content.rootFolder], {vim.Folder: ["name"]})[c.content.rootFolder]["name"]
    lab.fault(method="RetrievePropertiesEx", drop=True, count=2)
    with pytest.raises(ConnectionFailed):
        c.retrieve([c.content.rootFolder], {vim.Folder: ["name"]})


def test_a_call_is_never_repeated_after_a_drop(lab, c):
    lab.fault(method="CreateFolder", drop=True)
    with pytest.raises(ConnectionFailed):
        c.call(c.content.rootFolder.CreateFolder, f"f{time.monotonic_ns()}")
    assert methods(lab)["CreateFolder"] == 1


def test_http_status_of_a_sick_server(lab, c):
    lab.fault(method="CreateFolder", status=503)
    with pytest.raises(ConnectionFailed, match="503"):
        c.call(c.content.rootFolder.CreateFolder, "f")


def test_a_fault_keeps_its_type_and_cause(lab, c):
    lab.fault(method="CreateFolder", fault="DuplicateName", fields={"name": "f"})
    with pytest.raises(VsphereFault, match=r"refused CreateFolder of group-.*DuplicateName") as caught:
        c.call(c.content.rootFolder.CreateFolder, "f")
    assert caught.value.details["fault"] == "DuplicateName"
    assert caught.value.__cause__.name == "f"


def test_a_wrong_password(lab, endpoint):
    wrong = dataclasses.replace(endpoint, password="s3cret")
    with pytest.raises(AuthenticationFailed) as caught, Connection(wrong):
        pass
    assert "s3cret" not in str(caught.value)
    assert lab.sessions() == []


def test_an_untrusted_certificate(endpoint):
    with (
        pytest.raises(CertificateRejected, match=r"is not trusted.*ca_path"),
        Connection(dataclasses.replace(endpoint, ca_path=None)),
    ):
        pass


def test_a_certificate_for_another_name(endpoint, monkeypatch):
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args: real(endpoint.hostname, *args))
    with (
        pytest.raises(CertificateRejected, match="Hostname mismatch"),
        Connection(dataclasses.replace(endpoint, hostname="vc.example.com")),
    ):
        pass


def test_an_unchecked_certificate(lab, endpoint):
    with Connection(dataclasses.replace(endpoint, ca_path=None, validate_certs=False)) as c:
        assert c.thumbprint() == lab.thumbprint


def test_the_thumbprint_is_that_of_the_checked_certificate(lab, c):
    assert c.thumbprint() == lab.thumbprint


def test_the_environment_has_no_say(lab, endpoint, monkeypatch):
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    with Connection(endpoint) as c:
        assert c.http().get(f"{lab.url.rsplit('/', 1)[0]}/sdk/vimServiceVersions.xml", timeout=10).ok


def test_http_shares_the_session(c):
    assert c.soap_cookie().startswith("vmware_soap_session=")
    assert ";" not in c.soap_cookie()
    assert c.http().headers["Cookie"] == c.soap_cookie()


@contextlib.contextmanager
def listening(answer):
    """A server that hands each connection to ``answer``; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    peer, _address = server.accept()
                    threading.Thread(target=answer, args=(peer,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_a_proxy(endpoint):
    asked = []

    def relay(peer):
        request = peer.recv(4096).decode()
        asked.append(request.splitlines()[0])
        upstream = socket.create_connection((endpoint.hostname, endpoint.port))
        peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for source, sink in ((peer, upstream), (upstream, peer)):
            threading.Thread(target=pump, args=(source, sink), daemon=True).start()

    def pump(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    with listening(relay) as port:
        proxied = dataclasses.replace(endpoint, proxy_host="127.0.0.1", proxy_port=port)
        with Connection(proxied) as c:
            assert c.about.apiType == "VirtualCenter"
    assert asked[0].startswith(f"CONNECT {endpoint.address} ")


def test_a_proxy_that_refuses(endpoint):
    def refuse(peer):
        peer.recv(4096)
        peer.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        peer.close()

    with listening(refuse) as port:
        proxied = dataclasses.replace(endpoint, proxy_host="127.0.0.1", proxy_port=port)
        with pytest.raises(ConnectionFailed, match=r"by the proxy 127\.0\.0\.1.*403"), Connection(proxied):
            pass


def test_nobody_listens(endpoint):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (
        pytest.raises(ConnectionFailed, match="connection refused"),
        Connection(dataclasses.replace(endpoint, port=port)),
    ):
        pass


def test_a_port_that_speaks_no_tls(endpoint):
    with (
        listening(lambda peer: (peer.recv(1), peer.sendall(b"220 hello\r\n" * 9))) as port,
        pytest.raises(ConnectionFailed, match="TLS failed"),
        Connection(dataclasses.replace(endpoint, port=port)),
    ):
        pass


def test_a_web_server_that_is_no_vcenter(lab, endpoint, monkeypatch):
    monkeypatch.setattr(Connection, "_make_stub", _elsewhere(Connection._make_stub))
    with pytest.raises(ConnectionFailed), Connection(endpoint):
        pass


def _elsewhere(make):
    def made(self, *args):
        stub = make(self, *args)
        stub.path = "/nothing/here"
        return stub

    return made


def test_a_server_that_never_answers(endpoint, monkeypatch):
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 0.2)
    with (
        listening(lambda peer: time.sleep(5)) as port,
        pytest.raises(ConnectionFailed, match="no answer in time"),
        Connection(dataclasses.replace(endpoint, port=port)),
    ):
        pass


def test_a_call_that_takes_too_long(lab, endpoint, monkeypatch):
    monkeypatch.setattr(connection, "READ_TIMEOUT", 0.3)
    with Connection(endpoint) as c:
        lab.fault(method="CreateFolder", delay_ms=1000)
        with pytest.raises(ConnectionFailed, match="no answer in time"):
            c.call(c.content.rootFolder.CreateFolder, f"f{time.monotonic_ns()}")


def test_the_context_is_the_endpoints_own(endpoint):
    assert endpoint.ssl_context().verify_mode is ssl.CERT_REQUIRED


# a session that others use too


@pytest.fixture
def shared(c, endpoint):
    """The endpoint with the session of ``c`` and nobody to log in as."""
    given = Session(c.soap_cookie(), server=c.vcenter).encode()
    return dataclasses.replace(endpoint, username=None, password=None, session=given)


def test_a_shared_session_costs_one_request_and_stays(lab, c, shared):
    lab.requests(reset=True)
    with Connection(shared) as other:
        assert other.shared
        assert other.retrieve([other.content.rootFolder], {vim.Folder: ["name"]})
    assert methods(lab) == {"RetrieveServiceContent": 1, "RetrievePropertiesEx": 1}
    assert len(lab.sessions()) == 1


def test_a_wait_in_a_shared_session_leaves_nothing_there(lab, c, vm, shared):
    with Connection(shared) as other:
        task = snapshot(other, vm)
        lab.requests(reset=True)
        assert tasks.wait(other, task, timeout=10)
        used = methods(lab)
    assert used.pop("WaitForUpdatesEx") <= 2
    assert used == {"CreatePropertyCollector": 1, "CreateFilter": 1, "DestroyPropertyCollector": 1}


def test_waits_in_one_session_do_not_meet(lab, c, vm, shared):
    """The session's own property collector serves one wait at a time."""
    others = [lab.create_vm(f"meet{number}-{time.monotonic_ns()}", disks=[]) for number in range(3)]
    lab.fault(task="*createSnapshot*", delay_ms=500, count=0)
    results = []

    def work(machine):
        with Connection(shared) as other:
            results.append(tasks.wait(other, snapshot(other, machine), timeout=10))

    threads = [threading.Thread(target=work, args=(machine,)) for machine in others]
    for thread in threads:
        thread.start()
    assert tasks.wait(c, snapshot(c, vm), timeout=10)
    for thread in threads:
        thread.join()
    lab.clear_faults()
    assert len(set(results)) == 3
    for machine in others:
        lab.destroy_vm(machine["moid"])


def test_a_view_is_destroyed_in_a_shared_session_only(lab, c, shared):
    for session, end in ((c.endpoint, 0), (shared, 1)):
        lab.requests(reset=True)
        with Connection(session) as other, other.view(other.content.rootFolder, [vim.VirtualMachine]):
            pass
        assert methods(lab).get("DestroyView", 0) == end


def test_a_shared_session_that_ended(lab, c, endpoint, shared):
    lab.expire_sessions()
    with pytest.raises(AuthenticationFailed, match=r"has ended, and there is no password.*vcenter_session again"):
        _root_name(shared)
    assert _root_name(dataclasses.replace(shared, username=endpoint.username, password=endpoint.password))
    assert lab.sessions() == []  # the one that replaced it was our own


def test_a_shared_session_that_ends_in_mid_wait(lab, endpoint, vm, monkeypatch):
    monkeypatch.setattr(tasks, "SLICE", 1)
    with Connection(endpoint) as opener:
        given = opener.leave_open().encode()
    lab.fault(task="*createSnapshot*", delay_ms=1500)
    with Connection(dataclasses.replace(endpoint, session=given)) as c:
        task = snapshot(c, vm)
        timer = threading.Timer(0.5, lab.expire_sessions)
        timer.start()
        assert tasks.wait(c, task, timeout=20)
        timer.join()
        assert not c.shared
    assert lab.sessions() == []


def _root_name(endpoint):
    with Connection(endpoint) as c:
        return c.retrieve([c.content.rootFolder], {vim.Folder: ["name"]})[c.content.rootFolder]["name"]


def test_a_session_of_another_vcenter_is_not_shown_to_this_one(lab, c, shared):
    foreign = Session(c.soap_cookie(), server="42a8c1de-0000-4000-8000-000000000001").encode()
    lab.requests(reset=True)
    with (
        pytest.raises(AuthenticationFailed, match="one of another server"),
        Connection(dataclasses.replace(shared, session=foreign)),
    ):
        pass
    assert lab.requests()["sessions"] == {"": 1}


# looking up

FOLDER = "find/production/web"


@pytest.fixture(scope="module")
def places(_lab_of_file):
    """VMs in nested folders, two of one name, one with characters that vCenter escapes."""
    lab = _lab_of_file
    made = {
        "web": lab.create_vm("find-web", disks=[], folder=FOLDER),
        "twin1": lab.create_vm("find-twin", disks=[], folder="find/a"),
        "twin2": lab.create_vm("find-twin", disks=[], folder="find/b"),
        "odd": lab.create_vm("find-odd", disks=[], folder="find"),
    }
    with Connection(Endpoint(**lab.module_args())) as c:
        # vCenter stores "find 50%/50\\x" like this.
        odd = vim.VirtualMachine(made["odd"]["moid"], c.stub)
        tasks.wait(c, odd.Rename_Task("find 50%25%2f50%5cx"), timeout=10)
    yield made
    for record in made.values():
        lab.destroy_vm(record["moid"])


def path_of(c, record):
    return paths(c, [vim.VirtualMachine(record["moid"], c.stub)]).popitem()[1]


@pytest.mark.parametrize(
    ("selection", "requests"),
    [
        (lambda record, path: {"moid": record["moid"]}, 1),
        (lambda record, path: {"uuid": record["instance_uuid"], "use_instance_uuid": True}, 2),
        (lambda record, path: {"name": "find-web"}, 3),
        (lambda record, path: {"name": "find-web", "folder": path.rsplit("/", 1)[0]}, 2),
        (lambda record, path: {"name": "find-web", "folder": path.rsplit("/", 1)[0] + "/"}, 2),
        (lambda record, path: {"name": "find-web", "folder": FOLDER}, 3),
        (lambda record, path: {"name": "find-web", "folder": FOLDER, "datacenter": path.split("/")[1]}, 3),
        (lambda record, path: {"name": "find-web", "datacenter": path.split("/")[1]}, 4),
    ],
)
def test_one_vm_is_found_in_few_requests(lab, c, places, selection, requests):
    chosen = selection(places["web"], path_of(c, places["web"]))
    lab.requests(reset=True)
    vm, properties = find_vm(c, **chosen, properties=["runtime.powerState"])
    assert lab.requests()["total"] == requests
    assert vm_dict(vm, properties) == {
        "name": "find-web",
        "moid": places["web"]["moid"],
        "instance_uuid": places["web"]["instance_uuid"],
    }
    assert properties["runtime.powerState"] == "poweredOff"


def test_a_bios_uuid_is_no_instance_uuid(c, places):
    vm, properties = find_vm(c, moid=places["web"]["moid"], properties=["config.uuid"])
    assert find_vm(c, uuid=properties["config.uuid"])[0] == vm
    with pytest.raises(NotFound, match="with the BIOS UUID"):
        find_vm(c, uuid=places["web"]["instance_uuid"])


@pytest.mark.parametrize("name", ["find 50%/50\\x", "find 50%25%2f50%5cx"])
@pytest.mark.parametrize("folder", [None, "find"])
def test_names_that_vcenter_escapes(c, places, name, folder):
    vm, properties = find_vm(c, name=name, folder=folder)
    assert vm_dict(vm, properties)["name"] == "find 50%/50\\x"


def test_two_vms_of_one_name_are_listed(c, places):
    with pytest.raises(Ambiguous) as caught:
        find_vm(c, name="find-twin")
    candidates = caught.value.details["candidates"]
    assert [candidate["moid"] for candidate in candidates] == [places["twin1"]["moid"], places["twin2"]["moid"]]
    assert [candidate["path"].split("/vm/")[1] for candidate in candidates] == ["find/a/find-twin", "find/b/find-twin"]
    assert all(candidate["path"] in str(caught.value) for candidate in candidates)
    assert find_vm(c, name="find-twin", folder="find/b")[0]._GetMoId() == places["twin2"]["moid"]


def test_two_vms_of_one_bios_uuid_are_listed(c, places):
    """As a copy of a machine has it; instance UUIDs are kept apart by vCenter itself."""
    twins = [find_vm(c, moid=places[name]["moid"])[0] for name in ("twin1", "twin2")]
    uuid = "420f2a3c-0000-4000-8000-000000000001"
    for twin in twins:
        tasks.wait(c, c.call(twin.ReconfigVM_Task, vim.vm.ConfigSpec(uuid=uuid)), timeout=30)
    with pytest.raises(Ambiguous, match="with the BIOS UUID") as caught:
        find_vm(c, uuid=uuid)
    assert {candidate["moid"] for candidate in caught.value.details["candidates"]} == {
        twin._GetMoId() for twin in twins
    }


@pytest.mark.parametrize(
    "folder",
    [
        "DC0/vm/find/production/web",
        "/DC0/vm/find/production/web/",
        "find/production/web",
        "/find/production/web/",
        "vm/find/production/web",
        "/vm/find/production/web",
        "/DC0/vm/",
        "DC0/vm/find",
        "find/production",
        "vm",
        "/",
    ],
)
@pytest.mark.parametrize("datacenter", [None, "", "DC0", "/DC0/"])
def test_a_folder_in_the_spellings_of_others(c, places, folder, datacenter):
    """A machine may also be below the folder: both peers look there too."""
    assert find_vm(c, name="find-web", folder=folder, datacenter=datacenter)[0]._GetMoId() == places["web"]["moid"]


@pytest.mark.parametrize("folder", ["web", "/production", "production/web/", "/DC0", "DC0/"])
def test_a_folder_that_is_a_part_of_the_path(c, places, folder):
    """Both peers take the datacenter for a folder, and community.vmware any part of the path."""
    assert find_vm(c, name="find-web", folder=folder, datacenter="DC0")[0]._GetMoId() == places["web"]["moid"]


@pytest.mark.parametrize("folder", ["we", "find/web", "web/production", "/find/production/web/more"])
def test_a_folder_that_is_not_on_the_way(c, places, folder):
    with pytest.raises(NotFound, match="find/production/web/find-web"):
        find_vm(c, name="find-web", folder=folder)


def test_a_folder_that_is_a_part_of_several_paths(c, places):
    with pytest.raises(Ambiguous):
        find_vm(c, name="find-twin", folder="DC0")
    assert find_vm(c, name="find-twin", folder="b")[0]._GetMoId() == places["twin2"]["moid"]


def test_a_folder_that_must_be_absolute(c, places):
    absolute = {"name": "find-web", "folder_paths_are_absolute": True}
    assert find_vm(c, folder="DC0/vm/find", **absolute)[0]._GetMoId() == places["web"]["moid"]
    for folder in ("find", "DC0"):
        with pytest.raises(NotFound):
            find_vm(c, folder=folder, **absolute)


def test_a_machine_in_the_folder_itself_comes_first(c, lab, places):
    deeper = lab.create_vm("find-web", disks=[], folder=f"{FOLDER}/deeper")
    try:
        assert find_vm(c, name="find-web", folder=FOLDER)[0]._GetMoId() == places["web"]["moid"]
        with pytest.raises(Ambiguous):
            find_vm(c, name="find-web", folder="find")
    finally:
        lab.destroy_vm(deeper["moid"])


def test_which_of_several(c, places):
    for match, twin in (("first", "twin1"), ("last", "twin2")):
        assert find_vm(c, name="find-twin", name_match=match)[0]._GetMoId() == places[twin]["moid"]


@pytest.mark.parametrize("path", ["/DC0/vm/find/find 50%25%2f50%5cx", "DC0/vm/find/find 50%25%2f50%5cx/"])
def test_an_inventory_path(c, places, path):
    assert find_vm(c, inventory_path=path)[0]._GetMoId() == places["odd"]["moid"]
    with pytest.raises(NotFound, match="at /DC0/vm/find"):
        find_vm(c, inventory_path="/DC0/vm/find")


def test_all_that_is_given_must_fit(c, places):
    web = places["web"]
    both = {"moid": web["moid"], "uuid": web["instance_uuid"].upper(), "use_instance_uuid": True}
    assert find_vm(c, name="find-web", **both)[0]._GetMoId() == web["moid"]
    with pytest.raises(NotFound, match="find-web is not named find-twin"):
        find_vm(c, name="find-twin", **both)
    with pytest.raises(NotFound, match="find-twin has the UUID"):
        find_vm(c, **{**both, "moid": places["twin1"]["moid"]})


@pytest.mark.parametrize(
    "selection", [{"name": "FIND-web"}, {"name": "find-web", "folder": "find/a"}, {"name": "find-web", "folder": "no"}]
)
def test_the_error_tells_where_it_is(c, places, selection):
    with pytest.raises(NotFound, match=f"There is /DC0/vm/{FOLDER}/find-web"):
        find_vm(c, **selection)


@pytest.mark.parametrize(
    "selection",
    [
        {"name": "find-nothing"},
        {"name": "find-we"},
        {"name": "find-web", "folder": "find/a"},
        {"name": "find-web", "folder": "/nowhere/vm"},
        {"name": "production", "folder": "find"},
        {"uuid": "00000000-0000-0000-0000-000000000000"},
        {"moid": "vm-0"},
        {"name": "find-web", "datacenter": "nowhere"},
    ],
)
def test_what_is_not_there(c, places, selection):
    with pytest.raises(NotFound) as caught:
        find_vm(c, **selection)
    assert "cannot be read" not in caught.value.message
    assert caught.value.next_step


def test_an_unset_property_is_a_missing_key(c, places):
    properties = find_vm(c, moid=places["web"]["moid"], properties=["snapshot", "runtime.powerState"])[1]
    assert "snapshot" not in properties
    assert properties["runtime.powerState"] == "poweredOff"


def test_a_large_answer_comes_in_pages(c, lab, monkeypatch, places):
    options = connection.vmodl.query.PropertyCollector.RetrieveOptions
    monkeypatch.setattr(connection.vmodl.query.PropertyCollector, "RetrieveOptions", lambda: options(maxObjects=1))
    assert find_vm(c, name="find-web")[0]._GetMoId() == places["web"]["moid"]
    assert methods(lab)["ContinueRetrievePropertiesEx"] >= 3


# waiting


def snapshot(c, vm, name="waited"):
    return c.call(vim.VirtualMachine(vm["moid"], c.stub).CreateSnapshot_Task, name, "", False, False)


def test_a_task_is_waited_for_and_gives_its_result(lab, c, vm):
    task = snapshot(c, vm)
    lab.requests(reset=True)
    assert isinstance(tasks.wait(c, task, timeout=10), vim.vm.Snapshot)
    assert lab.requests()["total"] <= 3


def test_waits_one_after_another(lab, c, vm):
    machine = vim.VirtualMachine(vm["moid"], c.stub)
    for number in range(3):
        task = snapshot(c, vm, f"number{number}")
        lab.requests(reset=True)
        made, told = tasks.wait(c, task, timeout=10, beside={machine: ["snapshot", "runtime.powerState"]})
        assert lab.requests()["total"] <= 4
        assert told[machine]["snapshot"].currentSnapshot == made
        assert set(told) == {machine, task}


def test_what_is_told_beside_is_of_the_end_of_the_task(lab, c, vm):
    machine = vim.VirtualMachine(vm["moid"], c.stub)
    made = tasks.wait(c, snapshot(c, vm), timeout=10)
    lab.fault(task="*removeSnapshot*", delay_ms=500)
    task = c.call(made.RemoveSnapshot_Task, False)
    result, told = tasks.wait(c, task, timeout=10, beside={machine: ["snapshot", "runtime.consolidationNeeded"]})
    assert result is None
    assert told[machine] == {"runtime.consolidationNeeded": False}


def test_the_end_is_noticed_at_once(lab, c, vm):
    lab.fault(task="*createSnapshot*", delay_ms=1500)
    begun = time.monotonic()
    task = snapshot(c, vm)
    lab.requests(reset=True)
    tasks.wait(c, task, timeout=20)
    assert 1.4 < time.monotonic() - begun < 2.2
    assert lab.requests()["total"] <= 5


def test_a_failed_task(lab, c, vm):
    lab.fault(task="*createSnapshot*", fault="FileLocked", fields={"file": "[ds] a.vmdk"})
    task = snapshot(c, vm)
    with pytest.raises(TaskFailed, match=rf"createSnapshot of {vm['name']} .*FileLocked") as caught:
        tasks.wait(c, task, timeout=10)
    assert caught.value.details == {"fault": "FileLocked", "task": task._GetMoId()}
    assert caught.value.__cause__.file == "[ds] a.vmdk"


def test_a_task_that_takes_too_long_is_left(lab, c, vm):
    lab.fault(task="*createSnapshot*", delay_ms=2500)
    task = snapshot(c, vm)
    begun = time.monotonic()
    with pytest.raises(TimedOut, match="goes on in vSphere") as caught:
        tasks.wait(c, task, timeout=1)
    assert time.monotonic() - begun < 2
    assert caught.value.details == {"task": task._GetMoId(), "task_state": "running"}
    assert tasks.wait(c, task, timeout=10)


def test_a_task_that_takes_too_long_is_cancelled(lab, c, vm):
    lab.fault(task="*createSnapshot*", delay_ms=2500)
    task = snapshot(c, vm)
    with pytest.raises(TimedOut, match="was cancelled") as caught:
        tasks.wait(c, task, timeout=0.5, on_timeout="cancel")
    assert caught.value.details == {"task": task._GetMoId(), "task_state": "cancelled"}


def test_a_late_task_that_cannot_be_cancelled_may_still_end(lab, c, vm):
    lab.fault(method="CancelTask", fault="NotSupported", count=0)
    lab.fault(task="*createSnapshot*", delay_ms=1500)
    assert tasks.wait(c, snapshot(c, vm), timeout=0.5, on_timeout="cancel")
    lab.fault(task="*createSnapshot*", delay_ms=1500, fault="FileLocked", fields={"file": "x"})
    with pytest.raises(TaskFailed, match="FileLocked"):
        tasks.wait(c, snapshot(c, vm), timeout=0.5, on_timeout="cancel")


def test_a_session_that_expires_in_mid_wait(lab, c, vm, monkeypatch):
    monkeypatch.setattr(tasks, "SLICE", 1)
    lab.fault(task="*createSnapshot*", delay_ms=1500)
    task = snapshot(c, vm)
    timer = threading.Timer(0.5, lab.expire_sessions)
    timer.start()
    assert tasks.wait(c, task, timeout=20)
    timer.join()
    assert lab.requests()["logins"] == 2


def test_a_connection_that_drops_in_mid_wait(lab, c, vm):
    lab.fault(task="*createSnapshot*", delay_ms=1500)
    task = snapshot(c, vm)
    timer = threading.Timer(0.5, lab.drop_connections)
    timer.start()
    assert tasks.wait(c, task, timeout=20)
    timer.join()


def test_a_large_update_comes_in_parts(lab, c, vm, monkeypatch):
    """The end of the task may be told before what is to be told with it."""
    collector = tasks.vmodl.query.PropertyCollector
    options, spec = collector.WaitOptions, collector.FilterSpec
    monkeypatch.setattr(collector, "WaitOptions", lambda **given: options(**given, maxObjectUpdates=1))
    monkeypatch.setattr(
        collector, "FilterSpec", lambda objectSet, propSet: spec(objectSet=objectSet[::-1], propSet=propSet)
    )
    machine = vim.VirtualMachine(vm["moid"], c.stub)
    made, told = tasks.wait(c, snapshot(c, vm), timeout=10, beside={machine: ["snapshot"]})
    assert told[machine]["snapshot"].currentSnapshot == made


def test_progress_is_told(lab, c, vm):
    lab.fault(task="*createSnapshot*", delay_ms=800)
    told = []
    tasks.wait(c, snapshot(c, vm), timeout=20, on_progress=told.append)
    assert told == sorted(set(told), key=told.index)
