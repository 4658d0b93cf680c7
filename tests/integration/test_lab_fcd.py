# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""First class disks of the lab as pyVmomi sees them by both APIs, and as the disk library opens them."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import time
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from ansible_collections.holdfast.backup.tests.integration.test_vddk_standin import results
from ansible_collections.holdfast.backup.tests.lab.client import Lab
from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import SoapStubAdapter, VmomiSupport, pbm, vim, vmodl, vslm

MIB = 1 << 20
BLOCK = 1 << 16
SIZE = 8 * MIB
VIM_NAMES = {
    "CreateSnapshot_Task": "VStorageObjectCreateSnapshot_Task",
    "QueryChangedDiskAreas": "VstorageObjectVCenterQueryChangedDiskAreas",
    "UpdateMetadata_Task": "VCenterUpdateVStorageObjectMetadataEx_Task",
    "UpdatePolicy_Task": "UpdateVStorageObjectPolicy_Task",
}
VSLM_NAMES = {
    "UpdateMetadata_Task": "UpdateVStorageObjectMetadata_Task",
    "UpdatePolicy_Task": "UpdateVstorageObjectPolicy_Task",
}


class Api:
    """One way in to first class disks: methods by the words that both have, tasks waited for."""

    def __init__(self, lab: Lab, si: Any, name: str) -> None:
        self.lab, self.si, self.name = lab, si, name
        content = si.RetrieveContent()
        self.datastores = content.rootFolder.childEntity[0].datastore
        self.manager = content.vStorageObjectManager
        if name == "vslm":
            service = self.service("/vslm/sdk", "vslm.version.v9_0_0_0")
            self.manager = vslm.ServiceInstance("ServiceInstance", service).RetrieveContent().vStorageObjectManager

    def service(self, path: str, version: str) -> SoapStubAdapter:
        """A service beside the VIM API, with the session of the vCenter in the header."""
        cookie = self.si._stub.cookie.split("=", 1)[1].split(";")[0].strip('"')
        VmomiSupport.GetRequestContext()["vcSessionCookie"] = cookie
        context = ssl.create_default_context(cafile=self.lab.ca_file)
        return SoapStubAdapter(
            host=self.lab.hostname, port=self.lab.port, path=path, version=version, sslContext=context
        )

    def __call__(self, method: str, disk: str, *args: Any, datastore: Any = None) -> Any:
        given = [vim.vslm.ID(id=disk)]
        if self.name == "vim":
            given.append(datastore or self.datastore(disk))
        name = VIM_NAMES.get(method, method) if self.name == "vim" else f"Vslm{VSLM_NAMES.get(method, method)}"
        return self.wait(getattr(self.manager, name)(*given, *args))

    def create(self, name: str, size: int = SIZE, **spec: Any) -> Any:
        backing = vim.vslm.CreateSpec.DiskFileBackingSpec(datastore=self.datastores[0], **spec.pop("backing", {}))
        given = vim.vslm.CreateSpec(name=name, capacityInMB=size // MIB, backingSpec=backing, **spec)
        prefix = "" if self.name == "vim" else "Vslm"
        return self.wait(getattr(self.manager, f"{prefix}CreateDisk_Task")(given))

    def register(self, url: str, name: str) -> Any:
        return getattr(self.manager, "RegisterDisk" if self.name == "vim" else "VslmRegisterDisk")(url, name)

    def datastore(self, disk: str) -> Any:
        known = {each["id"]: each["datastore_moid"] for each in self.lab.fcds()}
        moid = known.get(disk, self.datastores[0]._moId)
        return vim.Datastore(moid, self.si._stub)

    @staticmethod
    def wait(result: Any) -> Any:
        if isinstance(result, vim.Task):
            WaitForTask(result)
            return result.info.result
        if not isinstance(result, vslm.Task):
            return result
        while (info := result.VslmQueryInfo()).state in ("queued", "running"):
            time.sleep(0.01)
        if info.state == "error":
            raise info.error
        return result.VslmQueryTaskResult()

    def areas(self, disk: str, snapshot: str, change_id: str) -> list[tuple[int, int]]:
        """All pages of an answer."""
        found, start = [], 0
        while start < SIZE:
            page = self("QueryChangedDiskAreas", disk, vim.vslm.ID(id=snapshot), start, change_id)
            assert page.startOffset == start
            assert page.length > 0
            found += [(area.start, area.length) for area in page.changedArea]
            start += page.length
        return found


@pytest.fixture
def si(lab: Lab) -> Iterator[Any]:
    context = ssl.create_default_context(cafile=lab.ca_file)
    instance = SmartConnect(host=lab.hostname, port=lab.port, user=lab.username, pwd=lab.password, sslContext=context)
    yield instance
    with contextlib.suppress(vim.fault.NotAuthenticated):  # the test ended the session
        Disconnect(instance)


@pytest.fixture(params=["vim", "vslm"])
def api(lab: Lab, si: Any, request: pytest.FixtureRequest) -> Api:
    return Api(lab, si, request.param)


@pytest.fixture
def disk(lab: Lab) -> Iterator[str]:
    """A tracked first class disk."""
    made = lab.create_fcd(f"disk-{uuid.uuid4().hex[:6]}", SIZE, tracking=True)
    yield made["id"]
    with contextlib.suppress(Exception):  # the test deleted it
        lab.destroy_fcd(made["id"])


def guest(lab: Lab, si: Any, **spec: Any) -> Any:
    made = lab.create_vm(f"fcd-{uuid.uuid4().hex[:8]}", **{"disks": [MIB], "tracking": True, **spec})
    return vim.VirtualMachine(made["moid"], si._stub)


def device(holder: Any, disk: str) -> Any:
    """The first class disk among the devices of a VM or of its snapshot."""
    devices = holder.config.hardware.device
    return next(each for each in devices if getattr(each, "vDiskId", None) and each.vDiskId.id == disk)


def identity(disk: str) -> Any:
    return vim.vslm.ID(id=disk)


# life


def test_a_disk_is_created_extended_renamed_and_deleted(lab: Lab, api: Api) -> None:
    metadata = [vim.KeyValue(key="cns.k8s.pv.name", value="pvc-1")]
    made = api.create(
        "new", metadata=metadata, keepAfterDeleteVm=True, backing={"provisioningType": "eagerZeroedThick"}
    )
    config = made.config
    assert (config.name, config.capacityInMB, config.keepAfterDeleteVm) == ("new", SIZE // MIB, True)
    assert [(entry.key, entry.value) for entry in config.metadata] == [("cns.k8s.pv.name", "pvc-1")]
    assert config.backing.provisioningType == "eagerZeroedThick"
    assert lab.fcd_file(config.id.id).stat().st_size == SIZE
    api("ExtendDisk_Task", config.id.id, 2 * SIZE // MIB)
    api("RenameVStorageObject", config.id.id, "other")
    now = api("RetrieveVStorageObject", config.id.id).config
    assert (now.name, now.capacityInMB) == ("other", 2 * SIZE // MIB)
    assert lab.fcd_file(config.id.id).stat().st_size == 2 * SIZE
    assert api("RetrieveVStorageObjectState", config.id.id).tentative is False
    file = lab.fcd_file(config.id.id)
    api("DeleteVStorageObject_Task", config.id.id)
    assert not file.exists()


@pytest.mark.parametrize(
    ("spec", "property"),
    [
        ({"size": 0}, "spec.capacityInMB"),
        ({"name": ""}, "spec.name"),
        ({"backing": {"provisioningType": "fat"}}, "type"),
    ],
)
def test_impossible_disks_are_refused(api: Api, spec: dict[str, Any], property: str) -> None:
    with pytest.raises(vmodl.fault.InvalidArgument) as caught:
        api.create(**{"name": "x", **spec})
    assert property.lower() in caught.value.invalidProperty.lower()


def test_a_virtual_disk_is_promoted_with_its_bytes(lab: Lab, si: Any, api: Api) -> None:
    vm = guest(lab, si, disks=[3 * MIB], power="poweredOn")
    lab.write(vm._moId, 2000, 5, b"promoted")
    path = lab.vm(vm._moId)["disks"][0]["path"]
    place, __, file = path.partition("] ")
    url = f"https://{lab.hostname}/folder/{file}?dcPath=DC0&dsName={place[1:]}"
    made = api.register(url, "promoted")
    assert (made.config.capacityInMB, made.config.name) == (3, "promoted")
    assert lab.fcd_read(made.config.id.id, 5, 8) == b"promoted"
    assert device(vm, made.config.id.id).key == 2000
    with pytest.raises(vim.fault.AlreadyExists):
        api.register(url, "again")
    with pytest.raises(vim.fault.FileFault):
        api.register(url.replace(file, "no/such.vmdk"), "none")
    with pytest.raises(vim.fault.InvalidDatastore):
        api.register(url.replace(place[1:], "nowhere"), "none")
    with pytest.raises(vmodl.fault.InvalidArgument):
        api.register("https://x/elsewhere", "none")


def test_flags_are_set_and_cleared(lab: Lab, api: Api, disk: str) -> None:
    api("SetVStorageObjectControlFlags", disk, ["keepAfterDeleteVm", "disableRelocation"])
    api("ClearVStorageObjectControlFlags", disk, ["enableChangedBlockTracking", "disableRelocation"])
    config = api("RetrieveVStorageObject", disk).config
    assert (config.keepAfterDeleteVm, config.relocationDisabled, config.changedBlockTrackingEnabled) == (
        True,
        False,
        False,
    )
    assert lab.fcd(disk)["change_id"] == ""
    with pytest.raises(vmodl.fault.InvalidArgument):
        api("SetVStorageObjectControlFlags", disk, ["noSuchFlag"])


def test_metadata_is_changed_by_key(api: Api, disk: str) -> None:
    entry = vim.KeyValue
    api("UpdateMetadata_Task", disk, [entry(key="a", value="1"), entry(key="b.c", value="2")], [])
    snapshot = api("CreateSnapshot_Task", disk, "")
    api("UpdateMetadata_Task", disk, [entry(key="a", value="3")], ["b.c"])
    config = api("RetrieveVStorageObject", disk).config
    assert [(each.key, each.value) for each in config.metadata] == [("a", "3")]
    if api.name == "vslm":
        assert [each.key for each in api("RetrieveVStorageObjectMetadata", disk, snapshot, "b.")] == ["b.c"]
        assert api("RetrieveVStorageObjectMetadataValue", disk, None, "a") == "3"
        with pytest.raises(vim.fault.KeyNotFound):
            api("RetrieveVStorageObjectMetadataValue", disk, None, "b.c")


def test_tags_are_on_disks(lab: Lab, api: Api, disk: str) -> None:
    category = f"cat-{uuid.uuid4().hex[:6]}"
    lab.create_tag(category, "gold")
    prefix = "" if api.name == "vim" else "Vslm"
    getattr(api.manager, f"{prefix}AttachTagToVStorageObject")(identity(disk), category, "gold")
    entries = getattr(api.manager, f"{prefix}ListTagsAttachedToVStorageObject")(identity(disk))
    assert [(entry.parentCategoryName, entry.tagName) for entry in entries] == [(category, "gold")]
    listed = getattr(api.manager, f"{prefix}ListVStorageObjectsAttachedToTag")(category, "gold")
    assert [each.id for each in listed] == [disk]
    getattr(api.manager, f"{prefix}DetachTagFromVStorageObject")(identity(disk), category, "gold")
    assert not getattr(api.manager, f"{prefix}ListTagsAttachedToVStorageObject")(identity(disk))
    with pytest.raises(vim.fault.NotFound):
        getattr(api.manager, f"{prefix}AttachTagToVStorageObject")(identity("none"), category, "gold")


def test_storage_policies_stay_with_disks(lab: Lab, api: Api) -> None:
    manager = pbm.ServiceInstance("ServiceInstance", api.service("/pbm/sdk", "pbm.version.version11"))
    profiles = manager.RetrieveContent().profileManager
    known = profiles.QueryProfile(pbm.profile.ResourceType(resourceType="STORAGE"))
    first, second = (each.uniqueId for each in known[:2])
    made = api.create("policy", profile=[vim.vm.DefinedProfileSpec(profileId=first)]).config.id.id

    def policy() -> list[str]:
        (found,) = profiles.QueryAssociatedProfiles([pbm.ServerObjectRef(objectType="virtualDiskUUID", key=made)])
        return [each.uniqueId for each in found.profileId]

    assert policy() == [first]
    api("UpdatePolicy_Task", made, [vim.vm.DefinedProfileSpec(profileId=second)])
    assert policy() == [second]
    with pytest.raises(vmodl.fault.InvalidArgument):
        api("UpdatePolicy_Task", made, [vim.vm.DefinedProfileSpec(profileId="none")])


def test_a_clone_has_the_bytes(lab: Lab, api: Api, disk: str) -> None:
    lab.fcd_write(disk, 77, b"cloned")
    backing = vim.vslm.CreateSpec.DiskFileBackingSpec(datastore=api.datastores[1])
    clone = api("CloneVStorageObject_Task", disk, vim.vslm.CloneSpec(name="clone", backingSpec=backing)).config
    assert clone.backing.datastore == api.datastores[1]
    lab.fcd_write(disk, 77, b"CHANGE")
    assert lab.fcd_read(clone.id.id, 77, 6) == b"cloned"


# attached


def attach(api: Api, vm: Any, disk: str, *place: Any) -> None:
    if api.name == "vim":
        WaitForTask(vm.AttachDisk_Task(identity(disk), api.datastore(disk), *place))
    else:
        api("AttachDisk_Task", disk, vm, *place)


def test_an_attached_disk_is_a_disk_of_the_vm(lab: Lab, si: Any, api: Api, disk: str) -> None:
    vm = guest(lab, si, power="poweredOn")
    lab.fcd_write(disk, 0, b"before")
    attach(api, vm, disk, 1000, 3)
    shown = device(vm, disk)
    assert (shown.key, shown.deviceInfo.label, shown.capacityInBytes) == (2003, "Hard disk 2", SIZE)
    assert shown.backing.fileName == api("RetrieveVStorageObject", disk).config.backing.filePath
    lab.write(vm._moId, 2003, 100, b"by the guest")
    assert lab.fcd_read(disk, 0, 112) == b"before" + bytes(94) + b"by the guest"
    assert [each.id for each in api("RetrieveVStorageObject", disk).config.consumerId] == [vm.config.instanceUuid]
    with pytest.raises(vim.fault.InvalidState):
        api("DeleteVStorageObject_Task", disk)
    with pytest.raises(vim.fault.InvalidState):
        attach(api, guest(lab, si), disk)
    WaitForTask(vm.DetachDisk_Task(identity(disk)))
    assert lab.fcd(disk)["vm"] == ""
    assert lab.fcd_read(disk, 100, 12) == b"by the guest"
    with pytest.raises(vim.fault.NotFound):
        WaitForTask(vm.DetachDisk_Task(identity(disk)))


def test_snapshots_of_the_vm_and_of_the_disk_live_together(lab: Lab, si: Any, api: Api, disk: str) -> None:
    vm = guest(lab, si, power="poweredOn")
    attach(api, vm, disk)
    key = device(vm, disk).key
    WaitForTask(vm.CreateSnapshot_Task("one", "", False, False))
    first = vm.snapshot.currentSnapshot
    changed = device(first, disk).backing.changeId
    lab.write(vm._moId, key, BLOCK, b"one")
    own = api("CreateSnapshot_Task", disk, "own").id
    lab.write(vm._moId, key, 3 * BLOCK, b"two")
    WaitForTask(vm.CreateSnapshot_Task("two", "", False, False))
    areas = vm.QueryChangedDiskAreas(vm.snapshot.currentSnapshot, key, 0, changed).changedArea
    assert [(area.start, area.length) for area in areas] == [(BLOCK, BLOCK), (3 * BLOCK, BLOCK)]
    assert api.areas(disk, own, changed) == [(BLOCK, BLOCK)]
    with pytest.raises(vim.fault.InvalidState):  # snapshots of the VM hold it
        WaitForTask(vm.DetachDisk_Task(identity(disk)))
    with pytest.raises(vim.fault.InvalidState):
        api("RevertVStorageObject_Task", disk, identity(own))
    WaitForTask(vm.RemoveAllSnapshots_Task())
    assert lab.fcd_read(disk, 3 * BLOCK, 3, snapshot=own) == bytes(3)
    api("DeleteSnapshot_Task", disk, identity(own))
    assert device(vm, disk).backing.parent is None
    assert lab.fcd_read(disk, 3 * BLOCK, 3) == b"two"


@pytest.mark.parametrize("keep", [True, False])
def test_a_deleted_vm_takes_the_disk_unless_it_is_kept(lab: Lab, si: Any, api: Api, keep: bool) -> None:
    made = lab.create_fcd("kept", SIZE, keep=keep)["id"]
    vm = guest(lab, si)
    attach(api, vm, made)
    lab.fcd_write(made, 1, b"kept")
    WaitForTask(vm.Destroy_Task())
    if keep:
        assert lab.fcd_read(made, 1, 4) == b"kept"
    else:
        with pytest.raises(vim.fault.NotFound):
            api("RetrieveVStorageObject", made)


@pytest.mark.parametrize("keep", [True, False])
def test_a_removed_device_deletes_the_disk_unless_it_is_kept(lab: Lab, si: Any, keep: bool) -> None:
    made = lab.create_fcd("removed", SIZE, keep=keep)["id"]
    vm = guest(lab, si, power="poweredOn")
    shown = lab.attach_fcd(made, vm._moId)
    file = lab.fcd_file(made)
    lab.remove_disk(vm._moId, shown["key"])
    assert [each["id"] for each in lab.fcds()].count(made) == keep
    assert file.exists() == keep


def test_the_vm_of_a_disk_is_found(lab: Lab, si: Any, api: Api, disk: str) -> None:
    vm = guest(lab, si)
    lab.attach_fcd(disk, vm._moId)
    if api.name == "vim":
        specs = [
            vim.vslm.vcenter.RetrieveVStorageObjSpec(id=identity(each), datastore=api.datastore(each))
            for each in (disk, "none")
        ]
        found, missing = api.manager.RetrieveVStorageObjectAssociations(specs)
        (association,) = found.vmDiskAssociations
    else:
        found, missing = api.manager.VslmRetrieveVStorageObjectAssociations([identity(disk), identity("none")])
        (association,) = found.vmDiskAssociation
    assert (association.vmId, association.diskKey) == (vm.config.instanceUuid, 2001)
    assert isinstance(missing.fault, vim.fault.NotFound)


# snapshots and changed areas


def test_snapshots_freeze_and_fold(lab: Lab, api: Api, disk: str) -> None:
    taken = []
    for text in (b"one", b"two", b"three"):
        lab.fcd_write(disk, 0, text)
        taken.append(api("CreateSnapshot_Task", disk, text.decode()).id)
    lab.fcd_write(disk, 0, b"now!!")
    listed = api("RetrieveSnapshotInfo", disk).snapshots
    assert {each.id.id: each.description for each in listed} == dict(zip(taken, ["one", "two", "three"]))
    assert lab.fcd_read(disk, 0, 5, snapshot=taken[1]) == b"two" + bytes(2)
    api("DeleteSnapshot_Task", disk, identity(taken[0]))
    copy = api("CreateDiskFromSnapshot_Task", disk, identity(taken[1]), "copy").config.id.id
    assert lab.fcd_read(copy, 0, 5) == b"two" + bytes(2)
    api("RevertVStorageObject_Task", disk, identity(taken[1]))
    assert lab.fcd_read(disk, 0, 5) == b"two" + bytes(2)
    assert [each["id"] for each in lab.fcd_snapshots(disk)] == [taken[1]]  # the younger one went
    api("DeleteSnapshot_Task", disk, identity(taken[1]))
    assert not lab.fcd(disk)["path"].endswith("-000001.vmdk")
    with pytest.raises(vim.fault.NotFound):
        api("DeleteSnapshot_Task", disk, identity(taken[1]))


def test_changed_areas_are_paged_and_exact(lab: Lab, api: Api, disk: str) -> None:
    lab.fcd_write(disk, 0, b"x" * BLOCK)
    first = api("CreateSnapshot_Task", disk, "").id
    details = api("RetrieveSnapshotDetails", disk, identity(first))
    places = lab.fcd_scatter(disk, 20, BLOCK)
    second = api("CreateSnapshot_Task", disk, "").id
    lab.fcd_write(disk, 7 * MIB, b"after")
    assert details.path == lab.fcd_snapshots(disk)[0]["path"]
    lab.tracking(page=3)
    found = api.areas(disk, second, details.changedBlockTrackingId)
    assert {start for start, _size in found} <= {start // BLOCK * BLOCK for start, _data in places}
    assert all(any(s <= at < s + n for s, n in found) for at, _data in places)
    assert api.areas(disk, first, "*") == [(0, BLOCK)]


def test_questions_about_changes_that_have_no_answer(lab: Lab, api: Api, disk: str) -> None:
    snapshot = api("CreateSnapshot_Task", disk, "")
    good = api("RetrieveSnapshotDetails", disk, snapshot).changedBlockTrackingId

    def fault(change_id: str = good, start: int = 0, snap: Any = snapshot, of: str = disk) -> Any:
        with pytest.raises(vmodl.MethodFault) as caught:
            api("QueryChangedDiskAreas", of, snap, start, change_id)
        return caught.value

    assert fault(start=SIZE).invalidProperty == "startOffset"
    assert fault(change_id="52 00/9").invalidProperty == "changeId"
    assert isinstance(fault(snap=identity("none")), vim.fault.NotFound)
    assert isinstance(fault(of="none"), vim.fault.NotFound)
    lab.tracking(bad_change_id="FileFault")
    assert isinstance(fault(change_id="52 00/9"), vim.fault.FileFault)
    plain = lab.create_fcd("untracked", SIZE)["id"]
    other = api("CreateSnapshot_Task", plain, "")
    assert api("RetrieveSnapshotDetails", plain, other).changedBlockTrackingId is None
    assert isinstance(fault(snap=other, of=plain), vim.fault.InvalidState)
    lab.fcd_reset_tracking(disk, lose=True)
    assert isinstance(fault(change_id="*"), vim.fault.FileFault)


def test_tracking_that_begins_under_a_snapshot_does_not_know_what_is_allocated(lab: Lab, api: Api) -> None:
    made = lab.create_fcd("late", SIZE)["id"]
    first = api("CreateSnapshot_Task", made, "")
    api("SetVStorageObjectControlFlags", made, ["enableChangedBlockTracking"])
    second = api("CreateSnapshot_Task", made, "")
    with pytest.raises(vim.fault.FileFault):
        api("QueryChangedDiskAreas", made, second, 0, "*")
    assert api("RetrieveSnapshotDetails", made, first).changedBlockTrackingId is None


def test_by_vi_json(lab: Lab, disk: str) -> None:
    first = lab.fcd_snapshot(disk)
    lab.fcd_write(disk, 2 * BLOCK, b"x")
    second = lab.fcd_snapshot(disk)
    change_id = lab.fcd_snapshots(disk)[0]["change_id"]
    base = f"https://{lab.hostname}:{lab.port}/sdk/vim25/8.0.3.0"
    with requests.Session() as http_session:
        http_session.verify, http_session.trust_env = lab.ca_file, False
        content = http_session.get(f"{base}/ServiceInstance/ServiceInstance/content", timeout=10).json()
        login = {"userName": lab.username, "password": lab.password}
        manager = content["sessionManager"]["value"]
        answer = http_session.post(f"{base}/SessionManager/{manager}/Login", json=login, timeout=10)
        http_session.headers["vmware-api-session-id"] = answer.headers["vmware-api-session-id"]
        store = content["vStorageObjectManager"]
        url = f"{base}/{store['type']}/{store['value']}/VstorageObjectVCenterQueryChangedDiskAreas"
        body = {
            "id": {"_typeName": "ID", "id": disk},
            "datastore": {
                "_typeName": "ManagedObjectReference",
                "type": "Datastore",
                "value": lab.fcd(disk)["datastore_moid"],
            },
            "snapshotId": {"_typeName": "ID", "id": second},
            "startOffset": 0,
            "changeId": change_id,
        }
        page = http_session.post(url, json=body, timeout=10).json()
        assert [(area["start"], area["length"]) for area in page["changedArea"]] == [(2 * BLOCK, BLOCK)]
        body["snapshotId"]["id"] = "none"
        refused = http_session.post(url, json=body, timeout=10)
        assert (refused.status_code, refused.json()["_typeName"]) == (500, "NotFound")
    assert first != second


# look-up


def test_the_catalog_is_searched_and_paged(lab: Lab, si: Any) -> None:
    api = Api(lab, si, "vslm")
    family = uuid.uuid4().hex[:8]
    made = sorted(lab.create_fcd(f"{family}-{n}", SIZE, metadata={f"key-{family}": str(n)})["id"] for n in range(5))

    def query(*conditions: tuple[str, str, str], most: int = 100) -> Any:
        specs = [
            vslm.vso.VStorageObjectQuerySpec(queryField=f, queryOperator=o, queryValue=[v]) for f, o, v in conditions
        ]
        return api.manager.VslmListVStorageObjectForSpec(specs, most)

    found = query(("name", "startsWith", family))
    assert ([each.id for each in found.id], found.allRecordsReturned) == (made, True)
    (one,) = query(("name", "equals", f"{family}-3")).queryResults
    assert (one.metadata[0].value, one.capacityInMB) == ("3", SIZE // MIB)
    assert one.datastoreUrl == api.datastores[0].summary.url
    assert len(query(("metadataKey", "equals", f"key-{family}")).id) == 5
    page = query(("name", "startsWith", family), most=2)
    assert ([each.id for each in page.id], page.allRecordsReturned) == (made[:2], False)
    lab.tracking(vslm_page=3)
    page = query(("name", "startsWith", family), ("id", "greaterThan", made[1]))
    assert ([each.id for each in page.id], page.allRecordsReturned) == (made[2:], True)
    known, missing = api.manager.VslmRetrieveVStorageObjects([identity(made[0]), identity("none")])
    assert known.name.startswith(family)
    assert isinstance(missing.error, vim.fault.NotFound)
    with pytest.raises(vmodl.MethodFault):
        query(("backingObjectId", "equals", "x"))


def test_a_disk_on_another_datastore_is_not_found(lab: Lab, si: Any, disk: str) -> None:
    api = Api(lab, si, "vim")
    with pytest.raises(vim.fault.NotFound):
        api("RetrieveVStorageObject", disk, datastore=api.datastores[1])
    with pytest.raises(vim.fault.InvalidDatastore):
        api("RetrieveVStorageObject", disk, datastore=vim.Datastore("datastore-0", si._stub))
    assert disk in [each.id for each in api.manager.ListVStorageObject(api.datastores[0])]


# bad days


def test_faults_are_ordered_for_a_disk_in_calls_and_tasks(lab: Lab, api: Api, disk: str) -> None:
    other = lab.create_fcd("other", SIZE)["id"]
    lab.fault(task="createSnapshot", fault="InvalidState", count=2, object=disk)
    api("CreateSnapshot_Task", other, "")
    for __ in range(2):
        with pytest.raises(vim.fault.InvalidState):
            api("CreateSnapshot_Task", disk, "")
    snapshot = api("CreateSnapshot_Task", disk, "")
    lab.fault(method="*RetrieveSnapshotDetails", fault="FileFault", object=disk)
    with pytest.raises(vim.fault.FileFault):
        api("RetrieveSnapshotDetails", disk, snapshot)
    assert api("RetrieveSnapshotDetails", disk, snapshot).path
    lab.fault(method="*CreateSnapshot_Task", fault="InvalidState")
    with pytest.raises(vim.fault.InvalidState):
        api("CreateSnapshot_Task", disk, "")


def test_a_second_task_on_a_disk_is_refused(lab: Lab, si: Any, disk: str) -> None:
    api = Api(lab, si, "vim")
    lab.fault(task="createSnapshot", delay_ms=500)
    slow = api.manager.VStorageObjectCreateSnapshot_Task(identity(disk), api.datastore(disk), "slow")
    while slow.info.state == "queued":
        time.sleep(0.01)
    with pytest.raises(vim.fault.InvalidState):
        api("CreateSnapshot_Task", disk, "second")
    WaitForTask(slow)


def test_calls_are_counted_with_their_session(lab: Lab, api: Api, disk: str) -> None:
    lab.requests(reset=True)
    api("RetrieveSnapshotInfo", disk)
    counted = lab.requests()
    assert counted["methods"] == {f"{'Vslm' if api.name == 'vslm' else ''}RetrieveSnapshotInfo": 1}
    assert "" not in counted["sessions"]


def test_an_expired_session_can_do_nothing(lab: Lab, api: Api, disk: str) -> None:
    lab.expire_sessions()
    with pytest.raises(vim.fault.NotAuthenticated):
        api("RetrieveSnapshotInfo", disk)


def test_a_vcenter_without_vslm(lab: Lab, si: Any) -> None:
    lab.tracking(vslm=False)
    with pytest.raises(http.client.HTTPException, match="404"):
        Api(lab, si, "vslm")


# the disk library

OPEN = """
from dataclasses import replace
given = json.loads(%r)
own = replace(parameters, vm=None, path="", **given["parameters"])
raw = given.get("raw", {})
with lib.connect_params(own) as params:
    for name, value in raw.items():
        setattr(params.contents, name, value.encode())
    connection = c_void_p()
    mode = b"\\1" if given["read_only"] else b"\\0"
    result = lib.ConnectEx(params, mode, given["snapshot_ref"], b"nbd", byref(connection))
handle = c_void_p()
if result == 0:
    path = given["path"]
    flags = OPEN_READ_ONLY if given["read_only"] else 0
    result = lib.Open(connection, None if path is None else path.encode(), flags, byref(handle))
if result == 0 and given.get("write"):
    buffer.raw = given["write"].encode() + buffer.raw[len(given["write"]):]
    result = lib.SyncWrite(handle, 0, 1, buffer)
data = ""
if result == 0:
    assert lib.SyncRead(handle, 0, 1, buffer) == 0
    data = buffer.raw[:8].decode()
    lib.Close(handle)
answer(result, data)
"""


class Library:
    """Opens first class disks by the lab's stand-in, in a process of its own each time."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def open(self, disk: str, snapshot: str | None = None, **given: Any) -> tuple[int, str]:
        parameters = {
            "server": self.lab.hostname,
            "port": self.lab.port,
            "username": self.lab.username,
            "password": self.lab.password,
            "thumbprint": self.lab.thumbprint,
            "fcd_id": disk,
            "datastore": given.pop("datastore", None) or self.lab.fcd(disk)["datastore_moid"],
            "snapshot": snapshot,
        }
        document = {"parameters": parameters, "path": "", "read_only": True, "snapshot_ref": None, **given}
        where = SimpleNamespace(root=self.lab.vddk_libdir, capacity=SIZE)
        code, data = results(where, OPEN % json.dumps(document))
        return code, data


@pytest.fixture
def library(lab: Lab) -> Library:
    return Library(lab)


def test_disks_and_snapshots_are_opened_by_their_specification(lab: Lab, library: Library, disk: str) -> None:
    lab.fcd_write(disk, 0, b"frozen!!")
    snapshot = lab.fcd_snapshot(disk)
    lab.fcd_write(disk, 0, b"living!!")
    assert library.open(disk) == (0, "living!!")
    assert library.open(disk, path=None) == (0, "living!!")
    assert library.open(disk, snapshot) == (0, "frozen!!")
    assert lab.vddk()["violations"] == []
    assert [each["fcd"] for each in lab.vddk()["closed"]] == [disk] * 3


def test_what_may_not_be_opened(lab: Lab, library: Library, disk: str) -> None:
    snapshot = lab.fcd_snapshot(disk)
    assert library.open(disk, datastore="datastore-0")[0] == 4
    assert library.open("none", datastore=lab.fcd(disk)["datastore_moid"])[0] == 4
    assert library.open(disk, "none")[0] == 13003
    assert library.open(disk, snapshot, read_only=False)[0] == 11
    assert lab.vddk()["violations"] == []
    assert library.open(disk, path="[ds] a.vmdk")[0] == 3
    assert "storage object with one" in lab.vddk()["violations"][-1]
    assert library.open(disk, raw={"vmx_spec": "moref=vm-1"})[0] == 3
    assert "storage object with a VM" in lab.vddk()["violations"][-1]


def test_writes_are_tracked_and_seen(lab: Lab, library: Library, disk: str) -> None:
    first = lab.fcd_snapshot(disk)
    assert library.open(disk, read_only=False, write="restored") == (0, "restored")
    second = lab.fcd_snapshot(disk)
    assert lab.fcd_read(disk, 0, 8) == b"restored"
    assert lab.fcd_read(disk, 0, 8, snapshot=first) == bytes(8)
    assert lab.fcd_read(disk, 0, 8, snapshot=second) == b"restored"


@pytest.mark.parametrize("power", ["poweredOn", "poweredOff"])
def test_an_attached_disk_is_locked_by_a_running_vm(lab: Lab, si: Any, library: Library, disk: str, power: str) -> None:
    snapshot = lab.fcd_snapshot(disk)
    lab.attach_fcd(disk, guest(lab, si, power=power)._moId)
    locked = 15 if power == "poweredOn" else 0
    assert library.open(disk)[0] == locked
    assert library.open(disk, read_only=False)[0] == locked
    assert library.open(disk, snapshot)[0] == 0


def test_a_library_from_before_such_specifications_refuses(lab: Lab, library: Library, disk: str) -> None:
    lab.vddk(variant="6.5")
    assert library.open(disk)[0] == 3
    assert lab.vddk()["opens"] == 0
