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

// job says what a task works on.
type job struct {
	entity types.ManagedObjectReference // whose lock the work holds, unless it is a datastore
	kind   string                       // before the name in the task's description; the entity's type if empty
	name   string
	disk   string // ID of the first class disk at work, which takes one task at a time
}

// objects are the names by which rules know the objects at work.
func (j job) objects() []string { return []string{j.entity.Value, j.disk} }

// begin starts a task on an inventory object.
func (s *sim) begin(ctx *simulator.Context, entity types.ManagedObjectReference, name string, f work) types.ManagedObjectReference {
	return s.start(ctx, job{entity: entity, name: name}, f)
}

// start starts a task of the lab's own. Unlike the simulator's, it does not hold the object's
// lock while it waits, shows progress and stays cancelled once it is.
func (s *sim) start(ctx *simulator.Context, j job, f work) types.ManagedObjectReference {
	entity, name := j.entity, j.name
	t := simulator.CreateTask(entity, name, nil)
	if j.kind != "" {
		t.Info.DescriptionId = j.kind + "." + name
	}
	t.Self = types.ManagedObjectReference{Type: "Task", Value: fmt.Sprintf("task-%d", s.tasks.Add(1))}
	t.Info.Key, t.Info.Task, t.Info.Name = t.Self.Value, t.Self, ownTasks[name]
	t.Info.Reason = &types.TaskReasonUser{UserName: s.user}
	if e, ok := s.reg.Get(entity).(mo.Entity); ok {
		t.Info.EntityName = e.Entity().Name
	}
	s.reg.Put(t)
	own := fork(ctx)
	go s.perform(own, t, j, f)
	return t.Self
}

// perform runs a task to its end.
func (s *sim) perform(ctx *simulator.Context, t *simulator.Task, j job, f work) {
	s.update(ctx, t, map[string]any{"info.startTime": time.Now(), "info.state": types.TaskInfoStateRunning})
	result, fault, message := s.attempt(ctx, t, j, f)
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

// attempt applies the injected faults and does the work, if no other task works on the VM or on
// the first class disk; a panic becomes a fault.
func (s *sim) attempt(ctx *simulator.Context, t *simulator.Task, j job, f work) (result types.AnyType, fault types.BaseMethodFault, message string) {
	defer func() {
		if p := recover(); p != nil {
			log.Printf("%s: %v\n%s", t.Info.DescriptionId, p, debug.Stack())
			result, fault, message = nil, &types.SystemError{Reason: fmt.Sprint(p)}, fmt.Sprintf("the lab failed: %v", p)
		}
	}()
	if j.entity.Type == "VirtualMachine" {
		if other, taken := s.busy.LoadOrStore(j.entity, t.Self); taken {
			return nil, &types.TaskInProgress{Task: other.(types.ManagedObjectReference)}, "Another task is already in progress."
		}
		defer s.busy.Delete(j.entity)
	}
	if j.disk != "" {
		if _, taken := s.busy.LoadOrStore(j.disk, t.Self); taken {
			return nil, &types.InvalidState{}, "The operation is not allowed in the current state."
		}
		defer s.busy.Delete(j.disk)
	}
	progress := func(percent int32) { s.update(ctx, t, map[string]any{"info.progress": percent}) }
	if x := s.rules.task(t.Info.DescriptionId, j.objects()...); x != nil {
		const steps = 10
		for i := range steps {
			progress(int32(i * 90 / steps))
			time.Sleep(time.Duration(x.DelayMS) * time.Millisecond / steps)
		}
		if x.fault != nil {
			return nil, x.fault, x.message()
		}
	}
	if s.reg.Get(j.entity) == nil {
		return nil, &types.ManagedObjectNotFound{Obj: j.entity}, ""
	}
	if j.entity.Type != "Datastore" {
		defer s.reg.AcquireLock(ctx, j.entity)()
	}
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
	"createVm": "CreateVM_Task", "attachDisk": "AttachDisk_Task", "detachDisk": "DetachDisk_Task",
	"createDisk": "CreateDisk_Task", "extendDisk": "ExtendDisk_Task", "deleteDisk": "DeleteVStorageObject_Task",
	"cloneDisk": "CloneVStorageObject_Task", "createDiskFromSnapshot": "CreateDiskFromSnapshot_Task",
	"deleteSnapshot": "DeleteSnapshot_Task", "revertDisk": "RevertVStorageObject_Task",
	"updateMetadata": "VCenterUpdateVStorageObjectMetadataEx_Task", "updatePolicy": "UpdateVStorageObjectPolicy_Task",
}
