// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"os"
	"path"
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// oneDevice is a specification that changes one device.
func oneDevice(operation types.VirtualDeviceConfigSpecOperation, files types.VirtualDeviceConfigSpecFileOperation, device types.BaseVirtualDevice) *types.VirtualMachineConfigSpec {
	return &types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: operation, FileOperation: files, Device: device}}}
}

// AttachDiskTask makes a first class disk one of the VM's disks.
func (v *labVM) AttachDiskTask(ctx *simulator.Context, req *types.AttachDisk_Task) soap.HasFault {
	return &methods.AttachDisk_TaskBody{Res: &types.AttachDisk_TaskResponse{
		Returnval: v.s.beginAttach(ctx, v.Self, req.DiskId, &req.Datastore, req.ControllerKey, req.UnitNumber)}}
}

// DetachDiskTask takes a first class disk off the VM.
func (v *labVM) DetachDiskTask(ctx *simulator.Context, req *types.DetachDisk_Task) soap.HasFault {
	vm, s := v.VirtualMachine, v.s
	return &methods.DetachDisk_TaskBody{Res: &types.DetachDisk_TaskResponse{
		Returnval: s.start(ctx, job{entity: vm.Self, name: "detachDisk", disk: req.DiskId.Id}, func(ctx *simulator.Context, _ func(int32)) (types.AnyType, types.BaseMethodFault) {
			return nil, s.detach(ctx, vm, req.DiskId)
		})}}
}

// beginAttach starts the task that attaches a first class disk to a VM.
func (s *sim) beginAttach(ctx *simulator.Context, to types.ManagedObjectReference, id types.ID, datastore *types.ManagedObjectReference, controller int32, unit *int32) types.ManagedObjectReference {
	return s.start(ctx, job{entity: to, name: "attachDisk", disk: id.Id}, func(ctx *simulator.Context, _ func(int32)) (types.AnyType, types.BaseMethodFault) {
		f, fault := s.findFCD(id, datastore)
		if fault != nil {
			return nil, fault
		}
		return nil, s.attach(ctx, s.vm(to), f, controller, unit)
	})
}

// attach adds the device, under the VM's lock.
func (s *sim) attach(ctx *simulator.Context, vm *simulator.VirtualMachine, f *fcd, controller int32, unit *int32) types.BaseMethodFault {
	if s.vmOf(f) != nil {
		return &types.InvalidState{}
	}
	if controller == 0 {
		key, fault := onlyController(vm)
		if fault != nil {
			return fault
		}
		controller = key
	} else if _, _, known := busOf(findDevice(vm.Config.Hardware.Device, controller)); !known {
		return &types.InvalidController{InvalidDeviceSpec: types.InvalidDeviceSpec{InvalidVmConfig: types.InvalidVmConfig{Property: "controllerKey"}},
			ControllerKey: controller}
	}
	d := &types.VirtualDisk{VDiskId: &f.id}
	d.Key, d.ControllerKey, d.UnitNumber = -1, controller, unit
	d.Backing = &types.VirtualDiskFlatVer2BackingInfo{
		VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: f.file},
		DiskMode:                     string(types.VirtualDiskModePersistent), ThinProvisioned: types.NewBool(f.provisioning == "thin"),
		EagerlyScrub: types.NewBool(f.provisioning == "eagerZeroedThick"),
	}
	if fault := s.reconfigure(ctx, vm, oneDevice(types.VirtualDeviceConfigSpecOperationAdd, "", d)); fault != nil {
		return fault
	}
	s.showFiles(ctx, vm, f.key, f.disk.node(f.file))
	return nil
}

// onlyController is the one controller that a disk goes to when none is named.
func onlyController(vm *simulator.VirtualMachine) (int32, types.BaseMethodFault) {
	var keys []int32
	for _, device := range vm.Config.Hardware.Device {
		if b, c, known := busOf(device); known && (b == scsiBus || b == sataBus) {
			keys = append(keys, c.Key)
		}
	}
	switch len(keys) {
	case 0:
		return 0, &types.MissingController{InvalidDeviceSpec: types.InvalidDeviceSpec{InvalidVmConfig: types.InvalidVmConfig{Property: "controllerKey"}}}
	case 1:
		return keys[0], nil
	}
	return 0, &types.InvalidArgument{InvalidProperty: "controllerKey"}
}

