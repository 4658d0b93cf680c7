// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// labSnapshot answers calls to a snapshot. Its work is done under the VM's lock, so it has
// none of its own.
type labSnapshot struct {
	*simulator.VirtualMachineSnapshot
	s *sim
}

func (*labSnapshot) Lock()   {}
func (*labSnapshot) Unlock() {}

// RemoveSnapshotTask removes a snapshot, and its children if asked.
func (n *labSnapshot) RemoveSnapshotTask(ctx *simulator.Context, req *types.RemoveSnapshot_Task) soap.HasFault {
	return &methods.RemoveSnapshot_TaskBody{Res: &types.RemoveSnapshot_TaskResponse{
		Returnval: n.s.startRemoval(ctx, job{}, n.Vm, n.Self, req.RemoveChildren, req.Consolidate)}}
}

// startRemoval removes a snapshot, and its children if asked.
func (s *sim) startRemoval(ctx *simulator.Context, j job, owner, snapshot types.ManagedObjectReference, children bool, consolidate *bool) types.ManagedObjectReference {
	j.entity, j.name = owner, "removeSnapshot"
	j.partly = func(ctx *simulator.Context, n int) {
		_, gone := without(roots(s.vm(owner)), snapshot, children)
		s.dropLeaves(ctx, s.vm(owner), gone, n)
	}
	return s.start(ctx, j, func(ctx *simulator.Context, progress func(int32)) (types.AnyType, types.BaseMethodFault) {
		vm := s.vm(owner)
		if wayTo(roots(vm), snapshot) == nil {
			return nil, &types.ManagedObjectNotFound{Obj: snapshot}
		}
		progress(50)
		tree, gone := without(copyTree(roots(vm)), snapshot, children)
		return nil, s.drop(ctx, vm, tree, gone, consolidate)
	})
}

// dropLeaves removes so many of the snapshots, the last ones first: what a removal that fails has done by then.
func (s *sim) dropLeaves(ctx *simulator.Context, vm *simulator.VirtualMachine, doomed []types.ManagedObjectReference, n int) {
	for _, ref := range doomed[max(0, len(doomed)-n):] {
		tree, gone := without(copyTree(roots(vm)), ref, false)
		s.drop(ctx, vm, tree, gone, nil)
	}
}

// RemoveAllSnapshotsTask removes every snapshot of the VM.
func (v *labVM) RemoveAllSnapshotsTask(ctx *simulator.Context, req *types.RemoveAllSnapshots_Task) soap.HasFault {
	vm, s := v.VirtualMachine, v.s
	all := func() (refs []types.ManagedObjectReference) {
		for _, snapshot := range s.snapshotObjects(vm) {
			refs = append(refs, snapshot.Self)
		}
		return refs
	}
	j := job{entity: vm.Self, name: "removeAllSnapshots", partly: func(ctx *simulator.Context, n int) { s.dropLeaves(ctx, vm, all(), n) }}
	return &methods.RemoveAllSnapshots_TaskBody{Res: &types.RemoveAllSnapshots_TaskResponse{
		Returnval: s.start(ctx, j, func(ctx *simulator.Context, progress func(int32)) (types.AnyType, types.BaseMethodFault) {
			progress(50)
			return nil, s.drop(ctx, vm, nil, all(), req.Consolidate)
		})}}
}

