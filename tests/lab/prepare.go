// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// preparation turns a client's device changes into ones that the simulator handles as vCenter
// would: real keys, labels and slots, and no reference to what is not there.
type preparation struct {
	s        *sim
	devices  []types.BaseVirtualDevice // as they will be
	renamed  map[int32]int32           // a client's temporary keys
	removed  []string                  // disk files whose deletion is asked for
	sizes    map[int32]int64           // of edited disks, in bytes: the simulator knows whole KiB only
	home     *string                   // policy of the home, if one is asked for
	policies map[int32]string          // of disks, likewise
}

// prepare checks and completes the device changes of a spec in place.
func (s *sim) prepare(devices []types.BaseVirtualDevice, spec *types.VirtualMachineConfigSpec) (*preparation, types.BaseMethodFault) {
	p := &preparation{s: s, devices: append([]types.BaseVirtualDevice(nil), devices...), renamed: map[int32]int32{}, sizes: map[int32]int64{},
		policies: map[int32]string{}}
	if len(spec.VmProfile) > 0 {
		id, ok := s.policies.profile(spec.VmProfile)
		if !ok {
			return nil, &types.InvalidArgument{InvalidProperty: "vmProfile"}
		}
		p.home = &id
	}
	for i, change := range spec.DeviceChange {
		c := change.GetVirtualDeviceConfigSpec()
		invalid := types.InvalidDeviceSpec{InvalidVmConfig: types.InvalidVmConfig{Property: "configSpec.deviceChange"}, DeviceIndex: int32(i)}
		if c.Device == nil {
			return nil, &invalid
		}
		ok := true
		switch c.Operation {
		case types.VirtualDeviceConfigSpecOperationAdd:
			ok = p.add(c)
		case types.VirtualDeviceConfigSpecOperationRemove:
			ok = p.remove(c)
		case types.VirtualDeviceConfigSpecOperationEdit:
			if !p.edit(c) {
				return nil, &types.InvalidDeviceOperation{InvalidDeviceSpec: invalid,
					BadOp: c.Operation, BadFileOp: c.FileOperation}
			}
		default:
			ok = false
		}
		if ok && len(c.Profile) > 0 {
			ok = p.policy(c)
		}
		if !ok {
			return nil, &invalid
		}
	}
	return p, nil
}

// policy notes which policy a disk shall have; nothing else has one.
func (p *preparation) policy(c *types.VirtualDeviceConfigSpec) bool {
	d, is := c.Device.(*types.VirtualDisk)
	id, ok := p.s.policies.profile(c.Profile)
	if !is || !ok || c.Operation == types.VirtualDeviceConfigSpecOperationRemove {
		return false
	}
	p.policies[d.Key] = id
	return true
}

// add gives a new device its key, label and slot.
func (p *preparation) add(c *types.VirtualDeviceConfigSpec) bool {
	v := c.Device.GetVirtualDevice()
	if key, ok := p.renamed[v.ControllerKey]; ok {
		v.ControllerKey = key
	}
	ok, old := true, v.Key
	if cd, is := c.Device.(*types.VirtualCdrom); is && cd.DeviceInfo == nil {
		cd.DeviceInfo = &types.Description{Label: p.freeLabel("CD/DVD drive")}
	}
	if b, controller, known := busOf(c.Device); known {
		ok = p.addController(b, controller, c.Device)
	} else if nic, is := c.Device.(types.BaseVirtualEthernetCard); is {
		ok = p.addNIC(nic.GetVirtualEthernetCard())
	} else if v.ControllerKey != 0 {
		ok = p.place(v)
	}
	if d, is := c.Device.(*types.VirtualDisk); ok && is {
		ok = p.addDisk(d, c.FileOperation)
	}
	if old != v.Key {
		p.renamed[old] = v.Key
	}
	if findDevice(p.devices, v.Key) == nil {
		p.devices = append(p.devices, c.Device)
	}
	return ok
}

