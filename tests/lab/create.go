// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/esx"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const hardwareVersion = "vmx-21"

// labFolder answers calls to a folder.
type labFolder struct {
	*simulator.Folder
	s *sim
}

// CreateVMTask creates a VM from a specification.
func (f *labFolder) CreateVMTask(ctx *simulator.Context, req *types.CreateVM_Task) soap.HasFault {
	folder, s := f.Folder, f.s
	return &methods.CreateVM_TaskBody{Res: &types.CreateVM_TaskResponse{
		Returnval: s.begin(ctx, folder.Self, "createVm", func(ctx *simulator.Context, _ func(int32)) (types.AnyType, types.BaseMethodFault) {
			vm, fault := s.createVM(ctx, folder, req)
			if fault != nil {
				return nil, fault
			}
			return vm.Self, nil
		})}}
}

// createVM checks a specification, lets the simulator create the VM and gives it its disks.
func (s *sim) createVM(ctx *simulator.Context, folder *simulator.Folder, req *types.CreateVM_Task) (*simulator.VirtualMachine, types.BaseMethodFault) {
	spec := &req.Config
	if fault := s.mayCreate(folder, req); fault != nil {
		return nil, fault
	}
	if spec.Version == "" {
		spec.Version = hardwareVersion
	}
	if spec.Uuid == "" {
		spec.Uuid = "42" + uuid.NewString()[2:]
	}
	if spec.InstanceUuid == "" || s.instanceTaken(spec.InstanceUuid) {
		spec.InstanceUuid = "50" + uuid.NewString()[2:]
	}
	p, fault := s.prepare(esx.VirtualDevice, spec)
	if fault != nil {
		return nil, fault
	}
	body := folder.CreateVMTask(ctx, req).(*methods.CreateVM_TaskBody)
	if body.Fault_ != nil {
		return nil, body.Fault_.VimFault().(types.BaseMethodFault)
	}
	result, fault := s.inner(ctx, body.Res.Returnval)
	if fault != nil {
		return nil, fault
	}
	vm := s.vm(result.(types.ManagedObjectReference))
	var problem types.BaseMethodFault
	ctx.WithLock(vm, func() {
		if problem = s.settle(ctx, vm, nil); problem == nil {
			problem = s.writeNVRAM(ctx, vm)
		}
		s.applyPolicies(vm, p)
		vm.RefreshStorageInfo(ctx, nil)
	})
	return vm, problem
}

// mayCreate refuses what the simulator would stumble over.
func (s *sim) mayCreate(folder *simulator.Folder, req *types.CreateVM_Task) types.BaseMethodFault {
	spec := &req.Config
	if spec.Name == "" {
		return &types.InvalidName{Name: spec.Name, Entity: &folder.Self}
	}
	if twin := s.reg.FindByName(spec.Name, folder.ChildEntity); twin != nil {
		return &types.DuplicateName{Name: spec.Name, Object: twin.Reference()}
	}
	if spec.Files == nil || spec.Files.VmPathName == "" {
		return &types.InvalidVmConfig{Property: "configSpec.files.vmPathName"}
	}
	var vmx object.DatastorePath
	if !vmx.FromString(spec.Files.VmPathName) || s.disks.roots[vmx.Datastore] == "" {
		return &types.InvalidDatastorePath{InvalidDatastore: types.InvalidDatastore{Name: vmx.Datastore}, DatastorePath: spec.Files.VmPathName}
	}
	if _, ok := s.reg.Get(req.Pool).(mo.Entity); !ok {
		return &types.ManagedObjectNotFound{Obj: req.Pool}
	}
	if req.Host != nil && s.reg.Get(*req.Host) == nil {
		return &types.ManagedObjectNotFound{Obj: *req.Host}
	}
	return nil
}

func (s *sim) instanceTaken(id string) bool {
	for _, e := range s.reg.All("VirtualMachine") {
		if vm, ok := e.(*simulator.VirtualMachine); ok && vm.Config != nil && strings.EqualFold(vm.Config.InstanceUuid, id) {
			return true
		}
	}
	return false
}

// home is the directory of a VM's files on this machine.
func (s *sim) home(vm *simulator.VirtualMachine) string {
	var p object.DatastorePath
	p.FromString(vm.Config.Files.VmPathName)
	return path.Join(s.disks.roots[p.Datastore], path.Dir(p.Path))
}

