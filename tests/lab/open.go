// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// vixError is what the disk library answers instead of a disk.
type vixError struct {
	Code    uint64
	Message string
}

func (e *vixError) Error() string { return fmt.Sprintf("%d: %s", e.Code, e.Message) }

// Codes of the disk library.
const (
	vixFail             = 1
	vixFileNotFound     = 4
	vixFileReadOnly     = 11
	vixFileLocked       = 15
	vixVMNotFound       = 4000
	vixSnapshotNotFound = 13003
)

// opening is what a client of the disk library asks for: a VM's disk by its path, or a first class
// disk by its ID and datastore. The snapshot is one of the VM or of the first class disk.
type opening struct {
	VM        string `json:"vm"`
	FCD       string `json:"fcd"`
	Datastore string `json:"datastore"`
	Snapshot  string `json:"snapshot"`
	Path      string `json:"path"`
	Write     bool   `json:"write"`
}

// opened is the raw file behind it.
type opened struct {
	flat     string
	capacity int64
	owner    *disk
}

// openDisk resolves what a client of the disk library opens to a raw file and its capacity.
//
// It has no effect but to give a redo file that is to be written content of its own, so it may
// be asked again at any time whether an open disk is still there: then it answers the same file.
func (s *sim) openDisk(o opening) (found opened, failure *vixError) {
	ctx := s.context()
	if o.FCD != "" {
		return s.openFCD(ctx, o)
	}
	vm := s.vm(vmRef(o.VM))
	if vm == nil {
		return opened{}, &vixError{vixVMNotFound, "no virtual machine " + o.VM}
	}
	ctx.WithLock(vm, func() { found, failure = s.resolve(ctx, vm, o) })
	return found, failure
}

// snapshotID is an ID that may be left out.
func snapshotID(id string) *types.ID {
	if id == "" {
		return nil
	}
	return &types.ID{Id: id}
}

// openFCD is openDisk of a first class disk.
func (s *sim) openFCD(ctx *simulator.Context, o opening) (found opened, failure *vixError) {
	f, fault := s.findFCD(types.ID{Id: o.FCD}, &types.ManagedObjectReference{Type: "Datastore", Value: o.Datastore})
	if fault != nil {
		return opened{}, &vixError{vixFileNotFound, fmt.Sprintf("no first class disk %s on %s", o.FCD, o.Datastore)}
	}
	_ = s.used(ctx, f, func(vm *simulator.VirtualMachine) types.BaseMethodFault {
		if o.Snapshot == "" && vm != nil && vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
			failure = &vixError{vixFileLocked, o.FCD + " is in use by a running virtual machine"}
			return nil
		}
		missing := f.in(snapshotID(o.Snapshot), func(file, _ string) {
			if o.Snapshot != "" && o.Write {
				failure = &vixError{vixFileReadOnly, "snapshots are read only"}
			} else {
				found, failure = f.disk.openNode(file, o.Write)
			}
		})
		if missing != nil {
			failure = &vixError{vixSnapshotNotFound, fmt.Sprintf("%s has no snapshot %s", o.FCD, o.Snapshot)}
		}
		return nil
	})
	return found, failure
}

// openNode gives a file that is to be written content of its own.
func (k *disk) openNode(file string, write bool) (opened, *vixError) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.nodes[file]
	if n == nil {
		return opened{}, &vixError{vixFileNotFound, file + " is gone"}
	}
	if write {
		own, err := n.writable()
		if err != nil {
			return opened{}, &vixError{vixFail, err.Error()}
		}
		_ = own.Close()
	}
	return opened{n.flat, n.capacity, k}, nil
}

// resolve is openDisk under the VM's lock.
func (s *sim) resolve(ctx *simulator.Context, vm *simulator.VirtualMachine, o opening) (opened, *vixError) {
	running := vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
	devices := vm.Config.Hardware.Device
	if o.Snapshot != "" {
		object, ok := s.reg.Get(types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: o.Snapshot}).(*simulator.VirtualMachineSnapshot)
		if !ok || object.Vm != vm.Self {
			return opened{}, &vixError{vixSnapshotNotFound, fmt.Sprintf("%s has no snapshot %s", vm.Self.Value, o.Snapshot)}
		}
		if o.Write {
			return opened{}, &vixError{vixFileReadOnly, "snapshots are read only"}
		}
		ctx.WithLock(object, func() { devices = object.Config.Hardware.Device })
	}
	d, view := diskAt(devices, o.Path)
	if d == nil {
		return opened{}, &vixError{vixFileNotFound, fmt.Sprintf("%s is not a disk of %s", o.Path, vm.Self.Value)}
	}
	if !view.inSnapshots() && running || o.Snapshot == "" && running {
		return opened{}, &vixError{vixFileLocked, o.Path + " is in use by its running virtual machine"}
	}
	if view.raw != nil && *view.raw == string(types.VirtualDiskCompatibilityModePhysicalMode) {
		return opened{}, &vixError{vixFail, o.Path + " is a raw device in physical mode"}
	}
	owner := s.owner(d, view)
	if owner == nil {
		return opened{}, &vixError{vixFileNotFound, o.Path + " has no file"}
	}
	return owner.openNode(o.Path, o.Write)
}

// diskAt returns the disk of a datastore path.
func diskAt(devices []types.BaseVirtualDevice, path string) (found *types.VirtualDisk, view *backing) {
	eachDisk(devices, func(d *types.VirtualDisk, b *backing) {
		if b.file.FileName == path {
			found, view = d, b
		}
	})
	return found, view
}