// addController numbers a disk controller.
func (p *preparation) addController(b bus, c *types.VirtualController, device types.BaseVirtualDevice) bool {
	c.Key = b.key + c.BusNumber
	if c.BusNumber < 0 || c.BusNumber >= b.most {
		return false
	}
	if findDevice(p.devices, c.Key) != nil {
		return b == ideBus // every VM has both: the simulator keeps its own
	}
	c.DeviceInfo = &types.Description{Label: fmt.Sprintf("%s %d", b.label, c.BusNumber)}
	c.ControllerKey, c.Device = 100, nil
	if scsi, ok := device.(types.BaseVirtualSCSIController); ok {
		s := scsi.GetVirtualSCSIController()
		s.ScsiCtlrUnitNumber = 7
		if s.SharedBus == "" {
			s.SharedBus = types.VirtualSCSISharingNoSharing
		}
	}
	return true
}

// place finds a device's unit on its controller and numbers it by it.
func (p *preparation) place(v *types.VirtualDevice) bool {
	b, controller, known := busOf(findDevice(p.devices, v.ControllerKey))
	if !known {
		return findDevice(p.devices, v.ControllerKey) != nil
	}
	taken := map[int32]bool{}
	if b == scsiBus {
		taken[7] = true // the controller itself
	}
	for _, d := range p.devices {
		if o := d.GetVirtualDevice(); o.ControllerKey == v.ControllerKey && o.UnitNumber != nil {
			taken[*o.UnitNumber] = true
		}
	}
	if v.UnitNumber == nil {
		for unit := range b.units {
			if !taken[unit] {
				v.UnitNumber = &unit
				break
			}
		}
	}
	if v.UnitNumber == nil || *v.UnitNumber < 0 || *v.UnitNumber >= b.units || taken[*v.UnitNumber] {
		return false
	}
	v.Key = b.deviceKey + controller.BusNumber*b.units + *v.UnitNumber
	return true
}

// addDisk labels a disk and checks its backing.
func (p *preparation) addDisk(d *types.VirtualDisk, operation types.VirtualDeviceConfigSpecFileOperation) bool {
	b := backingOf(d)
	if _, _, onBus := busOf(findDevice(p.devices, d.ControllerKey)); b == nil || !onBus {
		return false
	}
	d.DeviceInfo = &types.Description{Label: p.freeLabel("Hard disk")}
	if *b.mode == "" {
		*b.mode = string(types.VirtualDiskModePersistent)
	}
	if b.sharing != nil && *b.sharing == "" {
		*b.sharing = string(types.VirtualDiskSharingSharingNone)
	}
	if d.CapacityInBytes == 0 {
		d.CapacityInBytes = d.CapacityInKB * 1024
	}
	d.CapacityInKB = d.CapacityInBytes / 1024
	switch operation {
	case types.VirtualDeviceConfigSpecFileOperationCreate:
		if *b.uuid == "" {
			*b.uuid = backingUUID()
		}
		return d.CapacityInBytes > 0 && (b.file.FileName == "" || p.s.disks.host(b.file.FileName) != "" || onlyDatastore(p.s, b.file.FileName))
	case "":
		return p.attach(d, b)
	}
	return false
}

// attach takes over the size and the identity of a disk that is there already.
func (p *preparation) attach(d *types.VirtualDisk, b *backing) bool {
	owner := p.s.disks.find(b.file.FileName)
	if owner == nil {
		return false
	}
	owner.mu.Lock()
	defer owner.mu.Unlock()
	d.CapacityInBytes = owner.nodes[b.file.FileName].capacity
	d.CapacityInKB = d.CapacityInBytes / 1024
	*b.uuid = owner.uuid
	return true
}

// addNIC labels a network adapter and checks that its network exists.
func (p *preparation) addNIC(nic *types.VirtualEthernetCard) bool {
	var number int32
	for findDevice(p.devices, 4000+number) != nil {
		number++
	}
	nic.Key = 4000 + number
	nic.DeviceInfo = &types.Description{Label: p.freeLabel("Network adapter")}
	if nic.ControllerKey == 0 {
		nic.ControllerKey = 100
	}
	if nic.UnitNumber == nil {
		nic.UnitNumber = types.NewInt32(7 + number)
	}
	if nic.MacAddress == "" {
		nic.MacAddress, nic.AddressType = macAddress(), "assigned"
	} else if nic.AddressType == "" {
		nic.AddressType = "manual"
	}
	switch b := nic.Backing.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		if b.DeviceName == "" && b.Network != nil {
			if network, ok := p.s.reg.Get(*b.Network).(*mo.Network); ok {
				b.DeviceName = network.Name
			}
		}
		return p.s.hasNetwork(b.DeviceName)
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		_, ok := p.s.reg.Get(types.ManagedObjectReference{Type: "DistributedVirtualPortgroup", Value: b.Port.PortgroupKey}).(*simulator.DistributedVirtualPortgroup)
		return ok
	case nil:
		return false
	}
	return true
}