// writeNVRAM fills the VM's NVRAM file, of the size that its firmware has, and names it where
// vCenter does.
func (s *sim) writeNVRAM(ctx *simulator.Context, vm *simulator.VirtualMachine) types.BaseMethodFault {
	size := 8684
	if vm.Config.Firmware == string(types.GuestOsDescriptorFirmwareTypeEfi) {
		size = 270840
	}
	name := vm.Name + ".nvram"
	content := bytes.Repeat([]byte(vm.Config.InstanceUuid+"\n"), size/37+1)[:size]
	if err := os.WriteFile(path.Join(s.home(vm), name), content, 0o600); err != nil {
		return &types.FileFault{File: name}
	}
	if _, set := extra(vm, "nvram"); !set {
		options := append([]types.BaseOptionValue(nil), vm.Config.ExtraConfig...)
		options = append(options, &types.OptionValue{Key: "nvram", Value: name})
		s.update(ctx, vm, map[string]any{"config.extraConfig": options})
	}
	return nil
}

// populate adds idle VMs, powered off, each with a disk of 1 GiB. Only the first is really
// created, the others are its copies: that is a hundred times as fast.
func (s *sim) populate(n int) error {
	if n == 0 {
		return nil
	}
	first, err := s.makeVM(vmSpec{Name: "idle0001", Disks: []diskSpec{{Size: 1 << 30}}})
	if err != nil {
		return err
	}
	folder := s.reg.Get(*first.Parent).(*simulator.Folder)
	for i := 2; i <= n; i++ {
		if err := s.copyVM(first, folder, fmt.Sprintf("idle%04d", i)); err != nil {
			return err
		}
	}
	return nil
}

// copyVM adds a VM like another under a new name, with an identity of its own.
func (s *sim) copyVM(like *simulator.VirtualMachine, folder *simulator.Folder, name string) error {
	vm := &simulator.VirtualMachine{VirtualMachine: like.VirtualMachine}
	vm.Self = types.ManagedObjectReference{}
	config := *like.Config
	config.Name, config.Uuid, config.InstanceUuid = name, "42"+uuid.NewString()[2:], "50"+uuid.NewString()[2:]
	move := func(file string) string { return strings.ReplaceAll(file, like.Name, name) }
	config.Files.VmPathName, config.Files.SnapshotDirectory = move(config.Files.VmPathName), move(config.Files.SnapshotDirectory)
	config.Files.LogDirectory, config.Files.SuspendDirectory = move(config.Files.LogDirectory), move(config.Files.SuspendDirectory)
	config.ExtraConfig = []types.BaseOptionValue{&types.OptionValue{Key: "nvram", Value: name + ".nvram"}}
	config.Hardware.Device = edited(config.Hardware.Device, func(_ *types.VirtualDisk, b *backing) bool {
		b.file.FileName, *b.uuid = move(b.file.FileName), backingUUID()
		return true
	})
	vm.Config, vm.Name = &config, name
	vm.Summary.Config.Name, vm.Summary.Config.VmPathName = name, config.Files.VmPathName
	vm.Summary.Config.Uuid, vm.Summary.Config.InstanceUuid = config.Uuid, config.InstanceUuid
	guest, summary, layout := *like.Guest, *like.Summary.Guest, *like.LayoutEx
	layout.File = append([]types.VirtualMachineFileLayoutExFileInfo(nil), layout.File...)
	for i := range layout.File {
		layout.File[i].Name = move(layout.File[i].Name)
	}
	vm.Guest, vm.Summary.Guest, vm.LayoutEx = &guest, &summary, &layout
	s.reg.NewEntity(vm)
	vm.Summary.Vm = &vm.Self
	folder.ChildEntity = append(folder.ChildEntity, vm.Self)
	s.reg.PutEntity(folder, vm)
	s.refer(vm)
	if err := os.MkdirAll(s.home(vm), 0o700); err != nil {
		return err
	}
	if fault := s.writeNVRAM(s.context(), vm); fault != nil {
		return fmt.Errorf("%s: %s", name, faultName(fault))
	}
	return nil
}

// refer adds the VM to the lists of what it uses.
func (s *sim) refer(vm *simulator.VirtualMachine) {
	host := s.reg.Get(*vm.Runtime.Host).(*simulator.HostSystem)
	host.Vm = append(host.Vm, vm.Self)
	pool := s.reg.Get(*vm.ResourcePool).(*simulator.ResourcePool)
	pool.Vm = append(pool.Vm, vm.Self)
	for _, ref := range vm.Datastore {
		datastore := s.reg.Get(ref).(*simulator.Datastore)
		datastore.Vm = append(datastore.Vm, vm.Self)
	}
}
