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

// openDisk resolves what a client of the disk library opens to a raw file and its capacity.
//
// It has no effect but to give a redo file that is to be written content of its own, so it may
// be asked again at any time whether an open disk is still there: then it answers the same file.
func (s *sim) openDisk(moref, snapshot, path string, write bool) (flat string, capacity int64, failure *vixError) {
	vm := s.vm(vmRef(moref))
	if vm == nil {
		return "", 0, &vixError{vixVMNotFound, "no virtual machine " + moref}
	}
	ctx := s.context()
	ctx.WithLock(vm, func() { flat, capacity, failure = s.resolve(ctx, vm, snapshot, path, write) })
	return flat, capacity, failure
}

// resolve is openDisk under the VM's lock.
func (s *sim) resolve(ctx *simulator.Context, vm *simulator.VirtualMachine, snapshot, path string, write bool) (string, int64, *vixError) {
	running := vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
	devices := vm.Config.Hardware.Device
	if snapshot != "" {
		object, ok := s.reg.Get(types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: snapshot}).(*simulator.VirtualMachineSnapshot)
		if !ok || object.Vm != vm.Self {
			return "", 0, &vixError{vixSnapshotNotFound, fmt.Sprintf("%s has no snapshot %s", vm.Self.Value, snapshot)}
		}
		if write {
			return "", 0, &vixError{vixFileReadOnly, "snapshots are read only"}
		}
		ctx.WithLock(object, func() { devices = object.Config.Hardware.Device })
	}
	d, view := diskAt(devices, path)
	if d == nil {
		return "", 0, &vixError{vixFileNotFound, fmt.Sprintf("%s is not a disk of %s", path, vm.Self.Value)}
	}
	if !view.inSnapshots() && running || snapshot == "" && running {
		return "", 0, &vixError{vixFileLocked, path + " is in use by its running virtual machine"}
	}
	if view.raw != nil && *view.raw == string(types.VirtualDiskCompatibilityModePhysicalMode) {
		return "", 0, &vixError{vixFail, path + " is a raw device in physical mode"}
	}
	owner := s.owner(d, view)
	if owner == nil {
		return "", 0, &vixError{vixFileNotFound, path + " has no file"}
	}
	n := owner.node(path)
	if write {
		owner.mu.Lock()
		file, err := n.writable()
		owner.mu.Unlock()
		if err != nil {
			return "", 0, &vixError{vixFail, err.Error()}
		}
		_ = file.Close()
	}
	return n.flat, n.capacity, nil
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
