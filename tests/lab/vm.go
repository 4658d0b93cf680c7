// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// labVM answers calls to a VM: the simulator's methods with the disks kept in step.
type labVM struct {
	*simulator.VirtualMachine
	s *sim
}

// ReconfigVMTask changes a VM as the simulator does, after the lab's own checks.
func (v *labVM) ReconfigVMTask(ctx *simulator.Context, req *types.ReconfigVM_Task) soap.HasFault {
	vm, s := v.VirtualMachine, v.s
	return &methods.ReconfigVM_TaskBody{Res: &types.ReconfigVM_TaskResponse{
		Returnval: s.begin(ctx, vm.Self, "reconfigVm", func(ctx *simulator.Context, _ func(int32)) (types.AnyType, types.BaseMethodFault) {
			return nil, s.reconfigure(ctx, vm, &req.Spec)
		})}}
}

// reconfigure checks a spec, lets the simulator apply it and brings the disks in line.
func (s *sim) reconfigure(ctx *simulator.Context, vm *simulator.VirtualMachine, spec *types.VirtualMachineConfigSpec) types.BaseMethodFault {
	if spec.ChangeTrackingEnabled != nil && *spec.ChangeTrackingEnabled && !vm.Capability.ChangeTrackingSupported {
		return &types.InvalidVmConfig{Property: "changeTrackingEnabled"}
	}
	if s.takesAway(vm, spec) {
		return &types.InvalidState{}
	}
	p, fault := s.prepare(vm.Config.Hardware.Device, spec)
	if fault != nil {
		return fault
	}
	body := vm.ReconfigVMTask(ctx, &types.ReconfigVM_Task{This: vm.Self, Spec: *spec}).(*methods.ReconfigVM_TaskBody)
	if _, fault := s.inner(ctx, body.Res.Returnval); fault != nil {
		return fault
	}
	s.setDevices(ctx, vm, edited(vm.Config.Hardware.Device, func(d *types.VirtualDisk, _ *backing) bool {
		size, ok := p.sizes[d.Key]
		if ok {
			d.CapacityInBytes, d.CapacityInKB = size, size/1024
		}
		return ok
	}))
	s.applyPolicies(vm, p)
	return s.settle(ctx, vm, p.removed)
}

// settle makes the files of new and grown disks, deletes those of removed ones, and corrects
// what the simulator leaves different from vCenter.
func (s *sim) settle(ctx *simulator.Context, vm *simulator.VirtualMachine, removed []string) types.BaseMethodFault {
	var failed error
	eachDisk(vm.Config.Hardware.Device, func(d *types.VirtualDisk, b *backing) {
		owner, err := s.disks.open(b.file.FileName, *b.uuid, d.CapacityInBytes)
		if err == nil {
			err = owner.grow(b.file.FileName, d.CapacityInBytes)
		}
		if err != nil {
			failed = err
		}
	})
	if failed != nil {
		return &types.FileFault{File: failed.Error()}
	}
	s.setDevices(ctx, vm, withChildren(vm.Config.Hardware.Device))
	for _, file := range removed {
		if owner := s.disks.find(file); owner != nil {
			if f := owner.fcd.Load(); f != nil && !f.keep {
				s.leave(f)
			}
			if err := s.collapse(ctx, vm, owner); err != nil {
				return &types.FileFault{File: err.Error()}
			}
		}
	}
	var version int
	_, _ = fmt.Sscanf(vm.Config.Version, "vmx-%d", &version)
	capability := vm.Capability
	capability.ChangeTrackingSupported = version >= 7
	for _, can := range []*bool{
		&capability.SnapshotOperationsSupported, &capability.MultipleSnapshotsSupported, &capability.SnapshotConfigSupported,
		&capability.PoweredOffSnapshotsSupported, &capability.MemorySnapshotsSupported, &capability.RevertToSnapshotSupported,
		&capability.QuiescedSnapshotsSupported,
	} {
		*can = true
	}
	s.update(ctx, vm, map[string]any{"capability": capability})
	return nil
}

