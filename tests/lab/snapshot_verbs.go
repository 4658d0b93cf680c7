// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// somebody is another client's task on a VM, started by a control verb: by whom, how long it takes, how
// long ago it was, and whether the verb does not wait for its end.
type somebody struct {
	VM         string  `json:"vm"`
	User       string  `json:"user"`
	Seconds    float64 `json:"seconds"`
	Age        float64 `json:"age"` // seconds
	Background bool    `json:"background"`
}

func (p somebody) job() job {
	span := func(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }
	return job{user: p.User, delay: span(p.Seconds), age: span(p.Age)}
}

// answer waits for a task unless it may go on in the background; it answers the task's moid and its result's.
func (s *sim) answer(p somebody, ref types.ManagedObjectReference) (any, error) {
	out := map[string]string{"task": ref.Value}
	if p.Background {
		return out, nil
	}
	ctx := s.context()
	for t := s.reg.Get(ref).(*simulator.Task); ; time.Sleep(time.Millisecond) {
		var info types.TaskInfo
		ctx.WithLock(t, func() { info = t.Info })
		switch info.State {
		case types.TaskInfoStateError:
			return nil, asError(info.Error.Fault)
		case types.TaskInfoStateSuccess:
			if made, ok := info.Result.(types.ManagedObjectReference); ok {
				out["moid"] = made.Value
			}
			return out, nil
		}
	}
}

// on finds the VM of a verb.
func (s *sim) on(p somebody) (*simulator.VirtualMachine, error) {
	vm := s.vm(vmRef(p.VM))
	if vm == nil {
		return nil, fmt.Errorf("no VM %q", p.VM)
	}
	return vm, nil
}

// of finds the VM and the snapshot of a verb.
func (s *sim) of(p somebody, moid string) (*simulator.VirtualMachine, *simulator.VirtualMachineSnapshot, error) {
	vm, err := s.on(p)
	if err != nil {
		return nil, nil, err
	}
	snapshot, ok := s.reg.Get(types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: moid}).(*simulator.VirtualMachineSnapshot)
	if !ok || snapshot.Vm != vm.Self {
		return nil, nil, fmt.Errorf("VM %s has no snapshot %q", p.VM, moid)
	}
	return vm, snapshot, nil
}

// takeVerb takes a snapshot of any age: by a task of the user who is named, or by none that the history knows.
func (s *sim) takeVerb(p struct {
	somebody
	Name        string `json:"name"`
	Description string `json:"description"`
	Memory      bool   `json:"memory"`
}) (any, error) {
	vm, err := s.on(p.somebody)
	if err != nil {
		return nil, err
	}
	req := &types.CreateSnapshotEx_Task{Name: p.Name, Description: p.Description, Memory: p.Memory}
	j := p.job()
	if p.User == "" && p.Seconds == 0 {
		return s.locked(p.VM, func(ctx *simulator.Context, vm *simulator.VirtualMachine) (any, error) {
			if _, fault := s.maySnapshot(vm, req); fault != nil {
				return nil, asError(fault)
			}
			made, err := s.takeSnapshot(ctx, vm, req, false, j.age)
			return map[string]string{"moid": made.Value}, err
		})
	}
	j.name = "createSnapshot"
	return s.answer(p.somebody, s.startSnapshot(s.context(), j, vm, req))
}

func (s *sim) removeSnapshotVerb(p struct {
	somebody
	Snapshot    string `json:"snapshot"`
	Children    bool   `json:"children"`
	Consolidate *bool  `json:"consolidate"`
}) (any, error) {
	vm, snapshot, err := s.of(p.somebody, p.Snapshot)
	if err != nil {
		return nil, err
	}
	return s.answer(p.somebody, s.startRemoval(s.context(), p.job(), vm.Self, snapshot.Self, p.Children, p.Consolidate))
}

