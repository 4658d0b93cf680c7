// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// maxSnapshotDepth is how many snapshots may follow one another.
const maxSnapshotDepth = 32

// CreateSnapshotTask is CreateSnapshotExTask with the default way of quiescing.
func (v *labVM) CreateSnapshotTask(ctx *simulator.Context, req *types.CreateSnapshot_Task) soap.HasFault {
	ex := &types.CreateSnapshotEx_Task{This: req.This, Name: req.Name, Description: req.Description, Memory: req.Memory}
	if req.Quiesce {
		ex.QuiesceSpec = &types.VirtualMachineGuestQuiesceSpec{}
	}
	return &methods.CreateSnapshot_TaskBody{Res: &types.CreateSnapshot_TaskResponse{Returnval: v.beginSnapshot(ctx, ex, "createSnapshot")}}
}

// CreateSnapshotExTask takes a snapshot.
func (v *labVM) CreateSnapshotExTask(ctx *simulator.Context, req *types.CreateSnapshotEx_Task) soap.HasFault {
	return &methods.CreateSnapshotEx_TaskBody{Res: &types.CreateSnapshotEx_TaskResponse{Returnval: v.beginSnapshot(ctx, req, "createSnapshotEx")}}
}

func (v *labVM) beginSnapshot(ctx *simulator.Context, req *types.CreateSnapshotEx_Task, task string) types.ManagedObjectReference {
	return v.s.startSnapshot(ctx, job{name: task}, v.VirtualMachine, req)
}

// startSnapshot takes a snapshot, if vCenter would.
func (s *sim) startSnapshot(ctx *simulator.Context, j job, vm *simulator.VirtualMachine, req *types.CreateSnapshotEx_Task) types.ManagedObjectReference {
	j.entity = vm.Self
	return s.start(ctx, j, func(ctx *simulator.Context, progress func(int32)) (types.AnyType, types.BaseMethodFault) {
		quiesced, fault := s.maySnapshot(vm, req)
		if fault != nil {
			return nil, fault
		}
		progress(50)
		ref, err := s.takeSnapshot(ctx, vm, req, quiesced, j.age)
		if err != nil {
			return nil, &types.FileFault{File: err.Error()}
		}
		return ref, nil
	})
}

// maySnapshot refuses what vCenter refuses, and tells whether the guest will be quiesced.
func (s *sim) maySnapshot(vm *simulator.VirtualMachine, req *types.CreateSnapshotEx_Task) (bool, types.BaseMethodFault) {
	running := vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
	quiesce := req.QuiesceSpec != nil
	if req.Name == "" {
		return false, &types.InvalidName{Entity: &vm.Self}
	}
	if vm.Config.Template || vm.Config.FtInfo != nil || vm.Runtime.ConnectionState != types.VirtualMachineConnectionStateConnected {
		return false, &types.InvalidState{}
	}
	if c := current(vm); c != nil && len(wayTo(roots(vm), *c)) >= maxSnapshotDepth {
		return false, &types.TooManySnapshotLevels{}
	}
	if quiesce && req.Memory && running {
		return false, &types.InvalidArgument{InvalidProperty: "quiesceSpec"}
	}
	if quiesce {
		if t := req.QuiesceSpec.GetVirtualMachineGuestQuiesceSpec().Timeout; t != 0 && (t < 5 || t > 240) {
			return false, &types.InvalidArgument{InvalidProperty: "quiesceSpec.timeout"}
		}
	}
	if fault := incompatible(vm, running && req.Memory); fault != nil {
		return false, fault
	}
	if !quiesce || !running {
		return false, nil
	}
	if vm.Guest.ToolsRunningStatus != string(types.VirtualMachineToolsRunningStatusGuestToolsRunning) {
		if s.knobs().QuiesceWithoutTools == "ignored" {
			return false, nil
		}
		return false, &types.FilesystemQuiesceFault{}
	}
	return true, nil
}

// incompatible finds devices that forbid a snapshot, or one with memory.
func incompatible(vm *simulator.VirtualMachine, memory bool) (fault types.BaseMethodFault) {
	devices := vm.Config.Hardware.Device
	eachDisk(devices, func(d *types.VirtualDisk, b *backing) {
		if !b.inSnapshots() {
			if memory {
				fault = &types.MemorySnapshotOnIndependentDisk{}
			}
			return
		}
		shared := b.sharing != nil && *b.sharing == string(types.VirtualDiskSharingSharingMultiWriter)
		if c, ok := findDevice(devices, d.ControllerKey).(types.BaseVirtualSCSIController); ok {
			shared = shared || c.GetVirtualSCSIController().SharedBus != types.VirtualSCSISharingNoSharing
		}
		if shared {
			fault = &types.SnapshotIncompatibleDeviceInVm{Fault: types.LocalizedMethodFault{
				Fault: &types.SharedBusControllerNotSupported{}, LocalizedMessage: label(d) + " is shared"}}
		}
	})
	return fault
}