func (s *sim) setDevices(ctx *simulator.Context, vm *simulator.VirtualMachine, devices []types.BaseVirtualDevice) {
	s.update(ctx, vm, map[string]any{"config.hardware.device": s.identified(devices)})
	s.follow(vm)
}

// PowerOnVMTask also takes the new settings of change tracking into effect.
func (v *labVM) PowerOnVMTask(ctx *simulator.Context, req *types.PowerOnVM_Task) soap.HasFault {
	vm, s := v.VirtualMachine, v.s
	return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{
		Returnval: s.begin(ctx, vm.Self, "powerOn", func(ctx *simulator.Context, _ func(int32)) (types.AnyType, types.BaseMethodFault) {
			return nil, s.power(ctx, vm, types.VirtualMachinePowerStatePoweredOn)
		})}}
}

// PowerOffVMTask also stops the guest's tools.
func (v *labVM) PowerOffVMTask(ctx *simulator.Context, req *types.PowerOffVM_Task) soap.HasFault {
	vm, s := v.VirtualMachine, v.s
	return &methods.PowerOffVM_TaskBody{Res: &types.PowerOffVM_TaskResponse{
		Returnval: s.begin(ctx, vm.Self, "powerOff", func(ctx *simulator.Context, _ func(int32)) (types.AnyType, types.BaseMethodFault) {
			return nil, s.power(ctx, vm, types.VirtualMachinePowerStatePoweredOff)
		})}}
}

// power brings a VM into a power state.
func (s *sim) power(ctx *simulator.Context, vm *simulator.VirtualMachine, state types.VirtualMachinePowerState) types.BaseMethodFault {
	var task types.ManagedObjectReference
	switch state {
	case types.VirtualMachinePowerStatePoweredOn:
		if vm.Config.Template {
			return &types.InvalidState{}
		}
		if vm.Runtime.ConnectionState != types.VirtualMachineConnectionStateConnected {
			return &types.InvalidState{}
		}
		task = vm.PowerOnVMTask(ctx, &types.PowerOnVM_Task{This: vm.Self}).(*methods.PowerOnVM_TaskBody).Res.Returnval
	case types.VirtualMachinePowerStatePoweredOff:
		task = vm.PowerOffVMTask(ctx, &types.PowerOffVM_Task{This: vm.Self}).(*methods.PowerOffVM_TaskBody).Res.Returnval
	default:
		task = vm.SuspendVMTask(ctx, &types.SuspendVM_Task{This: vm.Self}).(*methods.SuspendVM_TaskBody).Res.Returnval
	}
	if _, fault := s.inner(ctx, task); fault != nil {
		return fault
	}
	if state == types.VirtualMachinePowerStatePoweredOn {
		s.activate(ctx, vm)
	} else {
		s.setTools(ctx, vm, false)
	}
	return nil
}

// setTools tells whether VMware Tools run in the guest.
func (s *sim) setTools(ctx *simulator.Context, vm *simulator.VirtualMachine, running bool) {
	status, state := types.VirtualMachineToolsStatusToolsNotRunning, types.VirtualMachineToolsRunningStatusGuestToolsNotRunning
	if running {
		status, state = types.VirtualMachineToolsStatusToolsOk, types.VirtualMachineToolsRunningStatusGuestToolsRunning
	} else if vm.Guest.ToolsStatus == types.VirtualMachineToolsStatusToolsNotInstalled {
		return
	}
	s.update(ctx, vm, map[string]any{
		"guest.toolsStatus": status, "guest.toolsRunningStatus": string(state), "guest.toolsVersionStatus2": "guestToolsCurrent",
		"summary.guest.toolsStatus": status, "summary.guest.toolsRunningStatus": string(state)})
}

