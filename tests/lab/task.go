// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"
	"log"
	"runtime/debug"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// work is what a task does, while it holds the lock of its entity.
type work func(ctx *simulator.Context, progress func(int32)) (types.AnyType, types.BaseMethodFault)

// begin starts a task of the lab's own on an inventory object. Unlike the simulator's, it does
// not hold the object's lock while it waits, shows progress and stays cancelled once it is.
func (s *sim) begin(ctx *simulator.Context, entity types.ManagedObjectReference, name string, f work) types.ManagedObjectReference {
	t := simulator.CreateTask(entity, name, nil)
	t.Self = types.ManagedObjectReference{Type: "Task", Value: fmt.Sprintf("task-%d", s.tasks.Add(1))}
	t.Info.Key, t.Info.Task, t.Info.Name = t.Self.Value, t.Self, ownTasks[name]
	t.Info.Reason = &types.TaskReasonUser{UserName: s.user}
	if e, ok := s.reg.Get(entity).(mo.Entity); ok {
		t.Info.EntityName = e.Entity().Name
	}
	s.reg.Put(t)
	own := fork(ctx)
	go s.perform(own, t, f)
	return t.Self
}

// perform runs a task to its end.
func (s *sim) perform(ctx *simulator.Context, t *simulator.Task, f work) {
	s.update(ctx, t, map[string]any{"info.startTime": time.Now(), "info.state": types.TaskInfoStateRunning})
	result, fault, message := s.attempt(ctx, t, f)
	state := types.TaskInfoStateSuccess
	var problem any
	if fault != nil {
		state = types.TaskInfoStateError
		if message == "" {
			message = faultName(fault)
		}
		problem = types.LocalizedMethodFault{Fault: fault, LocalizedMessage: message}
	}
	ctx.WithLock(t, func() {
		if t.Info.State != types.TaskInfoStateRunning {
			return // cancelled meanwhile
		}
		s.update(ctx, t, map[string]any{
			"info.completeTime": time.Now(), "info.state": state, "info.result": result, "info.error": problem})
	})
}

// attempt applies the injected faults and does the work, if no other task works on the VM; a
// panic becomes a fault.
func (s *sim) attempt(ctx *simulator.Context, t *simulator.Task, f work) (result types.AnyType, fault types.BaseMethodFault, message string) {
	defer func() {
		if p := recover(); p != nil {
			log.Printf("%s: %v\n%s", t.Info.DescriptionId, p, debug.Stack())
			result, fault, message = nil, &types.SystemErrorFault{Reason: fmt.Sprint(p)}, fmt.Sprintf("the lab failed: %v", p)
		}
	}()
	if t.Info.Entity.Type == "VirtualMachine" {
		if other, taken := s.busy.LoadOrStore(*t.Info.Entity, t.Self); taken {
			return nil, &types.TaskInProgress{Task: other.(types.ManagedObjectReference)}, "Another task is already in progress."
		}
		defer s.busy.Delete(*t.Info.Entity)
	}
	progress := func(percent int32) { s.update(ctx, t, map[string]any{"info.progress": percent}) }
	if x := s.rules.task(t.Info.DescriptionId, t.Info.Entity.Value); x != nil {
		const steps = 10
		for i := range steps {
			progress(int32(i * 90 / steps))
			time.Sleep(time.Duration(x.DelayMS) * time.Millisecond / steps)
		}
		if x.fault != nil {
			return nil, x.fault, x.message()
		}
	}
	if s.reg.Get(*t.Info.Entity) == nil {
		return nil, &types.ManagedObjectNotFound{Obj: *t.Info.Entity}, ""
	}
	unlock := s.reg.AcquireLock(ctx, *t.Info.Entity)
	defer unlock()
	result, fault = f(ctx, progress)
	return result, fault, ""
}

// update sets properties of an object and tells those who watch it.
func (s *sim) update(ctx *simulator.Context, o mo.Reference, values map[string]any) {
	changes := make([]types.PropertyChange, 0, len(values))
	for name, value := range values {
		changes = append(changes, types.PropertyChange{Name: name, Val: value})
	}
	s.reg.AtomicUpdate(ctx, o, changes)
}

// inner waits for one of the simulator's own tasks inside a task of ours, and hides it.
func (s *sim) inner(ctx *simulator.Context, ref types.ManagedObjectReference) (types.AnyType, types.BaseMethodFault) {
	t := s.reg.Get(ref).(*simulator.Task)
	t.Wait()
	s.reg.Remove(ctx, ref)
	if t.Info.Error != nil {
		return nil, t.Info.Error.Fault
	}
	return t.Info.Result, nil
}

// ownTasks are the tasks that begin starts, by description, with the methods that start them.
// The simulator's twins of some run inside.
var ownTasks = map[string]string{
	"createSnapshot": "CreateSnapshot_Task", "createSnapshotEx": "CreateSnapshotEx_Task", "removeSnapshot": "RemoveSnapshot_Task",
	"removeAllSnapshots": "RemoveAllSnapshots_Task", "revertToSnapshot": "RevertToSnapshot_Task",
	"revertToCurrentSnapshot": "RevertToCurrentSnapshot_Task", "consolidateDisks": "ConsolidateVMDisks_Task",
	"reconfigVm": "ReconfigVM_Task", "powerOn": "PowerOnVM_Task", "powerOff": "PowerOffVM_Task", "destroy": "Destroy_Task",
	"createVm": "CreateVM_Task",
}
