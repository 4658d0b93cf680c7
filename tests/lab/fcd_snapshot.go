// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// snapshot finds one of a first class disk's snapshots.
func (f *fcd) snapshot(id types.ID) (*fcdSnapshot, types.BaseMethodFault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.snapshots, func(n *fcdSnapshot) bool { return n.id == id })
	if i < 0 {
		return nil, &types.NotFound{}
	}
	return f.snapshots[i], nil
}

// in runs use with the file of one of a first class disk's snapshots and its change ID, or with the
// file of now for nil. The file stays in its place meanwhile.
func (f *fcd) in(snapshot *types.ID, use func(file, changeID string)) types.BaseMethodFault {
	f.mu.Lock()
	defer f.mu.Unlock()
	if snapshot == nil {
		use(f.file, present)
		return nil
	}
	i := slices.IndexFunc(f.snapshots, func(n *fcdSnapshot) bool { return n.id == *snapshot })
	if i < 0 {
		return &types.NotFound{}
	}
	use(f.snapshots[i].file, f.snapshots[i].changeID)
	return nil
}

// snapshotFCD freezes a first class disk: its user goes on in a redo file.
func (s *sim) snapshotFCD(ctx *simulator.Context, f *fcd, description string) (made *fcdSnapshot, fault types.BaseMethodFault) {
	fault = s.used(ctx, f, func(vm *simulator.VirtualMachine) types.BaseMethodFault {
		f.disk.mu.Lock()
		wasTracked := f.disk.track.current != nil
		f.disk.mu.Unlock()
		if vm != nil {
			s.activate(ctx, vm)
		}
		redo, point, err := s.freezeDisk(f.disk, f.file, wasTracked)
		if err != nil {
			return &types.FileFault{File: f.file}
		}
		f.mu.Lock()
		made = &fcdSnapshot{id: types.ID{Id: uuid.NewString()}, backingID: uuid.NewString(), created: time.Now().UTC(),
			description: description, file: f.file, changeID: point, metadata: slices.Clone(f.metadata)}
		f.snapshots = append(f.snapshots, made)
		f.file = redo.path
		f.mu.Unlock()
		if vm != nil {
			s.showFiles(ctx, vm, f.key, redo)
		}
		return nil
	})
	return made, fault
}

// showFiles tells a VM in which file its disk goes on.
func (s *sim) showFiles(ctx *simulator.Context, vm *simulator.VirtualMachine, key int32, n *node) {
	knobs := s.knobs()
	s.setDevices(ctx, vm, edited(vm.Config.Hardware.Device, func(d *types.VirtualDisk, b *backing) bool {
		if d.Key != key {
			return false
		}
		owner := s.owner(d, b)
		owner.mu.Lock()
		defer owner.mu.Unlock()
		setFiles(d, n.path, n.parents())
		*b.changeID = knobs.shown(&owner.track)
		return true
	}))
}

// dropSnapshotFCD deletes a snapshot and folds its file into the one that follows.
func (s *sim) dropSnapshotFCD(ctx *simulator.Context, f *fcd, id types.ID) types.BaseMethodFault {
	if _, fault := f.snapshot(id); fault != nil {
		return fault
	}
	return s.used(ctx, f, func(vm *simulator.VirtualMachine) types.BaseMethodFault {
		f.mu.Lock()
		f.snapshots = slices.DeleteFunc(f.snapshots, func(n *fcdSnapshot) bool { return n.id == id })
		f.mu.Unlock()
		if err := s.collapse(ctx, vm, f.disk); err != nil {
			return &types.FileFault{File: err.Error()}
		}
		return nil
	})
}

// revertFCD brings a detached first class disk back to a snapshot; the younger ones go.
func (s *sim) revertFCD(ctx *simulator.Context, f *fcd, id types.ID) types.BaseMethodFault {
	to, fault := f.snapshot(id)
	if fault != nil {
		return fault
	}
	return s.used(ctx, f, func(vm *simulator.VirtualMachine) types.BaseMethodFault {
		if vm != nil {
			return &types.InvalidState{}
		}
		f.disk.mu.Lock()
		redo, err := s.disks.child(f.disk, f.disk.nodes[to.file])
		if err == nil {
			f.disk.track.back(to.changeID, s.knobs().OnRevert == "silent")
		}
		f.disk.mu.Unlock()
		if err != nil {
			return &types.FileFault{File: to.file}
		}
		f.mu.Lock()
		f.file = redo.path
		f.snapshots = f.snapshots[:slices.Index(f.snapshots, to)+1]
		f.mu.Unlock()
		if err := s.collapse(ctx, nil, f.disk); err != nil {
			return &types.FileFault{File: err.Error()}
		}
		return nil
	})
}

// changesFCD lists what changed on a first class disk between a change ID and a snapshot.
func (s *sim) changesFCD(f *fcd, snapshot types.ID, start int64, from string) (none types.DiskChangeInfo, _ types.BaseMethodFault, _ string) {
	var answer types.DiskChangeInfo
	var problem types.BaseMethodFault
	var message string
	fault := f.in(&snapshot, func(file, to string) {
		if to == "" && !f.tracked {
			problem, message = &types.InvalidState{}, "Change tracking is not enabled for this disk."
			return
		}
		answer, problem, message = s.changes(f.disk, file, from, to, start)
	})
	if fault != nil {
		return none, fault, "The object or item referred to could not be found."
	}
	return answer, problem, message
}

// held are the files that a first class disk and its snapshots need.
func (f *fcd) held() (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out = append(out, f.file)
	for _, n := range f.snapshots {
		out = append(out, n.file)
	}
	return out
}

// moved follows files that were folded; the caller holds the lock.
func (f *fcd) moved(renamed map[string]string) {
	follow := func(file *string) {
		if now, ok := renamed[*file]; ok {
			*file = now
		}
	}
	follow(&f.file)
	for _, n := range f.snapshots {
		follow(&n.file)
	}
}
