// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

func (m *labStore) VStorageObjectCreateSnapshotTask(ctx *simulator.Context, req *types.VStorageObjectCreateSnapshot_Task) soap.HasFault {
	return &methods.VStorageObjectCreateSnapshot_TaskBody{Res: &types.VStorageObjectCreateSnapshot_TaskResponse{
		Returnval: m.s.onFCD(ctx, "createSnapshot", req.Id, &req.Datastore, m.s.snapshotWork(req.Description))}}
}

func (s *sim) snapshotWork(description string) diskWork {
	return func(ctx *simulator.Context, f *fcd) (types.AnyType, types.BaseMethodFault) {
		made, fault := s.snapshotFCD(ctx, f, description)
		if fault != nil {
			return nil, fault
		}
		return made.id, nil
	}
}

func (m *labStore) DeleteSnapshotTask(ctx *simulator.Context, req *types.DeleteSnapshot_Task) soap.HasFault {
	return &methods.DeleteSnapshot_TaskBody{Res: &types.DeleteSnapshot_TaskResponse{
		Returnval: m.s.onFCD(ctx, "deleteSnapshot", req.Id, &req.Datastore, m.s.dropWork(req.SnapshotId))}}
}

func (s *sim) dropWork(snapshot types.ID) diskWork {
	return func(ctx *simulator.Context, f *fcd) (types.AnyType, types.BaseMethodFault) {
		return nil, s.dropSnapshotFCD(ctx, f, snapshot)
	}
}

func (m *labStore) RevertVStorageObjectTask(ctx *simulator.Context, req *types.RevertVStorageObject_Task) soap.HasFault {
	return &methods.RevertVStorageObject_TaskBody{Res: &types.RevertVStorageObject_TaskResponse{
		Returnval: m.s.onFCD(ctx, "revertDisk", req.Id, &req.Datastore, m.s.revertWork(req.SnapshotId))}}
}

func (s *sim) revertWork(snapshot types.ID) diskWork {
	return func(ctx *simulator.Context, f *fcd) (types.AnyType, types.BaseMethodFault) {
		return nil, s.revertFCD(ctx, f, snapshot)
	}
}

func (m *labStore) CreateDiskFromSnapshotTask(ctx *simulator.Context, req *types.CreateDiskFromSnapshot_Task) soap.HasFault {
	return &methods.CreateDiskFromSnapshot_TaskBody{Res: &types.CreateDiskFromSnapshot_TaskResponse{
		Returnval: m.s.onFCD(ctx, "createDiskFromSnapshot", req.Id, &req.Datastore,
			m.s.fromSnapshotWork(req.SnapshotId, req.Name, req.Path, req.Profile))}}
}

func (s *sim) fromSnapshotWork(snapshot types.ID, name, place string, profile []types.BaseVirtualMachineProfileSpec) diskWork {
	return func(_ *simulator.Context, f *fcd) (types.AnyType, types.BaseMethodFault) {
		backing := &types.VslmCreateSpecDiskFileBackingSpec{ProvisioningType: f.provisioning}
		backing.Datastore, backing.Path = f.datastore, place
		return s.told(s.copyFCD(name, backing, f, &snapshot, func(made *fcd) types.BaseMethodFault { return s.setPolicy(made, profile) }))
	}
}

func (m *labStore) RetrieveSnapshotInfo(_ *simulator.Context, req *types.RetrieveSnapshotInfo) soap.HasFault {
	body := new(methods.RetrieveSnapshotInfoBody)
	if f, fault := m.s.findFCD(req.Id, &req.Datastore); fault != nil {
		body.Fault_ = refuse(fault, "")
	} else {
		body.Res = &types.RetrieveSnapshotInfoResponse{Returnval: f.snapshotInfo()}
	}
	return body
}

// snapshotInfo lists the snapshots in no order that a client may rely on: the newest first.
func (f *fcd) snapshotInfo() (out types.VStorageObjectSnapshotInfo) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := len(f.snapshots) - 1; i >= 0; i-- {
		n := f.snapshots[i]
		out.Snapshots = append(out.Snapshots, types.VStorageObjectSnapshotInfoVStorageObjectSnapshot{
			Id: &n.id, BackingObjectId: n.backingID, CreateTime: n.created, Description: n.description})
	}
	return out
}

func (m *labStore) RetrieveSnapshotDetails(_ *simulator.Context, req *types.RetrieveSnapshotDetails) soap.HasFault {
	body := new(methods.RetrieveSnapshotDetailsBody)
	f, fault := m.s.findFCD(req.Id, &req.Datastore)
	if fault == nil {
		var details types.VStorageObjectSnapshotDetails
		if details, fault = f.details(req.SnapshotId); fault == nil {
			body.Res = &types.RetrieveSnapshotDetailsResponse{Returnval: details}
			return body
		}
	}
	body.Fault_ = refuse(fault, "")
	return body
}

func (f *fcd) details(snapshot types.ID) (out types.VStorageObjectSnapshotDetails, _ types.BaseMethodFault) {
	fault := f.in(&snapshot, func(file, changeID string) { out.Path, out.ChangedBlockTrackingId = file, changeID })
	return out, fault
}

func (m *labStore) VstorageObjectVCenterQueryChangedDiskAreas(_ *simulator.Context, req *types.VstorageObjectVCenterQueryChangedDiskAreas) soap.HasFault {
	body := new(methods.VstorageObjectVCenterQueryChangedDiskAreasBody)
	f, fault := m.s.findFCD(req.Id, &req.Datastore)
	if fault != nil {
		body.Fault_ = refuse(fault, "")
		return body
	}
	answer, fault, message := m.s.changesFCD(f, req.SnapshotId, req.StartOffset, req.ChangeId)
	if fault != nil {
		body.Fault_ = refuse(fault, message)
	} else {
		body.Res = &types.VstorageObjectVCenterQueryChangedDiskAreasResponse{Returnval: answer}
	}
	return body
}
