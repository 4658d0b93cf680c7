// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"cmp"
	"fmt"
	"os"
	"path"
	"slices"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// RelocateVMTask moves a VM to another host, or disks with all their files to another datastore
// (Storage vMotion). It is refused while the disk library forbids it.
func (v *labVM) RelocateVMTask(ctx *simulator.Context, req *types.RelocateVM_Task) soap.HasFault {
	vm, s := v.VirtualMachine, v.s
	if s.library.forbids(vm.Self) {
		return &methods.RelocateVM_TaskBody{Fault_: refuse(&types.MethodDisabled{Source: "VDDK"}, "The method is disabled by 'VDDK'")}
	}
	if req.Spec.Datastore == nil && len(req.Spec.Disk) == 0 {
		return vm.RelocateVMTask(ctx, req)
	}
	return &methods.RelocateVM_TaskBody{Res: &types.RelocateVM_TaskResponse{
		Returnval: s.begin(ctx, vm.Self, "relocate", func(ctx *simulator.Context, _ func(int32)) (types.AnyType, types.BaseMethodFault) {
			return nil, s.relocate(ctx, vm, &req.Spec)
		})}}
}

// relocateVerb moves all disks of a VM to a datastore of that name, as its administrator would.
func (s *sim) relocateVerb(p struct {
	VM        string `json:"vm"`
	Datastore string `json:"datastore"`
}) (any, error) {
	return s.locked(p.VM, func(ctx *simulator.Context, vm *simulator.VirtualMachine) (any, error) {
		if s.library.forbids(vm.Self) {
			return nil, asError(&types.MethodDisabled{Source: "VDDK"})
		}
		for _, e := range s.reg.All("Datastore") {
			if ref := e.Reference(); e.(*simulator.Datastore).Name == p.Datastore {
				return nil, asError(s.relocate(ctx, vm, &types.VirtualMachineRelocateSpec{Datastore: &ref}))
			}
		}
		return nil, fmt.Errorf("no datastore %q", p.Datastore)
	})
}

// relocate moves the disks that a spec names, or all of them; the files of the VM's home stay.
func (s *sim) relocate(ctx *simulator.Context, vm *simulator.VirtualMachine, spec *types.VirtualMachineRelocateSpec) types.BaseMethodFault {
	wanted := map[int32]types.ManagedObjectReference{}
	for _, locator := range spec.Disk {
		wanted[locator.DiskId] = locator.Datastore
	}
	places := map[*disk]*simulator.Datastore{}
	var fault types.BaseMethodFault
	eachDisk(vm.Config.Hardware.Device, func(d *types.VirtualDisk, b *backing) {
		ref, named := wanted[d.Key]
		delete(wanted, d.Key)
		if !named && spec.Datastore == nil {
			return
		} else if !named {
			ref = *spec.Datastore
		}
		datastore, missing := s.datastore(ref)
		owner := s.owner(d, b)
		if missing != nil || owner == nil {
			fault = missing
			return
		}
		if f := owner.fcd.Load(); f != nil && f.pinned {
			fault = &types.InvalidState{}
			return
		}
		places[owner] = datastore
	})
	if fault != nil {
		return fault
	}
	if len(wanted) > 0 {
		return &types.InvalidArgument{InvalidProperty: "spec.disk"}
	}
	for owner, datastore := range places {
		if fault := s.moveDisk(ctx, vm, owner, datastore); fault != nil {
			return fault
		}
	}
	s.layOut(ctx, vm)
	return nil
}