// drop forgets snapshots, leaving the given tree, and folds their files unless told to wait.
func (s *sim) drop(ctx *simulator.Context, vm *simulator.VirtualMachine, tree snapshotTree, gone []types.ManagedObjectReference, consolidate *bool) types.BaseMethodFault {
	owners := s.owners(ctx, vm)
	now := current(vm)
	if now != nil && wayTo(tree, *now) == nil {
		was := wayTo(roots(vm), *now)
		now = nil
		for _, n := range was { // the nearest that is left
			if wayTo(tree, n.Snapshot) != nil {
				now = &n.Snapshot
			}
		}
	}
	for _, ref := range gone {
		if way := wayTo(roots(vm), ref); way != nil {
			for _, file := range s.stateFiles(vm, way[len(way)-1].Id) {
				_ = os.Remove(file)
			}
		}
		s.reg.Remove(ctx, ref)
	}
	s.setTree(ctx, vm, tree, now)
	s.activate(ctx, vm)
	if (consolidate != nil && !*consolidate) || s.failsConsolidation() {
		if s.leftovers(ctx, vm, owners) {
			s.update(ctx, vm, map[string]any{"runtime.consolidationNeeded": true, "summary.runtime.consolidationNeeded": true})
		}
		return nil
	}
	return s.consolidate(ctx, vm, owners)
}

// failsConsolidation takes one of the failures ordered by the knob.
func (s *sim) failsConsolidation() bool {
	s.knobsMu.Lock()
	defer s.knobsMu.Unlock()
	if s.settings.FailConsolidation == 0 {
		return false
	}
	s.settings.FailConsolidation--
	return true
}

// ConsolidateVMDisksTask folds files that removed snapshots left behind.
func (v *labVM) ConsolidateVMDisksTask(ctx *simulator.Context, req *types.ConsolidateVMDisks_Task) soap.HasFault {
	vm, s := v.VirtualMachine, v.s
	return &methods.ConsolidateVMDisks_TaskBody{Res: &types.ConsolidateVMDisks_TaskResponse{
		Returnval: s.begin(ctx, vm.Self, "consolidateDisks", func(ctx *simulator.Context, _ func(int32)) (types.AnyType, types.BaseMethodFault) {
			return nil, s.consolidate(ctx, vm, s.owners(ctx, vm))
		})}}
}

func (s *sim) consolidate(ctx *simulator.Context, vm *simulator.VirtualMachine, owners []*disk) types.BaseMethodFault {
	for _, owner := range owners {
		if err := s.collapse(ctx, vm, owner); err != nil {
			return &types.FileFault{File: err.Error()}
		}
	}
	s.layOut(ctx, vm)
	if vm.Runtime.ConsolidationNeeded {
		s.update(ctx, vm, map[string]any{"runtime.consolidationNeeded": false, "summary.runtime.consolidationNeeded": false})
	}
	return nil
}

// held are the files in use by the VM (or none) and its snapshots, and by the first class disk if
// the disk is one.
func (s *sim) held(ctx *simulator.Context, vm *simulator.VirtualMachine, owner *disk) map[string]bool {
	held := map[string]bool{}
	if vm != nil {
		s.eachHolder(ctx, vm, func(devices []types.BaseVirtualDevice) {
			eachDisk(devices, func(_ *types.VirtualDisk, b *backing) { held[b.file.FileName] = true })
		})
	}
	if f := owner.fcd.Load(); f != nil {
		for _, file := range f.held() {
			held[file] = true
		}
	}
	return held
}

// leftovers tells whether a disk has files that could be folded.
func (s *sim) leftovers(ctx *simulator.Context, vm *simulator.VirtualMachine, owners []*disk) bool {
	for _, owner := range owners {
		held := s.held(ctx, vm, owner)
		owner.mu.Lock()
		for _, n := range owner.nodes {
			if !held[n.path] && len(owner.children(n)) < 2 {
				owner.mu.Unlock()
				return true
			}
		}
		owner.mu.Unlock()
	}
	return false
}

// collapse folds the files of a disk that nobody holds and tells their users of the new paths.
func (s *sim) collapse(ctx *simulator.Context, vm *simulator.VirtualMachine, owner *disk) error {
	held := s.held(ctx, vm, owner)
	renamed, err := s.foldFiles(owner, held)
	if vm == nil {
		return err
	}
	relink := func(devices []types.BaseVirtualDevice) []types.BaseVirtualDevice {
		return edited(devices, func(d *types.VirtualDisk, b *backing) bool {
			file := b.file.FileName
			if now, moved := renamed[file]; moved {
				file = now
			}
			n := owner.node(file)
			if n == nil {
				return false
			}
			setFiles(d, file, n.parents())
			return true
		})
	}
	s.setDevices(ctx, vm, relink(vm.Config.Hardware.Device))
	for _, snapshot := range s.snapshotObjects(vm) {
		s.update(ctx, snapshot, map[string]any{"config.hardware.device": relink(snapshot.Config.Hardware.Device)})
	}
	return err
}

