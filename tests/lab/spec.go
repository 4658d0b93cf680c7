// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// diskSpec describes a new disk.
type diskSpec struct {
	Size       int64  `json:"size"`
	Mode       string `json:"mode"`    // "persistent", "independent_persistent" ...
	Thin       *bool  `json:"thin"`    // default true
	Eager      bool   `json:"eager"`   // thick, zeroed at once
	Sharing    string `json:"sharing"` // "sharingMultiWriter"
	Backing    string `json:"backing"` // "flat_v2", "sesparse", "rdm_physical", "rdm_virtual"
	File       string `json:"file"`    // attach this datastore path instead of making a new disk
	Controller string `json:"controller"`
	Bus        int32  `json:"bus"`
	Unit       *int32 `json:"unit"`
	Datastore  string `json:"datastore"`
	Policy     string `json:"policy"` // storage policy, by name or ID
}

// vmSpec describes a new VM.
type vmSpec struct {
	Name        string            `json:"name"`
	Disks       []diskSpec        `json:"disks"`
	Folder      string            `json:"folder"` // "a/b" below the datacenter's VM folder; made if missing
	Datastore   string            `json:"datastore"`
	Power       string            `json:"power"`
	Tracking    bool              `json:"tracking"` // switched on and active
	Firmware    string            `json:"firmware"`
	NICs        *[]string         `json:"nics"`  // networks; one on the first network if not given
	Tools       string            `json:"tools"` // "running", "notRunning" or "notInstalled"
	Version     string            `json:"version"`
	GuestID     string            `json:"guest_id"`
	Controller  string            `json:"controller"` // of disks that name none
	BusSharing  string            `json:"bus_sharing"`
	ExtraConfig map[string]string `json:"extra_config"`
	Annotation  string            `json:"annotation"`
	CPUs        int32             `json:"cpus"`
	MemoryMB    int64             `json:"memory_mb"`
	Template    bool              `json:"template"`
	Policy      string            `json:"policy"`          // storage policy of the home, by name or ID
	Tolerant    bool              `json:"fault_tolerance"` // the primary of a fault tolerant pair, whose other half is nowhere
}

func (s *sim) createVMVerb(p vmSpec) (any, error) {
	vm, err := s.makeVM(p)
	if err != nil {
		return nil, err
	}
	return s.locked(vm.Self.Value, s.describe)
}

// makeVM creates a VM the way a client does and brings it into the state asked for.
func (s *sim) makeVM(p vmSpec) (*simulator.VirtualMachine, error) {
	dc := s.reg.Any("Datacenter").(*simulator.Datacenter)
	folder, err := s.folder(dc, p.Folder)
	if err != nil {
		return nil, err
	}
	spec, err := s.configSpec(dc, p)
	if err != nil {
		return nil, err
	}
	cluster := s.reg.Any("ClusterComputeResource").(*simulator.ClusterComputeResource)
	ctx := s.context()
	var vm *simulator.VirtualMachine
	var fault types.BaseMethodFault
	ctx.WithLock(folder, func() {
		vm, fault = s.createVM(ctx, folder, &types.CreateVM_Task{This: folder.Self, Config: *spec, Pool: *cluster.ResourcePool})
	})
	if fault != nil {
		return nil, asError(fault)
	}
	_, err = s.locked(vm.Self.Value, func(ctx *simulator.Context, vm *simulator.VirtualMachine) (any, error) {
		return nil, s.bringUp(ctx, vm, p)
	})
	return vm, err
}

// bringUp sets what a specification for CreateVM cannot say.
func (s *sim) bringUp(ctx *simulator.Context, vm *simulator.VirtualMachine, p vmSpec) error {
	if p.Tracking {
		s.activate(ctx, vm)
	}
	if p.Template {
		s.update(ctx, vm, map[string]any{"config.template": true, "summary.config.template": true})
	}
	if p.Tolerant {
		s.update(ctx, vm, map[string]any{"config.ftInfo": &types.FaultToleranceConfigInfo{Role: 1, InstanceUuids: []string{vm.Config.InstanceUuid},
			ConfigPaths: []string{vm.Config.Files.VmPathName}}, "runtime.faultToleranceState": types.VirtualMachineFaultToleranceStateEnabled,
			"summary.runtime.faultToleranceState": types.VirtualMachineFaultToleranceStateEnabled})
	}
	if p.Power == string(types.VirtualMachinePowerStatePoweredOn) {
		if err := asError(s.power(ctx, vm, types.VirtualMachinePowerStatePoweredOn)); err != nil {
			return err
		}
	}
	if p.Tools != "notInstalled" {
		vm.Guest.ToolsStatus = types.VirtualMachineToolsStatusToolsNotRunning
		s.setTools(ctx, vm, p.Tools != "notRunning" && vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn)
	}
	return nil
}

