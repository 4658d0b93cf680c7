// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// used runs f under the lock of the VM that a first class disk is attached to, nil if it is to none.
func (s *sim) used(ctx *simulator.Context, d *fcd, f func(vm *simulator.VirtualMachine) types.BaseMethodFault) (fault types.BaseMethodFault) {
	vm := s.vmOf(d)
	if vm == nil {
		return f(nil)
	}
	ctx.WithLock(vm, func() { fault = f(s.vmOf(d)) }) // it may have been detached meanwhile
	return fault
}

// extendFCD makes a first class disk larger.
func (s *sim) extendFCD(ctx *simulator.Context, f *fcd, megabytes int64) types.BaseMethodFault {
	size := megabytes * mebibyte
	return s.used(ctx, f, func(vm *simulator.VirtualMachine) types.BaseMethodFault {
		had := f.disk.node(f.file).capacity
		switch {
		case size < had:
			return &types.InvalidArgument{InvalidProperty: "newCapacityInMB"}
		case size == had:
			return nil
		case f.disk.files() > 1: // snapshots keep the size
			return &types.InvalidState{}
		case vm != nil:
			d, _ := findDisk(vm.Config.Hardware.Device, f.key)
			next := copyDisk(d)
			next.CapacityInBytes, next.CapacityInKB = size, size/1024
			return s.reconfigure(ctx, vm, oneDevice(types.VirtualDeviceConfigSpecOperationEdit, "", next))
		}
		if err := f.disk.grow(f.file, size); err != nil {
			return &types.FileFault{File: f.file}
		}
		return nil
	})
}

// deleteFCD deletes a first class disk with its snapshots, if nobody uses it.
func (s *sim) deleteFCD(f *fcd) types.BaseMethodFault {
	if s.vmOf(f) != nil || len(f.consumers) > 0 {
		return &types.InvalidState{}
	}
	s.leave(f)
	s.disks.removeAll(f.disk)
	return nil
}

// setFlags sets or clears control flags. Tracking begins at once, or with the next stun of the VM.
func (s *sim) setFlags(ctx *simulator.Context, f *fcd, flags []string, value bool) types.BaseMethodFault {
	for _, flag := range flags {
		if !slices.Contains(types.VslmVStorageObjectControlFlag("").Strings(), flag) {
			return &types.InvalidArgument{InvalidProperty: "controlFlags"}
		}
	}
	return s.used(ctx, f, func(vm *simulator.VirtualMachine) types.BaseMethodFault {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, flag := range flags {
			switch types.VslmVStorageObjectControlFlag(flag) {
			case types.VslmVStorageObjectControlFlagKeepAfterDeleteVm:
				f.keep = value
			case types.VslmVStorageObjectControlFlagDisableRelocation:
				f.pinned = value
			case types.VslmVStorageObjectControlFlagEnableChangedBlockTracking:
				f.tracked = value
			}
		}
		if vm == nil {
			f.retrack()
		}
		return nil
	})
}

// retrack switches change tracking as the flag says, of a disk that no VM uses.
func (f *fcd) retrack() {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.tracked && f.disk.track.current == nil {
		f.disk.track.on(len(f.disk.nodes) > 1)
	} else if !f.tracked {
		f.disk.track.off()
	}
}

// setPolicy gives a first class disk a storage policy; none leaves it as it is.
func (s *sim) setPolicy(f *fcd, profiles []types.BaseVirtualMachineProfileSpec) types.BaseMethodFault {
	for _, profile := range profiles {
		defined, ok := profile.(*types.VirtualMachineDefinedProfileSpec)
		if !ok {
			continue
		}
		id, known := s.policies.id(defined.ProfileId)
		if !known {
			return &types.InvalidArgument{InvalidProperty: "profile"}
		}
		f.mu.Lock()
		f.policy = id
		f.mu.Unlock()
	}
	return nil
}

// extentLine is how a descriptor tells the size of a disk, in sectors.
var extentLine = regexp.MustCompile(`(?m)^RW (\d+) `)

// registerFCD makes a first class disk of a virtual disk, named by the URL of its file.
func (s *sim) registerFCD(ctx *simulator.Context, address, name string) (*fcd, types.BaseMethodFault) {
	u, err := url.Parse(address)
	if err != nil || !strings.HasPrefix(u.Path, "/folder/") || path.Ext(u.Path) != ".vmdk" || u.Query().Get("dsName") == "" {
		return nil, &types.InvalidArgument{InvalidProperty: "path"}
	}
	datastore, ok := s.reg.FindByName(u.Query().Get("dsName"), s.reg.Any("Datacenter").(*simulator.Datacenter).Datastore).(*simulator.Datastore)
	if !ok {
		return nil, &types.InvalidDatastore{Name: u.Query().Get("dsName")}
	}
	file := "[" + datastore.Name + "] " + strings.TrimPrefix(u.Path, "/folder/")
	disk := s.foundDisk(file)
	if disk == nil {
		return nil, &types.FileNotFound{FileFault: types.FileFault{File: file}}
	}
	if known := disk.fcd.Load(); known != nil {
		return nil, &types.AlreadyExists{Name: known.id.Id}
	}
	if name == "" {
		name = strings.TrimSuffix(path.Base(u.Path), ".vmdk")
	}
	f := &fcd{id: types.ID{Id: uuid.NewString()}, name: name, datastore: datastore.Self, disk: disk, file: file, keep: true,
		provisioning: string(types.BaseConfigInfoDiskFileBackingInfoProvisioningTypeThin)}
	s.enter(f)
	for _, e := range s.reg.All("VirtualMachine") { // who has it tells so
		if vm, ok := e.(*simulator.VirtualMachine); ok {
			ctx.WithLock(vm, func() {
				eachDisk(vm.Config.Hardware.Device, func(_ *types.VirtualDisk, b *backing) {
					if s.disks.find(b.file.FileName) == disk {
						s.setDevices(ctx, vm, vm.Config.Hardware.Device)
					}
				})
			})
		}
	}
	return f, nil
}

// foundDisk is the disk of a datastore path; one that somebody else put there is measured.
func (s *sim) foundDisk(file string) *disk {
	if known := s.disks.find(file); known != nil {
		return known
	}
	flat := s.disks.host(file)
	descriptor, err := os.ReadFile(s.disks.descriptor(&node{flat: flat}))
	if err != nil {
		return nil
	}
	var size int64
	if info, err := os.Stat(flat); err == nil {
		size = info.Size()
	}
	if told := extentLine.FindSubmatch(bytes.TrimSpace(descriptor)); size == 0 && told != nil {
		sectors, _ := strconv.ParseInt(string(told[1]), 10, 64)
		size = sectors * 512
	}
	if size == 0 {
		return nil
	}
	found, err := s.disks.open(file, backingUUID(), size)
	if err != nil {
		return nil
	}
	return found
}

// wished tells whether the disk is a first class disk whose changes are to be tracked.
func (k *disk) wished() bool {
	f := k.fcd.Load()
	if f == nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tracked
}
