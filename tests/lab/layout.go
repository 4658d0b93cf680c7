// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// noMemory is the memory key of a snapshot without memory.
const noMemory = -1

// RefreshStorageInfo measures the VM's files. Until then vCenter tells the sizes of last time.
func (v *labVM) RefreshStorageInfo(ctx *simulator.Context, req *types.RefreshStorageInfo) soap.HasFault {
	for _, owner := range v.s.owners(ctx, v.VirtualMachine) {
		owner.measure()
	}
	v.s.layOut(ctx, v.VirtualMachine)
	return &methods.RefreshStorageInfoBody{Res: new(types.RefreshStorageInfoResponse)}
}

// layOut tells in the VM's layoutEx which files the disks and the snapshots have.
func (s *sim) layOut(ctx *simulator.Context, vm *simulator.VirtualMachine) {
	l := layout{keys: map[string]int32{}}
	for _, file := range vm.LayoutEx.File {
		if path.Ext(file.Name) != ".vmdk" && !strings.Contains(file.Name, "-Snapshot") {
			l.add(file.Name, file.Type, file.Size)
		}
	}
	l.Disk = s.chains(&l, vm.Config.Hardware.Device)
	walkTree(roots(vm), func(way []*types.VirtualMachineSnapshotTree) {
		n := way[len(way)-1]
		object, ok := s.reg.Get(n.Snapshot).(*simulator.VirtualMachineSnapshot)
		if !ok {
			return
		}
		snapshot := types.VirtualMachineFileLayoutExSnapshotLayout{Key: n.Snapshot, MemoryKey: noMemory}
		files := s.stateFiles(vm, n.Id)
		snapshot.DataKey = l.state(vm, files[0], "snapshotData")
		if n.State == types.VirtualMachinePowerStatePoweredOn {
			snapshot.MemoryKey = l.state(vm, files[1], "snapshotMemory")
		}
		snapshot.Disk = s.chains(&l, object.Config.Hardware.Device)
		l.Snapshot = append(l.Snapshot, snapshot)
	})
	l.Timestamp = time.Now().UTC()
	s.update(ctx, vm, map[string]any{"layoutEx": l.VirtualMachineFileLayoutEx})
}

// layout is a VM's layoutEx in the making; keys are those of the files by name.
type layout struct {
	types.VirtualMachineFileLayoutEx
	keys map[string]int32
}

// add lists a file, once, and returns its key.
func (l *layout) add(name, kind string, size int64) int32 {
	key, known := l.keys[name]
	if !known {
		key = int32(len(l.File))
		l.keys[name] = key
		l.File = append(l.File, types.VirtualMachineFileLayoutExFileInfo{
			Key: key, Name: name, Type: kind, Size: size, UniqueSize: size, Accessible: types.NewBool(true)})
	}
	return key
}

func (l *layout) state(vm *simulator.VirtualMachine, file, kind string) int32 {
	size := int64(0)
	if info, err := os.Stat(file); err == nil {
		size = info.Size()
	}
	return l.add(path.Dir(vm.Config.Files.VmPathName)+"/"+path.Base(file), kind, size)
}

// chains are the files of each disk, the oldest first.
func (s *sim) chains(l *layout, devices []types.BaseVirtualDevice) (out []types.VirtualMachineFileLayoutExDiskLayout) {
	eachDisk(devices, func(d *types.VirtualDisk, b *backing) {
		owner := s.owner(d, b)
		if owner == nil {
			return
		}
		owner.mu.Lock()
		defer owner.mu.Unlock()
		disk := types.VirtualMachineFileLayoutExDiskLayout{Key: d.Key}
		for n := owner.nodes[b.file.FileName]; n != nil; n = n.parent {
			ending := "-flat.vmdk"
			if n.parent != nil {
				ending = "-delta.vmdk"
			}
			unit := types.VirtualMachineFileLayoutExDiskUnit{FileKey: []int32{
				l.add(n.path, "diskDescriptor", 512), l.add(strings.TrimSuffix(n.path, ".vmdk")+ending, "diskExtent", n.size)}}
			disk.Chain = append([]types.VirtualMachineFileLayoutExDiskUnit{unit}, disk.Chain...)
		}
		out = append(out, disk)
	})
	return out
}

// measure finds how much of each file is its own.
func (k *disk) measure() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, n := range k.nodes {
		n.size = n.own()
	}
}

// own are the bytes that differ from what is below, in blocks; all that is allocated of a file that has nothing below.
func (n *node) own() (bytesOwned int64) {
	const block = 1 << 16
	mine, err := os.Open(n.flat)
	if err != nil {
		return 0
	}
	defer mine.Close()
	if n.parent == nil {
		has, _ := allocated(mine, n.capacity)
		for _, e := range has {
			bytesOwned += e.length
		}
		return bytesOwned
	}
	below, err := os.Open(n.parent.flat)
	if err != nil {
		return 0
	}
	defer below.Close()
	if a, b := stat(mine), stat(below); a != nil && b != nil && os.SameFile(a, b) {
		return 0
	}
	a, b := make([]byte, block), make([]byte, block)
	for {
		i, err := io.ReadFull(mine, a)
		j, _ := io.ReadFull(below, b)
		if !bytes.Equal(a[:i], b[:j]) {
			bytesOwned += block
		}
		if err != nil {
			return bytesOwned
		}
	}
}

func stat(f *os.File) os.FileInfo {
	info, err := f.Stat()
	if err != nil {
		return nil
	}
	return info
}