// folder finds or makes a folder of VMs by its path.
func (s *sim) folder(dc *simulator.Datacenter, name string) (*simulator.Folder, error) {
	folder := s.reg.Get(dc.VmFolder).(*simulator.Folder)
	for _, part := range strings.FieldsFunc(name, func(r rune) bool { return r == '/' }) {
		switch next := s.reg.FindByName(part, folder.ChildEntity).(type) {
		case *simulator.Folder:
			folder = next
		case nil:
			ctx := s.context()
			var made *methods.CreateFolderBody
			ctx.WithLock(folder, func() {
				made = folder.CreateFolder(ctx, &types.CreateFolder{This: folder.Self, Name: part}).(*methods.CreateFolderBody)
			})
			folder = s.reg.Get(made.Res.Returnval).(*simulator.Folder)
		default:
			return nil, fmt.Errorf("%s is no folder", part)
		}
	}
	return folder, nil
}

// configSpec writes the specification that CreateVM takes.
func (s *sim) configSpec(dc *simulator.Datacenter, p vmSpec) (*types.VirtualMachineConfigSpec, error) {
	if p.Datastore == "" {
		p.Datastore = s.reg.Get(dc.Datastore[0]).(*simulator.Datastore).Name
	}
	spec := &types.VirtualMachineConfigSpec{
		Name: p.Name, GuestId: p.GuestID, Firmware: p.Firmware, Version: p.Version, Annotation: p.Annotation,
		NumCPUs: p.CPUs, MemoryMB: p.MemoryMB, ChangeTrackingEnabled: types.NewBool(p.Tracking),
		Files: &types.VirtualMachineFileInfo{VmPathName: "[" + p.Datastore + "]"},
	}
	var err error
	if spec.VmProfile, err = s.policies.require(p.Policy); err != nil {
		return nil, err
	}
	if spec.GuestId == "" {
		spec.GuestId = string(types.VirtualMachineGuestOsIdentifierDebian12_64Guest)
	}
	for key, value := range p.ExtraConfig {
		spec.ExtraConfig = append(spec.ExtraConfig, &types.OptionValue{Key: key, Value: value})
	}
	add := func(device types.BaseVirtualDevice, files types.VirtualDeviceConfigSpecFileOperation, profile ...types.BaseVirtualMachineProfileSpec) {
		spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{
			Operation: types.VirtualDeviceConfigSpecOperationAdd, FileOperation: files, Device: device, Profile: profile})
	}
	controllers := map[string]int32{}
	for _, d := range p.Disks {
		if d.Controller == "" {
			d.Controller = p.Controller
		}
		name := fmt.Sprintf("%s%d", d.Controller, d.Bus)
		if controllers[name] == 0 {
			controller, err := newController(d.Controller, d.Bus, p.BusSharing)
			if err != nil {
				return nil, err
			}
			controllers[name] = -100 - int32(len(controllers))
			controller.GetVirtualDevice().Key = controllers[name]
			add(controller, "")
		}
		device, files, err := d.device(controllers[name])
		if err != nil {
			return nil, err
		}
		profile, err := s.policies.require(d.Policy)
		if err != nil {
			return nil, err
		}
		add(device, files, profile...)
	}
	networks := []string{"VM Network"}
	if p.NICs != nil {
		networks = *p.NICs
	}
	for _, network := range networks {
		nic, err := s.nic(dc, network)
		if err != nil {
			return nil, err
		}
		add(nic, "")
	}
	return spec, nil
}

