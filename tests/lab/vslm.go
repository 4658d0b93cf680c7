// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"reflect"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
	vim "github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vslm"
	"github.com/vmware/govmomi/vslm/methods"
	"github.com/vmware/govmomi/vslm/types"
)

// The VSLM service at /vslm/sdk: the same first class disks as at the VStorageObjectManager, named
// by their ID alone. Its sessions are those of the vCenter, by their cookie in the SOAP header.

var vslmContent = types.VslmServiceInstanceContent{
	AboutInfo: types.VslmAboutInfo{Name: "VMware Virtual Storage Lifecycle Manager Service",
		FullName: "VMware Virtual Storage Lifecycle Manager Service 1.0.0", Vendor: "VMware, Inc.", ApiVersion: "1.0.0",
		InstanceUuid: "5e1f3a52-3a35-4b8e-8e2f-6f0a6a3c1d10"},
	SessionManager:          vim.ManagedObjectReference{Type: "VslmSessionManager", Value: "SessionManager"},
	VStorageObjectManager:   vim.ManagedObjectReference{Type: "VslmVStorageObjectManager", Value: "VStorageObjectManager"},
	StorageLifecycleManager: vim.ManagedObjectReference{Type: "VslmStorageLifecycleManager", Value: "StorageLifecycleManager"},
}

// vslmRegistry are the managed objects of the service.
func (s *sim) vslmRegistry() *simulator.Registry {
	r := simulator.NewRegistry()
	r.Namespace, r.Path, r.Cookie = vslm.Namespace, vslm.Path, simulator.SOAPCookie
	r.Put(&vslmInstance{vslm.ServiceInstance})
	r.Put(&vslmStore{vslmContent.VStorageObjectManager, s})
	return r
}

type vslmInstance struct{ vim.ManagedObjectReference }

func (*vslmInstance) RetrieveContent(*types.RetrieveContent) soap.HasFault {
	return &methods.RetrieveContentBody{Res: &types.RetrieveContentResponse{Returnval: vslmContent}}
}

// vslmTask shows one of the vCenter's tasks.
type vslmTask struct {
	vim.ManagedObjectReference
	s *sim
}

// Calls lock what they need.
func (*vslmTask) Lock()   {}
func (*vslmTask) Unlock() {}

func (t *vslmTask) info() vim.TaskInfo {
	task := t.s.reg.Get(vim.ManagedObjectReference{Type: "Task", Value: t.Value}).(*simulator.Task)
	defer t.s.reg.AcquireLock(t.s.context(), task.Self)()
	return task.Info
}

func (t *vslmTask) VslmQueryInfo(*types.VslmQueryInfo) soap.HasFault {
	info := t.info()
	return &methods.VslmQueryInfoBody{Res: &types.VslmQueryInfoResponse{Returnval: types.VslmTaskInfo{
		Key: t.Value, Task: t.ManagedObjectReference, DescriptionId: "com.vmware.cns.vslm.tasks." + info.DescriptionId,
		State: types.VslmTaskInfoState(info.State), Error: info.Error, Result: info.Result, Progress: info.Progress,
		Reason: &types.VslmTaskReasonUser{UserName: t.s.user}, QueueTime: info.QueueTime, StartTime: info.StartTime,
		CompleteTime: info.CompleteTime}}}
}

func (t *vslmTask) VslmQueryTaskResult(*types.VslmQueryTaskResult) soap.HasFault {
	return &methods.VslmQueryTaskResultBody{Res: &types.VslmQueryTaskResultResponse{Returnval: t.info().Result}}
}

func (t *vslmTask) VslmCancelTask(*types.VslmCancelTask) soap.HasFault {
	task := &labTask{t.s.reg.Get(vim.ManagedObjectReference{Type: "Task", Value: t.Value}).(*simulator.Task), t.s}
	ctx := t.s.context()
	defer t.s.reg.AcquireLock(ctx, task.Self)()
	if fault := task.CancelTask(ctx, nil).Fault(); fault != nil {
		return &methods.VslmCancelTaskBody{Fault_: fault}
	}
	return &methods.VslmCancelTaskBody{Res: &types.VslmCancelTaskResponse{}}
}

// vslmStore is the catalog of all datastores.
type vslmStore struct {
	vim.ManagedObjectReference
	s *sim
}

// Calls lock what they need.
func (*vslmStore) Lock()   {}
func (*vslmStore) Unlock() {}