func (p *preparation) freeLabel(prefix string) string {
	used := map[string]bool{}
	for _, d := range p.devices {
		used[label(d)] = true
	}
	for n := 1; ; n++ {
		if candidate := fmt.Sprintf("%s %d", prefix, n); !used[candidate] {
			return candidate
		}
	}
}

// remove replaces the client's idea of the device by the device, and keeps the deletion of
// files to ourselves: snapshots may need them.
func (p *preparation) remove(c *types.VirtualDeviceConfigSpec) bool {
	key := c.Device.GetVirtualDevice().Key
	own := findDevice(p.devices, key)
	if own == nil {
		return false
	}
	c.Device = own
	if d, ok := own.(*types.VirtualDisk); ok && c.FileOperation == types.VirtualDeviceConfigSpecFileOperationDestroy {
		if b := backingOf(d); b != nil {
			p.removed = append(p.removed, b.file.FileName)
		}
	}
	c.FileOperation = ""
	var rest []types.BaseVirtualDevice
	for _, d := range p.devices {
		if d != own {
			rest = append(rest, d)
		}
	}
	p.devices = rest
	return true
}

// edit takes over what may change in a disk: size, mode, sharing. Other devices change freely.
func (p *preparation) edit(c *types.VirtualDeviceConfigSpec) bool {
	own := findDevice(p.devices, c.Device.GetVirtualDevice().Key)
	if own == nil {
		return false
	}
	wanted, is := c.Device.(*types.VirtualDisk)
	was, had := own.(*types.VirtualDisk)
	if !is || !had {
		if c.Device.GetVirtualDevice().DeviceInfo == nil {
			c.Device.GetVirtualDevice().DeviceInfo = own.GetVirtualDevice().DeviceInfo
		}
		return is == had
	}
	next := copyDisk(was)
	old, now := backingOf(next), backingOf(wanted)
	if old == nil {
		return false
	}
	size := was.CapacityInBytes
	if wanted.CapacityInBytes != 0 && wanted.CapacityInBytes != size {
		size = wanted.CapacityInBytes
	} else if wanted.CapacityInKB != 0 {
		size = wanted.CapacityInKB * 1024
	}
	owner := p.s.disks.find(old.file.FileName)
	if size < was.CapacityInBytes || (size > was.CapacityInBytes && owner != nil && owner.files() > 1) {
		return false // disks don't shrink, nor grow under a snapshot
	}
	p.sizes[next.Key] = size
	next.CapacityInKB = (size + 1023) / 1024
	next.CapacityInBytes = next.CapacityInKB * 1024
	if now != nil {
		if now.file.FileName != "" && now.file.FileName != old.file.FileName {
			return false
		}
		if *now.mode != "" {
			*old.mode = *now.mode
		}
		if old.sharing != nil && now.sharing != nil && *now.sharing != "" {
			*old.sharing = *now.sharing
		}
	}
	c.Device = next
	return true
}

// onlyDatastore accepts "[ds]" and "[ds] ", where the simulator chooses the file.
func onlyDatastore(s *sim, name string) bool {
	name = strings.TrimSpace(name)
	return strings.HasPrefix(name, "[") && strings.HasSuffix(name, "]") && s.disks.roots[name[1:len(name)-1]] != ""
}

// hasNetwork tells whether the datacenter has a network of that name.
func (s *sim) hasNetwork(name string) bool {
	dc := s.reg.Any("Datacenter").(*simulator.Datacenter)
	return s.reg.FindByName(name, dc.Network) != nil
}