func (s *sim) renameVerb(p struct {
	somebody
	Snapshot    string `json:"snapshot"`
	Name        string `json:"name"`
	Description string `json:"description"`
}) (any, error) {
	vm, snapshot, err := s.of(p.somebody, p.Snapshot)
	if err != nil {
		return nil, err
	}
	return nil, asError(s.renameSnapshot(s.context(), vm, snapshot.Self, p.Name, p.Description))
}

func (s *sim) revertVerb(p struct {
	somebody
	Snapshot string `json:"snapshot"`
	Suppress bool   `json:"suppress"`
}) (any, error) {
	vm, snapshot, err := s.of(p.somebody, p.Snapshot)
	if err != nil {
		return nil, err
	}
	j := p.job()
	j.entity, j.name = vm.Self, "revertToSnapshot"
	return s.answer(p.somebody, s.start(s.context(), j, func(ctx *simulator.Context, _ func(int32)) (types.AnyType, types.BaseMethodFault) {
		return nil, s.revert(ctx, vm, snapshot, nil, &p.Suppress)
	}))
}

// renameVMVerb gives a VM another name; its files keep theirs.
func (s *sim) renameVMVerb(p struct {
	VM   string `json:"vm"`
	Name string `json:"name"`
}) (any, error) {
	return s.locked(p.VM, func(ctx *simulator.Context, vm *simulator.VirtualMachine) (any, error) {
		s.update(ctx, vm, map[string]any{"name": p.Name, "config.name": p.Name, "summary.config.name": p.Name})
		return nil, nil
	})
}

// taskVerb starts a task that does nothing to a VM but keep others away.
func (s *sim) taskVerb(p struct {
	somebody
	Name string `json:"name"`
}) (any, error) {
	vm, err := s.on(p.somebody)
	if err != nil {
		return nil, err
	}
	j := p.job()
	j.entity, j.name = vm.Self, p.Name
	return s.answer(p.somebody, s.start(s.context(), j, func(*simulator.Context, func(int32)) (types.AnyType, types.BaseMethodFault) {
		return nil, nil
	}))
}

// tasksVerb lists the VM's last 200 tasks, the oldest first.
func (s *sim) tasksVerb(ctx *simulator.Context, vm *simulator.VirtualMachine) (any, error) {
	out := []map[string]any{}
	for _, ref := range vm.RecentTask {
		t, ok := s.reg.Get(ref).(*simulator.Task)
		if !ok {
			continue
		}
		ctx.WithLock(t, func() {
			info := t.Info
			out = append(out, map[string]any{"moid": ref.Value, "name": info.DescriptionId, "state": info.State, "cancelled": info.Cancelled,
				"user": info.Reason.(*types.TaskReasonUser).UserName, "queued": info.QueueTime, "started": info.StartTime, "completed": info.CompleteTime})
		})
	}
	return out, nil
}

// datastoreVerb changes what a datastore says of itself.
func (s *sim) datastoreVerb(p struct {
	Name     string `json:"name"`
	Capacity int64  `json:"capacity"`
	Free     *int64 `json:"free"`
	Mode     string `json:"maintenance_mode"`
}) (any, error) {
	for _, e := range s.reg.All("Datastore") {
		datastore := e.(*simulator.Datastore)
		if datastore.Name != p.Name {
			continue
		}
		summary := datastore.Summary
		if p.Capacity > 0 {
			summary.Capacity = p.Capacity
		}
		if p.Free != nil {
			summary.FreeSpace = *p.Free
		}
		if p.Mode != "" {
			summary.MaintenanceMode = p.Mode
		}
		info := datastore.Info.GetDatastoreInfo()
		ctx := s.context()
		ctx.WithLock(datastore, func() {
			info.FreeSpace = summary.FreeSpace
			s.update(ctx, datastore, map[string]any{"summary": summary})
		})
		return summary, nil
	}
	return nil, fmt.Errorf("no datastore %q", p.Name)
}