// find is findFCD with the service's own answer for an ID that it does not know.
func (m *vslmStore) find(id vim.ID) (*fcd, vim.BaseMethodFault) {
	f, fault := m.s.findFCD(id, nil)
	if fault != nil && m.s.knobs().VSLMUnknown == "InvalidArgument" {
		fault = &vim.InvalidArgument{InvalidProperty: "VolumeId"}
	}
	return f, fault
}

// task starts a task of the vCenter's on a first class disk and gives it a name in this service.
func (m *vslmStore) task(ctx *simulator.Context, name string, id vim.ID, work diskWork) vim.ManagedObjectReference {
	return m.show(ctx, m.s.onFCD(ctx.For(vim25.Path), name, id, nil, work))
}

func (m *vslmStore) show(ctx *simulator.Context, ref vim.ManagedObjectReference) vim.ManagedObjectReference {
	return ctx.Map.Put(&vslmTask{vim.ManagedObjectReference{Type: "VslmTask", Value: ref.Value}, m.s}).Reference()
}

// govmomi's types of these requests lose which kind of profile they carry.
type vslmFromSnapshot struct {
	This       vim.ManagedObjectReference          `xml:"_this"`
	Id         vim.ID                              `xml:"id"`
	SnapshotId vim.ID                              `xml:"snapshotId"`
	Name       string                              `xml:"name"`
	Profile    []vim.BaseVirtualMachineProfileSpec `xml:"profile,omitempty,typeattr"`
	Path       string                              `xml:"path,omitempty"`
}

type vslmPolicy struct {
	This    vim.ManagedObjectReference          `xml:"_this"`
	Id      vim.ID                              `xml:"id"`
	Profile []vim.BaseVirtualMachineProfileSpec `xml:"profile,omitempty,typeattr"`
}

func init() {
	vim.Add("vslm:VslmCreateDiskFromSnapshot_Task", reflect.TypeOf(vslmFromSnapshot{}))
	vim.Add("vslm:VslmUpdateVstorageObjectPolicy_Task", reflect.TypeOf(vslmPolicy{}))
}

func (m *vslmStore) VslmCreateDiskTask(ctx *simulator.Context, req *types.VslmCreateDisk_Task) soap.HasFault {
	return &methods.VslmCreateDisk_TaskBody{Res: &types.VslmCreateDisk_TaskResponse{
		Returnval: m.show(ctx, m.s.beginCreate(ctx.For(vim25.Path), req.Spec))}}
}

func (m *vslmStore) VslmRegisterDisk(ctx *simulator.Context, req *types.VslmRegisterDisk) soap.HasFault {
	body := new(methods.VslmRegisterDiskBody)
	if f, fault := m.s.registerFCD(ctx.For(vim25.Path), req.Path, req.Name); fault != nil {
		body.Fault_ = refuse(fault, "")
	} else {
		body.Res = &types.VslmRegisterDiskResponse{Returnval: m.s.tell(f)}
	}
	return body
}

func (m *vslmStore) VslmExtendDiskTask(ctx *simulator.Context, req *types.VslmExtendDisk_Task) soap.HasFault {
	return &methods.VslmExtendDisk_TaskBody{Res: &types.VslmExtendDisk_TaskResponse{
		Returnval: m.task(ctx, "extendDisk", req.Id, m.s.extendWork(req.NewCapacityInMB))}}
}

func (m *vslmStore) VslmDeleteVStorageObjectTask(ctx *simulator.Context, req *types.VslmDeleteVStorageObject_Task) soap.HasFault {
	return &methods.VslmDeleteVStorageObject_TaskBody{Res: &types.VslmDeleteVStorageObject_TaskResponse{
		Returnval: m.task(ctx, "deleteDisk", req.Id, m.s.deleteWork)}}
}

func (m *vslmStore) VslmCloneVStorageObjectTask(ctx *simulator.Context, req *types.VslmCloneVStorageObject_Task) soap.HasFault {
	return &methods.VslmCloneVStorageObject_TaskBody{Res: &types.VslmCloneVStorageObject_TaskResponse{
		Returnval: m.task(ctx, "cloneDisk", req.Id, m.s.cloneWork(req.Spec))}}
}

func (m *vslmStore) VslmRenameVStorageObject(_ *simulator.Context, req *types.VslmRenameVStorageObject) soap.HasFault {
	body := new(methods.VslmRenameVStorageObjectBody)
	_, fault := m.find(req.Id)
	if fault == nil {
		fault = m.s.rename(req.Id, nil, req.Name)
	}
	if fault != nil {
		body.Fault_ = refuse(fault, "")
	} else {
		body.Res = new(types.VslmRenameVStorageObjectResponse)
	}
	return body
}

