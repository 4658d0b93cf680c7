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
	invalid := func(property string) (types.DiskChangeInfo, types.BaseMethodFault, string) {
		return none, &types.InvalidArgument{InvalidProperty: property}, "A specified parameter was not correct: " + property
	}
	devices := vm.Config.Hardware.Device
	if req.Snapshot != nil {
		snapshot, ok := s.reg.Get(*req.Snapshot).(*simulator.VirtualMachineSnapshot)
		if !ok || snapshot.Vm != vm.Self {
			return none, &types.NotFound{}, "The object or item referred to could not be found."
		}
		ctx.WithLock(snapshot, func() { devices = snapshot.Config.Hardware.Device })
	} else if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		return invalid("snapshot")
	}
	if !vm.Capability.ChangeTrackingSupported {
		return invalid("")
	}
	d, b := findDisk(devices, req.DeviceKey)
	if d == nil {
		return invalid("deviceKey")
	}
	if req.StartOffset < 0 || req.StartOffset >= d.CapacityInBytes {
		return invalid("startOffset")
	}
	fileFault := func() (types.DiskChangeInfo, types.BaseMethodFault, string) {
		return none, &types.FileFault{File: b.file.FileName}, "Error caused by file " + b.file.FileName
	}
	owner := s.owner(d, b)
	if owner == nil || !b.inSnapshots() {
		return fileFault()
	}
	to := ""
	if req.Snapshot != nil {
		if to = *b.changeID; to == "" {
			return fileFault()
		}
	}
	owner.mu.Lock()
	defer owner.mu.Unlock()
	knobs := s.knobs()
	areas, problem := owner.areas(owner.nodes[b.file.FileName], req.ChangeId, to, knobs.Star)
	switch {
	case problem == badChangeID && knobs.BadChangeID == "InvalidArgument":
		return invalid("changeId")
	case problem != 0:
		return fileFault()
	}
	return knobs.answer(areas, req.StartOffset, d.CapacityInBytes), nil, ""
}

// areas answers for one disk; "*" asks for what is allocated.
func (k *disk) areas(n *node, from, to, star string) (extents, queryError) {
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
