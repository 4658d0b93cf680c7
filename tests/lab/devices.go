// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/vim25/types"
)

// Devices are never changed in place: answers that hold them may still be on their way to a
// client. What changes is copied first.

// backing is what the kinds of disk backing have in common; fields that a kind lacks are nil.
type backing struct {
	file     *types.VirtualDeviceFileBackingInfo
	mode     *string
	uuid     *string
	changeID *string
	sharing  *string
	raw      *string // compatibility mode of a raw device
}

// backingOf returns a view of a disk's backing, or nil if it holds no bytes that we know of.
func backingOf(d *types.VirtualDisk) *backing {
	switch b := d.Backing.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		return &backing{&b.VirtualDeviceFileBackingInfo, &b.DiskMode, &b.Uuid, &b.ChangeId, &b.Sharing, nil}
	case *types.VirtualDiskSeSparseBackingInfo:
		return &backing{&b.VirtualDeviceFileBackingInfo, &b.DiskMode, &b.Uuid, &b.ChangeId, nil, nil}
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		return &backing{&b.VirtualDeviceFileBackingInfo, &b.DiskMode, &b.Uuid, &b.ChangeId, &b.Sharing, &b.CompatibilityMode}
	}
	return nil
}

// inSnapshots tells whether snapshots hold the disk: neither independent nor a physical raw device.
func (b *backing) inSnapshots() bool {
	return !strings.HasPrefix(*b.mode, "independent") &&
		(b.raw == nil || *b.raw != string(types.VirtualDiskCompatibilityModePhysicalMode))
}

// copyDisk copies a disk and its backing.
func copyDisk(d *types.VirtualDisk) *types.VirtualDisk {
	out := *d
	b := reflect.New(reflect.TypeOf(d.Backing).Elem())
	b.Elem().Set(reflect.ValueOf(d.Backing).Elem())
	out.Backing = b.Interface().(types.BaseVirtualDeviceBackingInfo)
	if info, ok := d.DeviceInfo.(*types.Description); ok {
		description := *info
		out.DeviceInfo = &description
	}
	return &out
}

// setFiles gives a disk's backing a file and the chain of its parents' files.
func setFiles(d *types.VirtualDisk, file string, parents []string) {
	delta := ""
	if len(parents) > 0 {
		delta = string(types.VirtualDiskDeltaDiskFormatSeSparseFormat)
	}
	switch b := d.Backing.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		chain(b, file, parents, func(b *types.VirtualDiskFlatVer2BackingInfo, file string, parent *types.VirtualDiskFlatVer2BackingInfo) {
			b.FileName, b.Parent, b.DeltaDiskFormat = file, parent, delta
		})
	case *types.VirtualDiskSeSparseBackingInfo:
		chain(b, file, parents, func(b *types.VirtualDiskSeSparseBackingInfo, file string, parent *types.VirtualDiskSeSparseBackingInfo) {
			b.FileName, b.Parent, b.DeltaDiskFormat = file, parent, delta
		})
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		chain(b, file, parents, func(b *types.VirtualDiskRawDiskMappingVer1BackingInfo, file string, parent *types.VirtualDiskRawDiskMappingVer1BackingInfo) {
			b.FileName, b.Parent, b.DeltaDiskFormat = file, parent, delta
		})
	}
}

func chain[B any](top *B, file string, parents []string, set func(b *B, file string, parent *B)) {
	var parent *B
	for i := len(parents) - 1; i >= 0; i-- {
		next := *top
		set(&next, parents[i], parent)
		parent = &next
	}
	set(top, file, parent)
}

// eachDisk calls f for every disk that holds bytes.
func eachDisk(devices []types.BaseVirtualDevice, f func(*types.VirtualDisk, *backing)) {
	for _, device := range devices {
		if d, ok := device.(*types.VirtualDisk); ok {
			if b := backingOf(d); b != nil {
				f(d, b)
			}
		}
	}
}

// findDisk returns the disk with a device key.
func findDisk(devices []types.BaseVirtualDevice, key int32) (found *types.VirtualDisk, view *backing) {
	eachDisk(devices, func(d *types.VirtualDisk, b *backing) {
		if d.Key == key {
			found, view = d, b
		}
	})
	return found, view
}

