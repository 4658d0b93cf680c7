// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// labStore answers calls to the VStorageObjectManager of vCenter, in which a first class disk is
// named by its ID and its datastore. Only the tags are the simulator's.
type labStore struct {
	*simulator.VcenterVStorageObjectManager
	s *sim
}

// Calls lock what they need.
func (*labStore) Lock()   {}
func (*labStore) Unlock() {}

// storeKind is the type of the managed object in descriptions of tasks.
const storeKind = "VStorageObjectManager"

// diskWork is what a task does with a first class disk.
type diskWork func(ctx *simulator.Context, f *fcd) (types.AnyType, types.BaseMethodFault)

// onFCD starts a task on a first class disk; a datastore limits where it is looked for.
func (s *sim) onFCD(ctx *simulator.Context, name string, id types.ID, datastore *types.ManagedObjectReference, work diskWork) types.ManagedObjectReference {
	return s.start(ctx, job{entity: s.placeOf(id, datastore), kind: storeKind, name: name, disk: id.Id},
		func(ctx *simulator.Context, progress func(int32)) (types.AnyType, types.BaseMethodFault) {
			f, fault := s.findFCD(id, datastore)
			if fault != nil {
				return nil, fault
			}
			progress(50)
			return work(ctx, f)
		})
}

// placeOf is the entity for a task: the disk's datastore, or any if there is none.
func (s *sim) placeOf(id types.ID, datastore *types.ManagedObjectReference) types.ManagedObjectReference {
	if datastore != nil && s.reg.Get(*datastore) != nil {
		return *datastore
	}
	if f, fault := s.findFCD(id, nil); fault == nil {
		return f.datastore
	}
	return s.reg.Any("Datastore").Reference()
}

// beginCreate starts the task that creates a first class disk.
func (s *sim) beginCreate(ctx *simulator.Context, spec types.VslmCreateSpec) types.ManagedObjectReference {
	place := s.reg.Any("Datastore").Reference()
	if spec.BackingSpec != nil {
		if given := spec.BackingSpec.GetVslmCreateSpecBackingSpec().Datastore; s.reg.Get(given) != nil {
			place = given
		}
	}
	return s.start(ctx, job{entity: place, kind: storeKind, name: "createDisk"}, func(*simulator.Context, func(int32)) (types.AnyType, types.BaseMethodFault) {
		return s.told(s.createFCD(&spec))
	})
}

// told is the result of a task that made a first class disk.
func (s *sim) told(f *fcd, fault types.BaseMethodFault) (types.AnyType, types.BaseMethodFault) {
	if fault != nil {
		return nil, fault
	}
	return s.tell(f), nil
}

func (m *labStore) CreateDiskTask(ctx *simulator.Context, req *types.CreateDisk_Task) soap.HasFault {
	return &methods.CreateDisk_TaskBody{Res: &types.CreateDisk_TaskResponse{Returnval: m.s.beginCreate(ctx, req.Spec)}}
}

func (m *labStore) RegisterDisk(ctx *simulator.Context, req *types.RegisterDisk) soap.HasFault {
	body := new(methods.RegisterDiskBody)
	if f, fault := m.s.registerFCD(ctx, req.Path, req.Name); fault != nil {
		body.Fault_ = refuse(fault, "")
	} else {
		body.Res = &types.RegisterDiskResponse{Returnval: m.s.tell(f)}
	}
	return body
}

func (m *labStore) ExtendDiskTask(ctx *simulator.Context, req *types.ExtendDisk_Task) soap.HasFault {
	return &methods.ExtendDisk_TaskBody{Res: &types.ExtendDisk_TaskResponse{
		Returnval: m.s.onFCD(ctx, "extendDisk", req.Id, &req.Datastore, m.s.extendWork(req.NewCapacityInMB))}}
}

func (s *sim) extendWork(megabytes int64) diskWork {
	return func(ctx *simulator.Context, f *fcd) (types.AnyType, types.BaseMethodFault) {
		return nil, s.extendFCD(ctx, f, megabytes)
	}
}