func (m *vslmStore) VslmAttachDiskTask(ctx *simulator.Context, req *types.VslmAttachDisk_Task) soap.HasFault {
	if m.s.vm(req.Vm) == nil {
		return &methods.VslmAttachDisk_TaskBody{Fault_: refuse(&vim.ManagedObjectNotFound{Obj: req.Vm}, "")}
	}
	return &methods.VslmAttachDisk_TaskBody{Res: &types.VslmAttachDisk_TaskResponse{
		Returnval: m.show(ctx, m.s.beginAttach(ctx.For(vim25.Path), req.Vm, req.Id, nil, req.ControllerKey, req.UnitNumber))}}
}

func (m *vslmStore) VslmSetVStorageObjectControlFlags(ctx *simulator.Context, req *types.VslmSetVStorageObjectControlFlags) soap.HasFault {
	body := new(methods.VslmSetVStorageObjectControlFlagsBody)
	if fault := m.flags(ctx, req.Id, req.ControlFlags, true); fault != nil {
		body.Fault_ = refuse(fault, "")
	} else {
		body.Res = new(types.VslmSetVStorageObjectControlFlagsResponse)
	}
	return body
}

func (m *vslmStore) VslmClearVStorageObjectControlFlags(ctx *simulator.Context, req *types.VslmClearVStorageObjectControlFlags) soap.HasFault {
	body := new(methods.VslmClearVStorageObjectControlFlagsBody)
	if fault := m.flags(ctx, req.Id, req.ControlFlags, false); fault != nil {
		body.Fault_ = refuse(fault, "")
	} else {
		body.Res = new(types.VslmClearVStorageObjectControlFlagsResponse)
	}
	return body
}

func (m *vslmStore) flags(ctx *simulator.Context, id vim.ID, flags []string, value bool) vim.BaseMethodFault {
	f, fault := m.find(id)
	if fault != nil {
		return fault
	}
	return m.s.setFlags(ctx.For(vim25.Path), f, flags, value)
}

func (m *vslmStore) VslmUpdateVStorageObjectMetadataTask(ctx *simulator.Context, req *types.VslmUpdateVStorageObjectMetadata_Task) soap.HasFault {
	return &methods.VslmUpdateVStorageObjectMetadata_TaskBody{Res: &types.VslmUpdateVStorageObjectMetadata_TaskResponse{
		Returnval: m.task(ctx, "updateMetadata", req.Id, m.s.metadataWork(req.Metadata, req.DeleteKeys))}}
}

func (m *vslmStore) VslmUpdateVstorageObjectPolicyTask(ctx *simulator.Context, req *vslmPolicy) soap.HasFault {
	return &methods.VslmUpdateVstorageObjectPolicy_TaskBody{Res: &types.VslmUpdateVstorageObjectPolicy_TaskResponse{
		Returnval: m.task(ctx, "updatePolicy", req.Id, m.s.policyWork(req.Profile))}}
}

func (m *vslmStore) VslmCreateSnapshotTask(ctx *simulator.Context, req *types.VslmCreateSnapshot_Task) soap.HasFault {
	return &methods.VslmCreateSnapshot_TaskBody{Res: &types.VslmCreateSnapshot_TaskResponse{
		Returnval: m.task(ctx, "createSnapshot", req.Id, m.s.snapshotWork(req.Description))}}
}

func (m *vslmStore) VslmDeleteSnapshotTask(ctx *simulator.Context, req *types.VslmDeleteSnapshot_Task) soap.HasFault {
	return &methods.VslmDeleteSnapshot_TaskBody{Res: &types.VslmDeleteSnapshot_TaskResponse{
		Returnval: m.task(ctx, "deleteSnapshot", req.Id, m.s.dropWork(req.SnapshotId))}}
}

func (m *vslmStore) VslmRevertVStorageObjectTask(ctx *simulator.Context, req *types.VslmRevertVStorageObject_Task) soap.HasFault {
	return &methods.VslmRevertVStorageObject_TaskBody{Res: &types.VslmRevertVStorageObject_TaskResponse{
		Returnval: m.task(ctx, "revertDisk", req.Id, m.s.revertWork(req.SnapshotId))}}
}

func (m *vslmStore) VslmCreateDiskFromSnapshotTask(ctx *simulator.Context, req *vslmFromSnapshot) soap.HasFault {
	return &methods.VslmCreateDiskFromSnapshot_TaskBody{Res: &types.VslmCreateDiskFromSnapshot_TaskResponse{
		Returnval: m.task(ctx, "createDiskFromSnapshot", req.Id, m.s.fromSnapshotWork(req.SnapshotId, req.Name, req.Path, req.Profile))}}
}