// DestroyTask deletes the VM with its snapshots and all its files.
func (v *labVM) DestroyTask(ctx *simulator.Context, req *types.Destroy_Task) soap.HasFault {
	vm, s := v.VirtualMachine, v.s
	return &methods.Destroy_TaskBody{Res: &types.Destroy_TaskResponse{
		Returnval: s.begin(ctx, vm.Self, "destroy", func(ctx *simulator.Context, _ func(int32)) (types.AnyType, types.BaseMethodFault) {
			return nil, s.destroy(ctx, vm)
		})}}
}

func (s *sim) destroy(ctx *simulator.Context, vm *simulator.VirtualMachine) types.BaseMethodFault {
	if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
		return &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: vm.Runtime.PowerState}
	}
	snapshots, owners := s.snapshotObjects(vm), s.owners(ctx, vm)
	kept, restore := s.rescue(ctx, vm)
	body := vm.DestroyTask(ctx, &types.Destroy_Task{This: vm.Self}).(*methods.Destroy_TaskBody)
	if _, fault := s.inner(ctx, body.Res.Returnval); fault != nil {
		return fault
	}
	s.homes.Delete(vm.Self.Value)
	for _, snapshot := range snapshots {
		s.reg.Remove(ctx, snapshot.Self)
	}
	for _, owner := range owners {
		if slices.Contains(kept, owner) {
			continue
		}
		if f := owner.fcd.Load(); f != nil {
			s.leave(f)
		}
		s.disks.removeAll(owner)
	}
	if err := restore(); err != nil {
		return &types.FileFault{File: err.Error()}
	}
	return nil
}

// owners are the disks that the VM or one of its snapshots holds.
func (s *sim) owners(ctx *simulator.Context, vm *simulator.VirtualMachine) (out []*disk) {
	seen := map[*disk]bool{}
	s.eachHolder(ctx, vm, func(devices []types.BaseVirtualDevice) {
		eachDisk(devices, func(d *types.VirtualDisk, b *backing) {
			if owner := s.owner(d, b); owner != nil && !seen[owner] {
				seen[owner] = true
				out = append(out, owner)
			}
		})
	})
	return out
}

// tracked tells whether change tracking is wanted for a disk: for the VM and not forbidden for the disk.
func tracked(vm *simulator.VirtualMachine, d *types.VirtualDisk, b *backing) bool {
	if vm.Config.ChangeTrackingEnabled == nil || !*vm.Config.ChangeTrackingEnabled || !b.inSnapshots() {
		return false
	}
	value, set := extra(vm, slot(vm.Config.Hardware.Device, d)+".ctkEnabled")
	return !set || strings.EqualFold(value, "true")
}

// extra looks up a key of the VM's extra configuration.
func extra(vm *simulator.VirtualMachine, key string) (string, bool) {
	for _, o := range vm.Config.ExtraConfig {
		if v := o.GetOptionValue(); strings.EqualFold(v.Key, key) {
			return fmt.Sprint(v.Value), true
		}
	}
	return "", false
}

// activate takes the VM's wish for change tracking into effect, as each stun does.
func (s *sim) activate(ctx *simulator.Context, vm *simulator.VirtualMachine) {
	knobs := s.knobs()
	options := append([]types.BaseOptionValue(nil), vm.Config.ExtraConfig...)
	devices := edited(vm.Config.Hardware.Device, func(d *types.VirtualDisk, b *backing) bool {
		owner := s.owner(d, b)
		if owner == nil {
			return false
		}
		wished := owner.wished()
		owner.mu.Lock()
		defer owner.mu.Unlock()
		switch wanted := wished || tracked(vm, d, b); {
		case wanted && owner.track.current == nil:
			owner.track.on(len(owner.nodes) > 1)
			key := slot(vm.Config.Hardware.Device, d) + ".ctkEnabled"
			if _, set := extra(vm, key); !set {
				options = append(options, &types.OptionValue{Key: key, Value: "TRUE"})
			}
		case !wanted && owner.track.current != nil:
			owner.track.off()
		}
		shown := knobs.shown(&owner.track)
		changed := *b.changeID != shown
		*b.changeID = shown
		return changed
	})
	s.update(ctx, vm, map[string]any{"config.hardware.device": devices, "config.extraConfig": options})
}