// detach removes the device, under the VM's lock; the first class disk stays.
func (s *sim) detach(ctx *simulator.Context, vm *simulator.VirtualMachine, id types.ID) types.BaseMethodFault {
	f, fault := s.findFCD(id, nil)
	if fault != nil {
		return fault
	}
	f.mu.Lock()
	here, key := f.vm != nil && *f.vm == vm.Self, f.key
	f.mu.Unlock()
	if !here {
		return &types.NotFound{}
	}
	d, _ := findDisk(vm.Config.Hardware.Device, key)
	return s.reconfigure(ctx, vm, oneDevice(types.VirtualDeviceConfigSpecOperationRemove, "", d))
}

// takesAway tells whether a change removes a first class disk while snapshots of the VM hold it.
func (s *sim) takesAway(vm *simulator.VirtualMachine, spec *types.VirtualMachineConfigSpec) bool {
	return len(roots(vm)) > 0 && slices.ContainsFunc(spec.DeviceChange, func(change types.BaseVirtualDeviceConfigSpec) bool {
		c := change.GetVirtualDeviceConfigSpec()
		if c.Operation != types.VirtualDeviceConfigSpecOperationRemove || c.Device == nil {
			return false
		}
		d, _ := findDisk(vm.Config.Hardware.Device, c.Device.GetVirtualDevice().Key)
		return d != nil && d.VDiskId != nil
	})
}

// identified returns the devices with each disk showing the first class disk that it is, if any.
func (s *sim) identified(devices []types.BaseVirtualDevice) []types.BaseVirtualDevice {
	return edited(devices, func(d *types.VirtualDisk, b *backing) bool {
		var id *types.ID
		if owner := s.disks.find(b.file.FileName); owner != nil && owner.fcd.Load() != nil {
			id = &owner.fcd.Load().id
		}
		changed := d.VDiskId != id
		d.VDiskId = id
		return changed
	})
}

// follow keeps the first class disks in step with the VM that has, or had, them.
func (s *sim) follow(vm *simulator.VirtualMachine) {
	has := map[*fcd]bool{}
	eachDisk(vm.Config.Hardware.Device, func(d *types.VirtualDisk, b *backing) {
		owner := s.disks.find(b.file.FileName)
		if owner == nil || owner.fcd.Load() == nil {
			return
		}
		f := owner.fcd.Load()
		has[f] = true
		f.mu.Lock()
		defer f.mu.Unlock()
		f.vm, f.key, f.file = &vm.Self, d.Key, b.file.FileName
	})
	for _, f := range s.fcds.all(nil) {
		f.mu.Lock()
		if !has[f] && f.vm != nil && *f.vm == vm.Self {
			f.vm, f.key = nil, 0
			f.retrack()
		}
		f.mu.Unlock()
	}
}

// attached are the first class disks that a VM has.
func (s *sim) attached(vm *simulator.VirtualMachine) (out []*fcd) {
	eachDisk(vm.Config.Hardware.Device, func(_ *types.VirtualDisk, b *backing) {
		if owner := s.disks.find(b.file.FileName); owner != nil && owner.fcd.Load() != nil {
			out = append(out, owner.fcd.Load())
		}
	})
	return out
}

// rescue takes the first class disks that are to be kept off a VM that is about to be deleted,
// and returns what brings their files back afterwards: those of a registered disk lie among the VM's.
func (s *sim) rescue(ctx *simulator.Context, vm *simulator.VirtualMachine) (kept []*disk, restore func() error) {
	var moves [][2]string
	spec := &types.VirtualMachineConfigSpec{}
	for _, f := range s.attached(vm) {
		if !f.keep {
			continue
		}
		kept = append(kept, f.disk)
		d, _ := findDisk(vm.Config.Hardware.Device, f.key)
		spec.DeviceChange = append(spec.DeviceChange, oneDevice(types.VirtualDeviceConfigSpecOperationRemove, "", d).DeviceChange...)
		for _, n := range f.disk.nodes {
			for _, file := range []string{n.flat, s.disks.descriptor(n)} {
				aside := path.Join(s.root, "kept-"+path.Base(file))
				if os.Rename(file, aside) == nil {
					moves = append(moves, [2]string{aside, file})
				}
			}
		}
	}
	if len(kept) > 0 {
		devices, _ := s.prepare(vm.Config.Hardware.Device, spec)
		s.setDevices(ctx, vm, devices.devices)
	}
	return kept, func() error {
		for _, move := range moves {
			if err := os.MkdirAll(path.Dir(move[1]), 0o700); err != nil {
				return err
			}
			if err := os.Rename(move[0], move[1]); err != nil {
				return err
			}
		}
		for _, owner := range kept {
			if err := s.collapse(ctx, nil, owner); err != nil {
				return err
			}
		}
		return nil
	}
}