// moveDisk brings all files of a disk to a datastore, under the same names, and tells their users.
func (s *sim) moveDisk(ctx *simulator.Context, vm *simulator.VirtualMachine, owner *disk, datastore *simulator.Datastore) types.BaseMethodFault {
	renamed := map[string]string{}
	follow := s.knobs().OnMove == "follow"
	f := owner.fcd.Load()
	if f != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
	}
	owner.mu.Lock()
	fault := s.disks.move(owner, datastore.Name, renamed)
	owner.mu.Unlock()
	if f != nil {
		f.moved(renamed)
		f.datastore = datastore.Self
	}
	if follow {
		s.nfc.follow(owner, renamed)
		s.library.follow(owner, renamed, datastore.Self.Value)
	}
	relink := func(devices []types.BaseVirtualDevice) []types.BaseVirtualDevice {
		return edited(devices, func(d *types.VirtualDisk, b *backing) bool {
			now, moved := renamed[b.file.FileName]
			if !moved {
				return false
			}
			setFiles(d, now, owner.node(now).parents())
			backingOf(d).file.Datastore = &datastore.Self
			return true
		})
	}
	// Not setDevices: it would lock the first class disk, whose user stays the same.
	s.update(ctx, vm, map[string]any{"config.hardware.device": relink(vm.Config.Hardware.Device)})
	for _, snapshot := range s.snapshotObjects(vm) {
		s.update(ctx, snapshot, map[string]any{"config.hardware.device": relink(snapshot.Config.Hardware.Device)})
	}
	s.update(ctx, vm, map[string]any{"datastore": s.datastoresOf(vm)})
	return fault
}

// move renames a disk's files; what was moved before a failure is in renamed.
func (d *disks) move(owner *disk, datastore string, renamed map[string]string) types.BaseMethodFault {
	nodes := make([]*node, 0, len(owner.nodes))
	for _, n := range owner.nodes {
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b *node) int { return cmp.Compare(a.path, b.path) })
	for _, n := range nodes {
		var p object.DatastorePath
		p.FromString(n.path)
		if p.Datastore == datastore {
			continue
		}
		p.Datastore = datastore
		moved := node{path: p.String(), capacity: n.capacity, parent: n.parent}
		if d.find(moved.path) != nil {
			return &types.FileAlreadyExists{FileFault: types.FileFault{File: moved.path}}
		}
		moved.flat = d.host(moved.path)
		descriptor := d.descriptor(n)
		err := os.MkdirAll(path.Dir(moved.flat), 0o700)
		if err == nil {
			err = os.Rename(n.flat, moved.flat)
		}
		if err != nil {
			return &types.FileFault{File: n.path}
		}
		_ = os.Rename(descriptor, d.descriptor(&moved))
		delete(owner.nodes, n.path)
		d.put(n.path, nil)
		renamed[n.path] = moved.path
		*n = moved // its children know it by this pointer
		owner.nodes[n.path] = n
		d.put(n.path, owner)
	}
	return nil
}

// datastoresOf are those of the VM's home and disks.
func (s *sim) datastoresOf(vm *simulator.VirtualMachine) (out []types.ManagedObjectReference) {
	var home object.DatastorePath
	home.FromString(vm.Config.Files.VmPathName)
	names := []string{home.Datastore}
	eachDisk(vm.Config.Hardware.Device, func(_ *types.VirtualDisk, b *backing) {
		var p object.DatastorePath
		p.FromString(b.file.FileName)
		names = append(names, p.Datastore)
	})
	for _, e := range s.reg.All("Datastore") {
		if slices.Contains(names, e.(mo.Entity).Entity().Name) {
			out = append(out, e.Reference())
		}
	}
	return out
}

// follow lets open sessions read on in a disk whose files were moved, as hosts were seen to do.
func (n *nfc) follow(owner *disk, renamed map[string]string) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for session := range n.sessions {
		session.mu.Lock()
		if file := session.file; file != nil && file.owner == owner {
			if now, moved := renamed[file.Path]; moved {
				file.Path, file.flat = now, owner.node(now).flat
			}
		}
		session.mu.Unlock()
	}
}

// follow is the same for handles of the disk library.
func (v *vddk) follow(owner *disk, renamed map[string]string, datastore string) {
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, h := range v.handles {
		for old, now := range renamed {
			if h.owner != owner || h.flat != v.s.disks.host(old) {
				continue
			}
			next := *h
			next.flat = v.s.disks.host(now)
			if h.FCD != "" {
				next.Datastore = datastore
			} else {
				next.Path = now
			}
			v.handles[id] = &next
		}
	}
}

// forbids tells whether a client of the disk library prepared access to the VM.
func (v *vddk) forbids(vm types.ManagedObjectReference) bool {
	if v == nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Contains(v.report.Prepared, "moref="+vm.Value)
}