// takeSnapshot freezes the VM's configuration and disks; age makes it look older than it is.
func (s *sim) takeSnapshot(ctx *simulator.Context, vm *simulator.VirtualMachine, req *types.CreateSnapshotEx_Task, quiesced bool, age time.Duration) (types.ManagedObjectReference, error) {
	var none types.ManagedObjectReference
	wasTracked := s.trackedNow(vm)
	s.activate(ctx, vm)
	object := &simulator.VirtualMachineSnapshot{}
	object.Vm = vm.Self
	object.Config = copyConfig(vm.Config)
	points, err := s.freeze(ctx, vm, wasTracked)
	if err != nil {
		return none, err
	}
	object.Config.Hardware.Device = edited(object.Config.Hardware.Device, func(d *types.VirtualDisk, b *backing) bool {
		*b.changeID = points[d.Key]
		return true
	})
	s.reg.Put(object)
	number := s.snapshots.Add(1)
	state := types.VirtualMachinePowerStatePoweredOff
	if req.Memory {
		state = vm.Runtime.PowerState
	}
	s.writeState(vm, number, req.Memory)
	s.grow(ctx, vm, types.VirtualMachineSnapshotTree{
		Snapshot: object.Self, Vm: vm.Self, Name: s.stored(req.Name), Description: req.Description, Id: number, CreateTime: time.Now().Add(-age).UTC(),
		State: state, Quiesced: quiesced, ReplaySupported: types.NewBool(false),
	})
	return object.Self, nil
}

// stored is a snapshot's name as vCenter keeps it.
func (s *sim) stored(name string) string {
	if !s.knobs().EscapeNames {
		return name
	}
	return strings.NewReplacer("%", "%25", "/", "%2f", `\`, "%5c").Replace(name)
}

// trackedNow are the VM's disks whose tracking is active.
func (s *sim) trackedNow(vm *simulator.VirtualMachine) map[*disk]bool {
	out := map[*disk]bool{}
	eachDisk(vm.Config.Hardware.Device, func(d *types.VirtualDisk, b *backing) {
		if owner := s.owner(d, b); owner != nil {
			owner.mu.Lock()
			out[owner] = owner.track.current != nil
			owner.mu.Unlock()
		}
	})
	return out
}

// freezeDisk lets a disk's user go on in a redo file, and returns the change ID of this moment.
func (s *sim) freezeDisk(owner *disk, file string, wasTracked bool) (redo *node, point string, err error) {
	owner.mu.Lock()
	defer owner.mu.Unlock()
	if redo, err = s.disks.child(owner, owner.nodes[file]); err != nil {
		return nil, "", err
	}
	if owner.track.current == nil { // this very stun ended it
		return redo, "", nil
	}
	if wasTracked {
		point = owner.track.point()
	} else if s.knobs().FirstSnapshot == "tracked" {
		point = owner.track.id()
	}
	return redo, point, nil
}

// freeze lets the VM go on in redo files and returns the change IDs of this moment, by device key.
func (s *sim) freeze(ctx *simulator.Context, vm *simulator.VirtualMachine, wasTracked map[*disk]bool) (map[int32]string, error) {
	knobs := s.knobs()
	points := map[int32]string{}
	var failed error
	devices := edited(vm.Config.Hardware.Device, func(d *types.VirtualDisk, b *backing) bool {
		owner := s.owner(d, b)
		if !b.inSnapshots() || owner == nil || failed != nil {
			return false
		}
		redo, point, err := s.freezeDisk(owner, b.file.FileName, wasTracked[owner])
		if err != nil {
			failed = err
			return false
		}
		points[d.Key] = point
		owner.mu.Lock()
		defer owner.mu.Unlock()
		setFiles(d, redo.path, redo.parents())
		*b.changeID = knobs.shown(&owner.track)
		return true
	})
	if failed == nil {
		s.setDevices(ctx, vm, devices)
	}
	return points, failed
}

// grow adds a snapshot under the current one and makes it the current one.
func (s *sim) grow(ctx *simulator.Context, vm *simulator.VirtualMachine, n types.VirtualMachineSnapshotTree) {
	tree := copyTree(roots(vm))
	if c := current(vm); c != nil {
		way := wayTo(tree, *c)
		parent := way[len(way)-1]
		parent.ChildSnapshotList = append(parent.ChildSnapshotList, n)
	} else {
		tree = append(tree, n)
	}
	s.setTree(ctx, vm, tree, &n.Snapshot)
}

// writeState makes the files in which ESXi keeps a snapshot's state and memory.
func (s *sim) writeState(vm *simulator.VirtualMachine, number int32, memory bool) {
	for _, file := range s.stateFiles(vm, number) {
		if memory || path.Ext(file) == ".vmsn" {
			_ = os.WriteFile(file, []byte("state"), 0o600)
			if memory && path.Ext(file) == ".vmem" {
				_ = os.Truncate(file, int64(vm.Config.Hardware.MemoryMB)<<20)
			}
		}
	}
}

func (s *sim) stateFiles(vm *simulator.VirtualMachine, number int32) []string {
	stem := path.Join(s.home(vm), fmt.Sprintf("%s-Snapshot%d", vm.Name, number))
	return []string{stem + ".vmsn", stem + ".vmem"}
}

// copyConfig copies a configuration in depth.
func copyConfig(config *types.VirtualMachineConfigInfo) (out types.VirtualMachineConfigInfo) {
	var encoded bytes.Buffer
	if err := xml.NewEncoder(&encoded).Encode(config); err != nil {
		panic(err)
	}
	decoder := xml.NewDecoder(&encoded)
	decoder.TypeFunc = types.TypeFunc()
	if err := decoder.Decode(&out); err != nil {
		panic(err)
	}
	return out
}