// foldFiles folds the files of a disk, and tells the first class disk that it may be.
func (s *sim) foldFiles(owner *disk, held map[string]bool) (map[string]string, error) {
	if f := owner.fcd.Load(); f != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		owner.mu.Lock()
		defer owner.mu.Unlock()
		renamed, err := s.disks.collapse(owner, held)
		f.moved(renamed)
		return renamed, err
	}
	owner.mu.Lock()
	defer owner.mu.Unlock()
	return s.disks.collapse(owner, held)
}

// RenameSnapshot changes name and description, each if given.
func (n *labSnapshot) RenameSnapshot(ctx *simulator.Context, req *types.RenameSnapshot) soap.HasFault {
	body := new(methods.RenameSnapshotBody)
	vm := n.s.vm(n.Vm)
	if vm == nil {
		body.Fault_ = refuse(&types.ManagedObjectNotFound{Obj: n.Self}, "")
		return body
	}
	if fault := n.s.renameSnapshot(ctx, vm, n.Self, req.Name, req.Description); fault != nil {
		body.Fault_ = refuse(fault, "")
	} else {
		body.Res = new(types.RenameSnapshotResponse)
	}
	return body
}

// renameSnapshot changes name and description, each if given; the description may be the mark of an empty one.
func (s *sim) renameSnapshot(ctx *simulator.Context, vm *simulator.VirtualMachine, ref types.ManagedObjectReference, name, description string) (fault types.BaseMethodFault) {
	ctx.WithLock(vm, func() {
		tree := copyTree(roots(vm))
		way := wayTo(tree, ref)
		if way == nil {
			fault = &types.ManagedObjectNotFound{Obj: ref}
			return
		}
		entry := way[len(way)-1]
		if name != "" {
			entry.Name = s.stored(name)
		}
		if description != "" {
			entry.Description = strings.TrimSuffix(description, cleared)
		}
		s.setTree(ctx, vm, tree, current(vm))
	})
	return fault
}

// RevertToSnapshotTask brings the VM back to a snapshot.
func (n *labSnapshot) RevertToSnapshotTask(ctx *simulator.Context, req *types.RevertToSnapshot_Task) soap.HasFault {
	s := n.s
	return &methods.RevertToSnapshot_TaskBody{Res: &types.RevertToSnapshot_TaskResponse{
		Returnval: s.begin(ctx, n.Vm, "revertToSnapshot", func(ctx *simulator.Context, progress func(int32)) (types.AnyType, types.BaseMethodFault) {
			progress(50)
			return nil, s.revert(ctx, s.vm(n.Vm), n.VirtualMachineSnapshot, req.Host, req.SuppressPowerOn)
		})}}
}

// RevertToCurrentSnapshotTask brings the VM back to the snapshot it descends from.
func (v *labVM) RevertToCurrentSnapshotTask(ctx *simulator.Context, req *types.RevertToCurrentSnapshot_Task) soap.HasFault {
	body, vm, s := new(methods.RevertToCurrentSnapshot_TaskBody), v.VirtualMachine, v.s
	now := current(vm)
	if now == nil {
		body.Fault_ = refuse(&types.NotFound{}, "the virtual machine has no current snapshot")
		return body
	}
	snapshot := s.reg.Get(*now).(*simulator.VirtualMachineSnapshot)
	body.Res = &types.RevertToCurrentSnapshot_TaskResponse{
		Returnval: s.begin(ctx, vm.Self, "revertToCurrentSnapshot", func(ctx *simulator.Context, progress func(int32)) (types.AnyType, types.BaseMethodFault) {
			return nil, s.revert(ctx, vm, snapshot, req.Host, req.SuppressPowerOn)
		})}
	return body
}