// newController makes a disk controller of a kind, "pvscsi" if empty.
func newController(kind string, number int32, sharing string) (types.BaseVirtualDevice, error) {
	base := types.VirtualController{BusNumber: number}
	scsi := types.VirtualSCSIController{VirtualController: base, SharedBus: types.VirtualSCSISharing(sharing)}
	switch kind {
	case "", "pvscsi":
		return &types.ParaVirtualSCSIController{VirtualSCSIController: scsi}, nil
	case "lsilogic":
		return &types.VirtualLsiLogicController{VirtualSCSIController: scsi}, nil
	case "lsilogicsas":
		return &types.VirtualLsiLogicSASController{VirtualSCSIController: scsi}, nil
	case "sata":
		return &types.VirtualAHCIController{VirtualSATAController: types.VirtualSATAController{VirtualController: base}}, nil
	case "nvme":
		return &types.VirtualNVMEController{VirtualController: base}, nil
	case "ide":
		return &types.VirtualIDEController{VirtualController: base}, nil
	}
	return nil, fmt.Errorf("no controller %q", kind)
}

// device is the disk to add to a controller.
func (d diskSpec) device(controller int32) (*types.VirtualDisk, types.VirtualDeviceConfigSpecFileOperation, error) {
	file := types.VirtualDeviceFileBackingInfo{FileName: d.File}
	if d.File == "" && d.Datastore != "" {
		file.FileName = "[" + d.Datastore + "]"
	}
	thin := d.Thin == nil || *d.Thin
	if d.Mode == "" {
		d.Mode = string(types.VirtualDiskModePersistent)
	}
	out := &types.VirtualDisk{CapacityInBytes: d.Size}
	out.Key, out.ControllerKey, out.UnitNumber = -1, controller, d.Unit
	switch d.Backing {
	case "", "flat_v2":
		out.Backing = &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: file, DiskMode: d.Mode, Sharing: d.Sharing,
			ThinProvisioned: &thin, EagerlyScrub: &d.Eager}
	case "sesparse":
		out.Backing = &types.VirtualDiskSeSparseBackingInfo{VirtualDeviceFileBackingInfo: file, DiskMode: d.Mode}
	case "rdm_physical", "rdm_virtual":
		mode := types.VirtualDiskCompatibilityModePhysicalMode
		if d.Backing == "rdm_virtual" {
			mode = types.VirtualDiskCompatibilityModeVirtualMode
		}
		out.Backing = &types.VirtualDiskRawDiskMappingVer1BackingInfo{VirtualDeviceFileBackingInfo: file, DiskMode: d.Mode, Sharing: d.Sharing,
			CompatibilityMode: string(mode), LunUuid: "02000000006000c2900000000000000000", DeviceName: "vml.0200000000"}
	default:
		return nil, "", fmt.Errorf("no backing %q", d.Backing)
	}
	if d.File != "" {
		return out, "", nil
	}
	return out, types.VirtualDeviceConfigSpecFileOperationCreate, nil
}

// nic is a network adapter on a network of that name.
func (s *sim) nic(dc *simulator.Datacenter, name string) (types.BaseVirtualDevice, error) {
	out := &types.VirtualVmxnet3{}
	out.Key = -1
	switch network := s.reg.FindByName(name, dc.Network).(type) {
	case *mo.Network:
		out.Backing = &types.VirtualEthernetCardNetworkBackingInfo{
			VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: name}, Network: &network.Self}
	case *simulator.DistributedVirtualPortgroup:
		dvs := s.reg.Get(*network.Config.DistributedVirtualSwitch).(*simulator.DistributedVirtualSwitch)
		out.Backing = &types.VirtualEthernetCardDistributedVirtualPortBackingInfo{
			Port: types.DistributedVirtualSwitchPortConnection{PortgroupKey: network.Key, SwitchUuid: dvs.Uuid}}
	default:
		return nil, fmt.Errorf("no network %q", name)
	}
	return out, nil
}

// diskRecord tells a client of the control interface about a disk.
type diskRecord struct {
	Key         int32  `json:"key"`
	Label       string `json:"label"`
	BackingUUID string `json:"backing_uuid"`
	Capacity    int64  `json:"capacity"`
	Path        string `json:"path"`
	ChangeID    string `json:"change_id"`
	Slot        string `json:"slot"`
	FCD         string `json:"fcd_id"` // of the first class disk that it is, or empty
	Policy      string `json:"policy"` // ID of its storage policy, or empty
}

func (s *sim) record(vm *simulator.VirtualMachine, d *types.VirtualDisk, b *backing) diskRecord {
	out := diskRecord{Key: d.Key, Label: label(d), BackingUUID: *b.uuid, Capacity: d.CapacityInBytes, Path: b.file.FileName,
		ChangeID: *b.changeID, Slot: slot(vm.Config.Hardware.Device, d)}
	if d.VDiskId != nil {
		out.FCD = d.VDiskId.Id
	}
	if owner := s.owner(d, b); owner != nil {
		out.Policy = owner.policyID()
	}
	return out
}

