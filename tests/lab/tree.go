// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

type snapshotTree = []types.VirtualMachineSnapshotTree

// copyTree copies a snapshot tree, so that the old one stays as it was answered.
func copyTree(tree snapshotTree) snapshotTree {
	out := append(snapshotTree(nil), tree...)
	for i := range out {
		out[i].ChildSnapshotList = copyTree(out[i].ChildSnapshotList)
	}
	return out
}

// walkTree calls f for every snapshot, parents first; f gets the path from the root, itself last.
func walkTree(tree snapshotTree, f func(way []*types.VirtualMachineSnapshotTree)) {
	var walk func(snapshotTree, []*types.VirtualMachineSnapshotTree)
	walk = func(tree snapshotTree, way []*types.VirtualMachineSnapshotTree) {
		for i := range tree {
			here := append(way[:len(way):len(way)], &tree[i])
			f(here)
			walk(tree[i].ChildSnapshotList, here)
		}
	}
	walk(tree, nil)
}

// wayTo is the path from the root to a snapshot, or nil.
func wayTo(tree snapshotTree, ref types.ManagedObjectReference) (found []*types.VirtualMachineSnapshotTree) {
	walkTree(tree, func(way []*types.VirtualMachineSnapshotTree) {
		if way[len(way)-1].Snapshot == ref {
			found = way
		}
	})
	return found
}

// without returns the tree without a snapshot, and those removed; its children move up unless
// they go too.
func without(tree snapshotTree, ref types.ManagedObjectReference, children bool) (snapshotTree, []types.ManagedObjectReference) {
	var out snapshotTree
	var gone []types.ManagedObjectReference
	for _, n := range tree {
		if n.Snapshot != ref {
			kids, lost := without(n.ChildSnapshotList, ref, children)
			n.ChildSnapshotList = kids
			gone = append(gone, lost...)
			out = append(out, n)
			continue
		}
		gone = append(gone, ref)
		if !children {
			out = append(out, n.ChildSnapshotList...)
			continue
		}
		walkTree(n.ChildSnapshotList, func(way []*types.VirtualMachineSnapshotTree) {
			gone = append(gone, way[len(way)-1].Snapshot)
		})
	}
	return out, gone
}

// roots of the VM's snapshots.
func roots(vm *simulator.VirtualMachine) snapshotTree {
	if vm.Snapshot == nil {
		return nil
	}
	return vm.Snapshot.RootSnapshotList
}

// current is the snapshot that the VM's state descends from, or nil.
func current(vm *simulator.VirtualMachine) *types.ManagedObjectReference {
	if vm.Snapshot == nil {
		return nil
	}
	return vm.Snapshot.CurrentSnapshot
}

// setTree gives the VM a snapshot tree and each snapshot object its children.
func (s *sim) setTree(ctx *simulator.Context, vm *simulator.VirtualMachine, tree snapshotTree, now *types.ManagedObjectReference) {
	var info any
	if len(tree) > 0 {
		info = types.VirtualMachineSnapshotInfo{CurrentSnapshot: now, RootSnapshotList: tree}
	}
	references := func(tree snapshotTree) []types.ManagedObjectReference {
		var out []types.ManagedObjectReference
		for _, n := range tree {
			out = append(out, n.Snapshot)
		}
		return out
	}
	s.update(ctx, vm, map[string]any{"snapshot": info, "rootSnapshot": references(tree)})
	walkTree(tree, func(way []*types.VirtualMachineSnapshotTree) {
		n := way[len(way)-1]
		if object, ok := s.reg.Get(n.Snapshot).(*simulator.VirtualMachineSnapshot); ok {
			s.update(ctx, object, map[string]any{"childSnapshot": references(n.ChildSnapshotList)})
		}
	})
	s.layOut(ctx, vm)
}

// snapshotObjects are the VM's snapshots, parents first.
func (s *sim) snapshotObjects(vm *simulator.VirtualMachine) (out []*simulator.VirtualMachineSnapshot) {
	walkTree(roots(vm), func(way []*types.VirtualMachineSnapshotTree) {
		if object, ok := s.reg.Get(way[len(way)-1].Snapshot).(*simulator.VirtualMachineSnapshot); ok {
			out = append(out, object)
		}
	})
	return out
}

// eachHolder calls f with the devices of the VM and of each of its snapshots.
func (s *sim) eachHolder(ctx *simulator.Context, vm *simulator.VirtualMachine, f func([]types.BaseVirtualDevice)) {
	ctx.WithLock(vm, func() { f(vm.Config.Hardware.Device) })
	for _, snapshot := range s.snapshotObjects(vm) {
		ctx.WithLock(snapshot, func() { f(snapshot.Config.Hardware.Device) })
	}
}