func (m *labStore) DeleteVStorageObjectTask(ctx *simulator.Context, req *types.DeleteVStorageObject_Task) soap.HasFault {
	return &methods.DeleteVStorageObject_TaskBody{Res: &types.DeleteVStorageObject_TaskResponse{
		Returnval: m.s.onFCD(ctx, "deleteDisk", req.Id, &req.Datastore, m.s.deleteWork)}}
}

func (s *sim) deleteWork(_ *simulator.Context, f *fcd) (types.AnyType, types.BaseMethodFault) {
	return nil, s.deleteFCD(f)
}

func (m *labStore) RenameVStorageObject(_ *simulator.Context, req *types.RenameVStorageObject) soap.HasFault {
	body := new(methods.RenameVStorageObjectBody)
	if fault := m.s.rename(req.Id, &req.Datastore, req.Name); fault != nil {
		body.Fault_ = refuse(fault, "")
	} else {
		body.Res = new(types.RenameVStorageObjectResponse)
	}
	return body
}

func (s *sim) rename(id types.ID, datastore *types.ManagedObjectReference, name string) types.BaseMethodFault {
	f, fault := s.findFCD(id, datastore)
	if fault != nil {
		return fault
	}
	if name == "" {
		return &types.InvalidArgument{InvalidProperty: "name"}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.name = name
	return nil
}

func (m *labStore) ListVStorageObject(_ *simulator.Context, req *types.ListVStorageObject) soap.HasFault {
	body := new(methods.ListVStorageObjectBody)
	if _, fault := m.s.datastore(req.Datastore); fault != nil {
		body.Fault_ = refuse(fault, "")
		return body
	}
	body.Res = new(types.ListVStorageObjectResponse)
	for _, f := range m.s.fcds.all(&req.Datastore) {
		body.Res.Returnval = append(body.Res.Returnval, f.id)
	}
	return body
}

func (m *labStore) RetrieveVStorageObject(_ *simulator.Context, req *types.RetrieveVStorageObject) soap.HasFault {
	body := new(methods.RetrieveVStorageObjectBody)
	if f, fault := m.s.findFCD(req.Id, &req.Datastore); fault != nil {
		body.Fault_ = refuse(fault, "")
	} else {
		body.Res = &types.RetrieveVStorageObjectResponse{Returnval: m.s.tell(f)}
	}
	return body
}

func (m *labStore) RetrieveVStorageObjectState(_ *simulator.Context, req *types.RetrieveVStorageObjectState) soap.HasFault {
	body := new(methods.RetrieveVStorageObjectStateBody)
	if _, fault := m.s.findFCD(req.Id, &req.Datastore); fault != nil {
		body.Fault_ = refuse(fault, "")
	} else {
		body.Res = &types.RetrieveVStorageObjectStateResponse{Returnval: types.VStorageObjectStateInfo{Tentative: types.NewBool(false)}}
	}
	return body
}

// RetrieveVStorageObjectAssociations tells which VMs have the disks; what is wrong with one does
// not keep the others from being answered.
func (m *labStore) RetrieveVStorageObjectAssociations(_ *simulator.Context, req *types.RetrieveVStorageObjectAssociations) soap.HasFault {
	res := new(types.RetrieveVStorageObjectAssociationsResponse)
	for _, asked := range req.Ids {
		answer := types.VStorageObjectAssociations{Id: asked.Id}
		if f, fault := m.s.findFCD(asked.Id, &asked.Datastore); fault != nil {
			answer.Fault = &types.LocalizedMethodFault{Fault: fault, LocalizedMessage: faultName(fault)}
		} else if vm, key := m.s.consumer(f); vm != "" {
			answer.VmDiskAssociations = []types.VStorageObjectAssociationsVmDiskAssociations{{VmId: vm, DiskKey: key}}
		}
		res.Returnval = append(res.Returnval, answer)
	}
	return &methods.RetrieveVStorageObjectAssociationsBody{Res: res}
}

func (m *labStore) SetVStorageObjectControlFlags(ctx *simulator.Context, req *types.SetVStorageObjectControlFlags) soap.HasFault {
	body := new(methods.SetVStorageObjectControlFlagsBody)
	if fault := m.s.flags(ctx, req.Id, &req.Datastore, req.ControlFlags, true); fault != nil {
		body.Fault_ = refuse(fault, "")
	} else {
		body.Res = new(types.SetVStorageObjectControlFlagsResponse)
	}
	return body
}

func (m *labStore) ClearVStorageObjectControlFlags(ctx *simulator.Context, req *types.ClearVStorageObjectControlFlags) soap.HasFault {
	body := new(methods.ClearVStorageObjectControlFlagsBody)
	if fault := m.s.flags(ctx, req.Id, &req.Datastore, req.ControlFlags, false); fault != nil {
		body.Fault_ = refuse(fault, "")
	} else {
		body.Res = new(types.ClearVStorageObjectControlFlagsResponse)
	}
	return body
}

func (s *sim) flags(ctx *simulator.Context, id types.ID, datastore *types.ManagedObjectReference, flags []string, value bool) types.BaseMethodFault {
	f, fault := s.findFCD(id, datastore)
	if fault != nil {
		return fault
	}
	return s.setFlags(ctx, f, flags, value)
}

func (m *labStore) VCenterUpdateVStorageObjectMetadataExTask(ctx *simulator.Context, req *types.VCenterUpdateVStorageObjectMetadataEx_Task) soap.HasFault {
	return &methods.VCenterUpdateVStorageObjectMetadataEx_TaskBody{Res: &types.VCenterUpdateVStorageObjectMetadataEx_TaskResponse{
		Returnval: m.s.onFCD(ctx, "updateMetadata", req.Id, &req.Datastore, m.s.metadataWork(req.Metadata, req.DeleteKeys))}}
}

func (s *sim) metadataWork(set []types.KeyValue, gone []string) diskWork {
	return func(_ *simulator.Context, f *fcd) (types.AnyType, types.BaseMethodFault) {
		f.mu.Lock()
		f.metadata = merged(f.metadata, set, gone)
		f.mu.Unlock()
		return s.tell(f), nil
	}
}

func (m *labStore) UpdateVStorageObjectPolicyTask(ctx *simulator.Context, req *types.UpdateVStorageObjectPolicy_Task) soap.HasFault {
	return &methods.UpdateVStorageObjectPolicy_TaskBody{Res: &types.UpdateVStorageObjectPolicy_TaskResponse{
		Returnval: m.s.onFCD(ctx, "updatePolicy", req.Id, &req.Datastore, m.s.policyWork(req.Profile))}}
}

func (s *sim) policyWork(profile []types.BaseVirtualMachineProfileSpec) diskWork {
	return func(_ *simulator.Context, f *fcd) (types.AnyType, types.BaseMethodFault) {
		return nil, s.setPolicy(f, profile)
	}
}

func (m *labStore) CloneVStorageObjectTask(ctx *simulator.Context, req *types.CloneVStorageObject_Task) soap.HasFault {
	return &methods.CloneVStorageObject_TaskBody{Res: &types.CloneVStorageObject_TaskResponse{
		Returnval: m.s.onFCD(ctx, "cloneDisk", req.Id, &req.Datastore, m.s.cloneWork(req.Spec))}}
}

func (s *sim) cloneWork(spec types.VslmCloneSpec) diskWork {
	return func(_ *simulator.Context, f *fcd) (types.AnyType, types.BaseMethodFault) {
		return s.told(s.copyFCD(spec.Name, spec.BackingSpec, f, nil, func(made *fcd) types.BaseMethodFault {
			made.keep = spec.KeepAfterDeleteVm != nil && *spec.KeepAfterDeleteVm
			made.metadata = merged(nil, spec.Metadata, nil)
			return s.setPolicy(made, spec.Profile)
		}))
	}
}