// revert restores configuration, disks and power state of a snapshot. The host is that on which the
// VM runs afterwards; suppress keeps it from running.
func (s *sim) revert(ctx *simulator.Context, vm *simulator.VirtualMachine, snapshot *simulator.VirtualMachineSnapshot, host *types.ManagedObjectReference, suppress *bool) types.BaseMethodFault {
	way := wayTo(roots(vm), snapshot.Self)
	if way == nil {
		return &types.ManagedObjectNotFound{Obj: snapshot.Self}
	}
	if vm.Config.Template || vm.Config.FtInfo != nil || vm.Runtime.ConnectionState != types.VirtualMachineConnectionStateConnected {
		return &types.InvalidState{}
	}
	if host != nil {
		if _, ok := s.reg.Get(*host).(*simulator.HostSystem); !ok {
			return &types.ManagedObjectNotFound{Obj: *host}
		}
	}
	owners := s.owners(ctx, vm)
	var config types.VirtualMachineConfigInfo
	ctx.WithLock(snapshot, func() { config = copyConfig(&snapshot.Config) })
	config.Name, config.ChangeVersion, config.Modified = vm.Config.Name, time.Now().Format(time.RFC3339Nano), time.Now()
	knobs := s.knobs()
	var failed error
	config.Hardware.Device = edited(config.Hardware.Device, func(d *types.VirtualDisk, b *backing) bool {
		owner := s.owner(d, b)
		if owner == nil || !b.inSnapshots() || failed != nil {
			return false
		}
		owner.mu.Lock()
		defer owner.mu.Unlock()
		redo, err := s.disks.child(owner, owner.nodes[b.file.FileName])
		if err != nil {
			failed = err
			return false
		}
		owner.track.back(*b.changeID, knobs.OnRevert == "silent")
		setFiles(d, redo.path, redo.parents())
		*b.changeID = knobs.shown(&owner.track)
		return true
	})
	if failed != nil {
		return &types.FileFault{File: failed.Error()}
	}
	disks := object.VirtualDeviceList(config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil))
	s.update(ctx, vm, map[string]any{"config": config, "summary.config.numVirtualDisks": int32(len(disks))})
	tree := copyTree(roots(vm))
	s.setTree(ctx, vm, tree, &snapshot.Self)
	s.activate(ctx, vm)
	if fault := s.consolidate(ctx, vm, owners); fault != nil {
		return fault
	}
	state := way[len(way)-1].State
	if suppress != nil && *suppress && state == types.VirtualMachinePowerStatePoweredOn {
		state = types.VirtualMachinePowerState(s.knobs().Suppressed)
	}
	if host != nil && state == types.VirtualMachinePowerStatePoweredOn {
		s.move(ctx, vm, *host)
	}
	if state == vm.Runtime.PowerState {
		return nil
	}
	if state == types.VirtualMachinePowerStateSuspended && vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOff {
		// The simulator suspends only what runs.
		if fault := s.power(ctx, vm, types.VirtualMachinePowerStatePoweredOn); fault != nil {
			return fault
		}
	}
	return s.power(ctx, vm, state)
}

// move lets a VM run on another host.
func (s *sim) move(ctx *simulator.Context, vm *simulator.VirtualMachine, to types.ManagedObjectReference) {
	for _, e := range s.reg.All("HostSystem") {
		host := e.(*simulator.HostSystem)
		ctx.WithLock(host, func() {
			rest := slices.DeleteFunc(slices.Clone(host.Vm), func(ref types.ManagedObjectReference) bool { return ref == vm.Self })
			if host.Self == to {
				rest = append(rest, vm.Self)
			}
			s.update(ctx, host, map[string]any{"vm": rest})
		})
	}
	s.update(ctx, vm, map[string]any{"runtime.host": &to, "summary.runtime.host": &to})
}
