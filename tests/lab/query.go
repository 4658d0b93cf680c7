// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"os"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// QueryChangedDiskAreas lists what changed on a disk between a change ID and a snapshot.
func (v *labVM) QueryChangedDiskAreas(ctx *simulator.Context, req *types.QueryChangedDiskAreas) soap.HasFault {
	body := new(methods.QueryChangedDiskAreasBody)
	answer, fault, message := v.s.changedAreas(ctx, v.VirtualMachine, req)
	if fault != nil {
		body.Fault_ = refuse(fault, message)
	} else {
		body.Res = &types.QueryChangedDiskAreasResponse{Returnval: answer}
	}
	return body
}

func (s *sim) changedAreas(ctx *simulator.Context, vm *simulator.VirtualMachine, req *types.QueryChangedDiskAreas) (none types.DiskChangeInfo, _ types.BaseMethodFault, _ string) {
	devices := vm.Config.Hardware.Device
	if req.Snapshot != nil {
		snapshot, ok := s.reg.Get(*req.Snapshot).(*simulator.VirtualMachineSnapshot)
		if !ok || snapshot.Vm != vm.Self {
			return none, &types.NotFound{}, "The object or item referred to could not be found."
		}
		ctx.WithLock(snapshot, func() { devices = snapshot.Config.Hardware.Device })
	} else if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		return invalidArgument("snapshot")
	}
	if !vm.Capability.ChangeTrackingSupported {
		return invalidArgument("")
	}
	d, b := findDisk(devices, req.DeviceKey)
	if d == nil {
		return invalidArgument("deviceKey")
	}
	if req.StartOffset < 0 || req.StartOffset >= d.CapacityInBytes { // tracked or not
		return invalidArgument("startOffset")
	}
	owner := s.owner(d, b)
	if owner == nil || !b.inSnapshots() {
		return fileFault(b.file.FileName)
	}
	to := present
	if req.Snapshot != nil {
		to = *b.changeID
	}
	return s.changes(owner, b.file.FileName, req.ChangeId, to, req.StartOffset)
}

// present stands for the change ID of this moment.
const present = "now"

// changes answers for one file of a disk: what was written from one change ID to another, "" being
// one that a snapshot without tracking lacks.
func (s *sim) changes(owner *disk, file, from, to string, start int64) (types.DiskChangeInfo, types.BaseMethodFault, string) {
	owner.mu.Lock()
	defer owner.mu.Unlock()
	n := owner.nodes[file]
	if n == nil { // folded away since the caller looked
		return fileFault(file)
	}
	if start < 0 || start >= n.capacity {
		return invalidArgument("startOffset")
	}
	if to == "" {
		return fileFault(file)
	}
	knobs := s.knobs()
	areas, problem := owner.areas(n, from, to, knobs.Star)
	switch {
	case problem == badChangeID && knobs.BadChangeID == "InvalidArgument":
		return invalidArgument("changeId")
	case problem != 0:
		return fileFault(file)
	}
	return knobs.answer(areas, start, n.capacity), nil, ""
}

func invalidArgument(property string) (none types.DiskChangeInfo, _ types.BaseMethodFault, _ string) {
	return none, &types.InvalidArgument{InvalidProperty: property}, "A specified parameter was not correct: " + property
}

func fileFault(file string) (none types.DiskChangeInfo, _ types.BaseMethodFault, _ string) {
	return none, &types.FileFault{File: file}, "Error caused by file " + file
}

// areas answers for one disk; "*" asks for what is allocated.
func (k *disk) areas(n *node, from, to, star string) (extents, queryError) {
	if to == present {
		to = ""
	}
	if from != "*" {
		return k.track.changed(from, to)
	}
	if known := to == "" && k.track.current != nil || k.track.epochs[to] != nil; !known || k.track.partial || star == "fault" {
		return nil, noTracking
	}
	if star == "whole" {
		return extents{{0, n.capacity}}, 0
	}
	f, err := os.Open(n.flat)
	if err != nil {
		return nil, noTracking
	}
	defer f.Close()
	data, err := allocated(f, n.capacity)
	if err != nil {
		return nil, noTracking
	}
	return data, 0
}
