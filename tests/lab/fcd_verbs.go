// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// fcdParams name a first class disk and what to do with it; each verb takes what it needs.
type fcdParams struct {
	FCD         string `json:"fcd"`
	Snapshot    string `json:"snapshot"`
	Description string `json:"description"`
	VM          string `json:"vm"`
	Controller  int32  `json:"controller"`
	Unit        *int32 `json:"unit"`
}

// onStore makes a verb of what runs with a first class disk, outside of all locks.
func (s *sim) onStore(f func(*simulator.Context, *fcd, fcdParams) (any, error)) verb {
	return typed(func(p fcdParams) (any, error) {
		disk, fault := s.findFCD(types.ID{Id: p.FCD}, nil)
		if fault != nil {
			return nil, fmt.Errorf("no first class disk %q", p.FCD)
		}
		return f(s.context(), disk, p)
	})
}

func (s *sim) createFCDVerb(p struct {
	Name         string            `json:"name"`
	Size         int64             `json:"size"`
	Datastore    string            `json:"datastore"`
	Provisioning string            `json:"provisioning"`
	Tracking     bool              `json:"tracking"`
	Keep         bool              `json:"keep"`
	Metadata     map[string]string `json:"metadata"`
	Policy       string            `json:"policy"`
	Consumers    []string          `json:"consumers"`
}) (any, error) {
	dc := s.reg.Any("Datacenter").(*simulator.Datacenter)
	place := dc.Datastore[0]
	if p.Datastore != "" {
		found := s.reg.FindByName(p.Datastore, dc.Datastore)
		if found == nil {
			return nil, fmt.Errorf("no datastore %q", p.Datastore)
		}
		place = found.Reference()
	}
	backing := &types.VslmCreateSpecDiskFileBackingSpec{ProvisioningType: p.Provisioning}
	backing.Datastore = place
	spec := &types.VslmCreateSpec{Name: p.Name, KeepAfterDeleteVm: &p.Keep, BackingSpec: backing, CapacityInMB: p.Size / mebibyte}
	for key, value := range p.Metadata {
		spec.Metadata = append(spec.Metadata, types.KeyValue{Key: key, Value: value})
	}
	if p.Policy != "" {
		spec.Profile = []types.BaseVirtualMachineProfileSpec{&types.VirtualMachineDefinedProfileSpec{ProfileId: p.Policy}}
	}
	f, fault := s.createFCD(spec)
	if fault != nil {
		return nil, asError(fault)
	}
	if p.Tracking {
		tracking := []string{string(types.VslmVStorageObjectControlFlagEnableChangedBlockTracking)}
		if fault := s.setFlags(s.context(), f, tracking, true); fault != nil {
			return nil, asError(fault)
		}
	}
	for _, id := range p.Consumers {
		f.consumers = append(f.consumers, types.ID{Id: id})
	}
	return s.fcdRecord(f), nil
}

// fcdRecord tells a client of the control interface about a first class disk.
func (s *sim) fcdRecord(f *fcd) map[string]any {
	metadata, vm := map[string]string{}, ""
	if user := s.vmOf(f); user != nil {
		vm = user.Self.Value
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	for _, entry := range f.metadata {
		metadata[entry.Key] = entry.Value
	}
	datastore, _ := s.datastore(f.datastore)
	return map[string]any{
		"id": f.id.Id, "name": f.name, "datastore": datastore.Name, "datastore_moid": f.datastore.Value, "path": f.file,
		"capacity": f.disk.nodes[f.file].capacity, "backing_uuid": f.disk.uuid, "provisioning": f.provisioning, "metadata": metadata,
		"policy": f.policy, "change_id": f.disk.track.id(), "vm": vm, "key": f.key, "consumers": ids(f.consumers), "snapshots": f.snapshotRecords(),
		"control_flags": map[string]bool{"keep_after_delete_vm": f.keep, "disable_relocation": f.pinned, "enable_changed_block_tracking": f.tracked},
	}
}

func ids(list []types.ID) []string {
	out := make([]string, 0, len(list))
	for _, id := range list {
		out = append(out, id.Id)
	}
	return out
}

func (s *sim) fcdVerb(_ *simulator.Context, f *fcd, _ fcdParams) (any, error) {
	return s.fcdRecord(f), nil
}

func (s *sim) listFCDVerb(struct{}) (any, error) {
	out := []map[string]any{}
	for _, f := range s.fcds.all(nil) {
		out = append(out, s.fcdRecord(f))
	}
	return out, nil
}

// destroyFCDVerb deletes a first class disk, whoever uses it.
func (s *sim) destroyFCDVerb(ctx *simulator.Context, f *fcd, p fcdParams) (any, error) {
	if _, err := s.detachFCDVerb(ctx, f, p); err != nil {
		return nil, err
	}
	f.consumers = nil
	return nil, asError(s.deleteFCD(f))
}

func (s *sim) attachFCDVerb(_ *simulator.Context, f *fcd, p fcdParams) (any, error) {
	return s.locked(p.VM, func(ctx *simulator.Context, vm *simulator.VirtualMachine) (any, error) {
		if err := asError(s.attach(ctx, vm, f, p.Controller, p.Unit)); err != nil {
			return nil, err
		}
		d, b := findDisk(vm.Config.Hardware.Device, f.key)
		return s.record(vm, d, b), nil
	})
}

func (s *sim) detachFCDVerb(ctx *simulator.Context, f *fcd, _ fcdParams) (any, error) {
	return nil, asError(s.used(ctx, f, func(vm *simulator.VirtualMachine) types.BaseMethodFault {
		if vm == nil {
			return nil
		}
		return s.detach(ctx, vm, f.id)
	}))
}

// fcdSnapshotsVerb lists the snapshots, oldest first.
func (s *sim) fcdSnapshotsVerb(_ *simulator.Context, f *fcd, _ fcdParams) (any, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.snapshotRecords(), nil
}

func (f *fcd) snapshotRecords() []map[string]any {
	out := []map[string]any{}
	for _, n := range f.snapshots {
		out = append(out, map[string]any{"id": n.id.Id, "description": n.description, "path": n.file, "change_id": n.changeID,
			"created": n.created})
	}
	return out
}

func (s *sim) snapshotFCDVerb(ctx *simulator.Context, f *fcd, p fcdParams) (any, error) {
	made, fault := s.snapshotFCD(ctx, f, p.Description)
	if fault != nil {
		return nil, asError(fault)
	}
	return made.id.Id, nil
}

func (s *sim) dropSnapshotFCDVerb(ctx *simulator.Context, f *fcd, p fcdParams) (any, error) {
	return nil, asError(s.dropSnapshotFCD(ctx, f, types.ID{Id: p.Snapshot}))
}

// fcdTarget is the disk that a verb works on, under the lock of the VM that has it.
func (s *sim) fcdTarget(p diskParams, f func(target, diskParams) (any, error)) (answer any, err error) {
	disk, fault := s.findFCD(types.ID{Id: p.FCD}, nil)
	if fault != nil {
		return nil, fmt.Errorf("no first class disk %q", p.FCD)
	}
	ctx := s.context()
	_ = s.used(ctx, disk, func(vm *simulator.VirtualMachine) types.BaseMethodFault {
		t := target{ctx: ctx, vm: vm, key: disk.key, owner: disk.disk}
		missing := disk.in(snapshotID(p.Snapshot), func(file, _ string) { t.node = disk.disk.node(file) })
		if missing != nil {
			err = fmt.Errorf("%s has no snapshot %q", p.FCD, p.Snapshot)
			return nil
		}
		answer, err = f(t, p)
		return nil
	})
	return answer, err
}