// findDevice returns the device with a key, or nil.
func findDevice(devices []types.BaseVirtualDevice, key int32) types.BaseVirtualDevice {
	for _, d := range devices {
		if d.GetVirtualDevice().Key == key {
			return d
		}
	}
	return nil
}

// edited returns the devices with each disk that f changes replaced by a copy; f returns false
// to leave its copy aside.
func edited(devices []types.BaseVirtualDevice, f func(*types.VirtualDisk, *backing) bool) []types.BaseVirtualDevice {
	out := append([]types.BaseVirtualDevice(nil), devices...)
	for i, device := range out {
		d, ok := device.(*types.VirtualDisk)
		if !ok || backingOf(d) == nil {
			continue
		}
		next := copyDisk(d)
		if f(next, backingOf(next)) {
			out[i] = next
		}
	}
	return out
}

// bus is a kind of controller with vCenter's numbering of what hangs on it.
type bus struct {
	name      string // in slots: "scsi0:1"
	label     string
	key       int32 // of controller 0
	deviceKey int32 // of device 0:0
	units     int32 // device keys per controller, and units
	most      int32 // controllers in a VM
}

var (
	scsiBus = bus{"scsi", "SCSI controller", 1000, 2000, 16, 4}
	sataBus = bus{"sata", "SATA controller", 15000, 16000, 30, 4}
	nvmeBus = bus{"nvme", "NVME controller", 31000, 32000, 64, 4}
	ideBus  = bus{"ide", "IDE", 200, 3000, 2, 2}
)

// busOf tells on which kind of bus a controller's devices hang.
func busOf(device types.BaseVirtualDevice) (bus, *types.VirtualController, bool) {
	controller, ok := device.(types.BaseVirtualController)
	if !ok {
		return bus{}, nil, false
	}
	c := controller.GetVirtualController()
	switch device.(type) {
	case types.BaseVirtualSCSIController:
		return scsiBus, c, true
	case types.BaseVirtualSATAController:
		return sataBus, c, true
	case *types.VirtualNVMEController:
		return nvmeBus, c, true
	case *types.VirtualIDEController:
		return ideBus, c, true
	}
	return bus{}, c, false
}

// slot names a disk's place as vmx files do: "scsi0:1".
func slot(devices []types.BaseVirtualDevice, d *types.VirtualDisk) string {
	b, c, ok := busOf(findDevice(devices, d.ControllerKey))
	if !ok || d.UnitNumber == nil {
		return ""
	}
	return fmt.Sprintf("%s%d:%d", b.name, c.BusNumber, *d.UnitNumber)
}

// withChildren returns the devices with each controller listing what hangs on it.
func withChildren(devices []types.BaseVirtualDevice) []types.BaseVirtualDevice {
	children := map[int32][]int32{}
	for _, d := range devices {
		v := d.GetVirtualDevice()
		if v.ControllerKey != 0 {
			children[v.ControllerKey] = append(children[v.ControllerKey], v.Key)
		}
	}
	out := append([]types.BaseVirtualDevice(nil), devices...)
	for i, d := range out {
		c, ok := d.(types.BaseVirtualController)
		if ok && !reflect.DeepEqual(c.GetVirtualController().Device, children[d.GetVirtualDevice().Key]) {
			next := reflect.New(reflect.TypeOf(d).Elem())
			next.Elem().Set(reflect.ValueOf(d).Elem())
			next.Interface().(types.BaseVirtualController).GetVirtualController().Device = children[d.GetVirtualDevice().Key]
			out[i] = next.Interface().(types.BaseVirtualDevice)
		}
	}
	return out
}

// label returns a device's label.
func label(d types.BaseVirtualDevice) string {
	if info := d.GetVirtualDevice().DeviceInfo; info != nil {
		return info.GetDescription().Label
	}
	return ""
}

// backingUUID is random, in the form that VMFS gives.
func backingUUID() string {
	return "6000C29" + strings.ToLower(uuid.NewString()[7:])
}

// macAddress is random, in the range that vCenter assigns from.
func macAddress() string {
	return fmt.Sprintf("00:50:56:%02x:%02x:%02x", 0x80|rand.IntN(64), rand.IntN(256), rand.IntN(256))
}