// describe tells a client of the control interface about a VM.
func (s *sim) describe(_ *simulator.Context, vm *simulator.VirtualMachine) (any, error) {
	disks := []diskRecord{}
	eachDisk(vm.Config.Hardware.Device, func(d *types.VirtualDisk, b *backing) { disks = append(disks, s.record(vm, d, b)) })
	return map[string]any{
		"moid": vm.Self.Value, "name": vm.Name, "instance_uuid": vm.Config.InstanceUuid, "uuid": vm.Config.Uuid,
		"path": s.inventoryPath(vm), "power": vm.Runtime.PowerState, "host": vm.Runtime.Host.Value, "disks": disks,
		"policy": s.homePolicy(vm.Self.Value),
	}, nil
}

// listVMsVerb lists all VMs, the oldest first.
func (s *sim) listVMsVerb(struct{}) (any, error) {
	out := []map[string]string{}
	for _, e := range s.reg.All("VirtualMachine") {
		if vm, ok := e.(*simulator.VirtualMachine); ok {
			out = append(out, map[string]string{"moid": vm.Self.Value, "name": vm.Name})
		}
	}
	slices.SortFunc(out, func(a, b map[string]string) int {
		return cmp.Or(cmp.Compare(len(a["moid"]), len(b["moid"])), cmp.Compare(a["moid"], b["moid"]))
	})
	return out, nil
}

// inventoryPath is what FindByInventoryPath finds the VM by.
func (s *sim) inventoryPath(vm *simulator.VirtualMachine) string {
	way := vm.Name
	for ref := vm.Parent; ref != nil; {
		e, ok := s.reg.Get(*ref).(mo.Entity)
		if !ok || e.Entity().Parent == nil {
			break // the root folder has no place in the path
		}
		way, ref = path.Join(e.Entity().Name, way), e.Entity().Parent
	}
	return way
}

// snapshotsVerb lists the VM's snapshots, parents first.
func (s *sim) snapshotsVerb(_ *simulator.Context, vm *simulator.VirtualMachine) (any, error) {
	out, now := []map[string]any{}, current(vm)
	walkTree(roots(vm), func(way []*types.VirtualMachineSnapshotTree) {
		n, parent := way[len(way)-1], ""
		if len(way) > 1 {
			parent = way[len(way)-2].Snapshot.Value
		}
		out = append(out, map[string]any{"moid": n.Snapshot.Value, "id": n.Id, "name": n.Name, "description": n.Description,
			"parent": parent, "state": n.State, "quiesced": n.Quiesced, "current": now != nil && n.Snapshot == *now, "created": n.CreateTime})
	})
	return out, nil
}

func (s *sim) addDiskVerb(p struct {
	VM   string   `json:"vm"`
	Disk diskSpec `json:"disk"`
}) (any, error) {
	return s.locked(p.VM, func(ctx *simulator.Context, vm *simulator.VirtualMachine) (any, error) {
		controller, err := s.controllerFor(vm, p.Disk)
		if err != nil {
			return nil, err
		}
		device, files, err := p.Disk.device(controller)
		if err != nil {
			return nil, err
		}
		known := map[int32]bool{}
		eachDisk(vm.Config.Hardware.Device, func(d *types.VirtualDisk, _ *backing) { known[d.Key] = true })
		t := target{ctx: ctx, vm: vm}
		if err := s.deviceVerb(t, types.VirtualDeviceConfigSpecOperationAdd, files, device); err != nil {
			return nil, err
		}
		var added diskRecord
		eachDisk(vm.Config.Hardware.Device, func(d *types.VirtualDisk, b *backing) {
			if !known[d.Key] {
				added = s.record(vm, d, b)
			}
		})
		return added, nil
	})
}

// controllerFor finds the controller for a new disk: the bus named, or the first that has disks' kind.
func (s *sim) controllerFor(vm *simulator.VirtualMachine, d diskSpec) (int32, error) {
	for _, device := range vm.Config.Hardware.Device {
		b, c, known := busOf(device)
		if known && b != ideBus && c.BusNumber == d.Bus {
			return c.Key, nil
		}
	}
	return 0, fmt.Errorf("%s has no controller for the disk", vm.Name)
}
