// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"
	"log"
	"runtime/debug"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// glance is how often a task looks whether it was cancelled.
const glance = 100 * time.Millisecond

// work is what a task does, while it holds the lock of its entity.
type work func(ctx *simulator.Context, progress func(int32)) (types.AnyType, types.BaseMethodFault)

// job says what a task works on.
type job struct {
	entity types.ManagedObjectReference // whose lock the work holds, unless it is a datastore
	kind   string                       // before the name in the task's description; the entity's type if empty
	name   string
	disk   string                              // ID of the first class disk at work, which takes one task at a time
	user   string                              // who started it; the session's user if empty
	age    time.Duration                       // how long ago it ended, as the history shows it
	delay  time.Duration                       // how long it takes besides the work
	partly func(ctx *simulator.Context, n int) // does the first n steps of a work that fails then
}

// objects are the names by which rules know the objects at work.
func (j job) objects() []string { return []string{j.entity.Value, j.disk} }

// begin starts a task on an inventory object.
func (s *sim) begin(ctx *simulator.Context, entity types.ManagedObjectReference, name string, f work) types.ManagedObjectReference {
	return s.start(ctx, job{entity: entity, name: name}, f)
}

// start starts a task of the lab's own. Unlike the simulator's, it does not hold the object's
// lock while it waits, shows progress, and is not done once it is cancelled.
func (s *sim) start(ctx *simulator.Context, j job, f work) types.ManagedObjectReference {
	entity, name := j.entity, j.name
	t := simulator.CreateTask(entity, name, nil)
	if j.kind != "" {
		t.Info.DescriptionId = j.kind + "." + name
	}
	t.Self = types.ManagedObjectReference{Type: "Task", Value: fmt.Sprintf("task-%d", s.tasks.Add(1))}
	t.Info.Key, t.Info.Task, t.Info.Name = t.Self.Value, t.Self, ownTasks[name]
	t.Info.Reason = &types.TaskReasonUser{UserName: s.starter(ctx, j)}
	t.Info.Cancelable = s.cancelable(name)
	t.Info.QueueTime = t.Info.QueueTime.Add(-j.age)
	if e, ok := s.reg.Get(entity).(mo.Entity); ok {
		t.Info.EntityName = e.Entity().Name
	}
	s.reg.Put(t)
	refused := s.claim(t, j)
	own := fork(ctx)
	go s.perform(own, t, j, f, refused)
	return t.Self
}

// refusal is why a task may not begin.
type refusal struct {
	fault   types.BaseMethodFault
	message string
}

// claim takes the VM and the first class disk for a task, unless another task works on one of them.
func (s *sim) claim(t *simulator.Task, j job) *refusal {
	if j.entity.Type == "VirtualMachine" {
		if other, taken := s.busy.LoadOrStore(j.entity, t.Self); taken {
			return &refusal{&types.TaskInProgress{Task: other.(types.ManagedObjectReference)}, "Another task is already in progress."}
		}
	}
	if j.disk != "" {
		if _, taken := s.busy.LoadOrStore(j.disk, t.Self); taken {
			s.busy.CompareAndDelete(j.entity, t.Self)
			return &refusal{&types.InvalidState{}, "The operation is not allowed in the current state."}
		}
	}
	return nil
}

// starter is the user that a task's reason names.
func (s *sim) starter(ctx *simulator.Context, j job) string {
	switch {
	case j.user != "":
		return j.user
	case ctx.Session != nil:
		return ctx.Session.UserName
	}
	return s.user
}

// cancelable tells whether a running task can be cancelled: of those here, only what makes something new.
func (s *sim) cancelable(name string) bool {
	switch s.knobs().Cancelable {
	case "all":
		return true
	case "none":
		return false
	}
	return strings.HasPrefix(name, "create") || strings.HasPrefix(name, "clone")
}

// labTask answers calls to a task of the lab's own.
type labTask struct {
	*simulator.Task
	s *sim
}

// CancelTask asks a task to end; it does so a little later, unless its work is done by then.
func (t *labTask) CancelTask(ctx *simulator.Context, req *types.CancelTask) soap.HasFault {
	body := new(methods.CancelTaskBody)
	switch {
	case t.Info.State != types.TaskInfoStateRunning && t.Info.State != types.TaskInfoStateQueued:
		body.Fault_ = refuse(&types.InvalidState{}, "The operation is not allowed in the current state.")
	case !t.Info.Cancelable:
		body.Fault_ = refuse(&types.NotSupported{}, "The operation is not supported on the object.")
	default:
		t.s.update(ctx, t.Task, map[string]any{"info.cancelled": true})
		body.Res = new(types.CancelTaskResponse)
	}
	return body
}

// pass lets time pass in a task and shows progress; it tells whether the task was cancelled meanwhile.
func (s *sim) pass(ctx *simulator.Context, t *simulator.Task, delay time.Duration, progress func(int32)) (cancelled bool) {
	const steps = 10
	for i := range steps {
		progress(int32(i * 90 / steps))
		for left := delay / steps; left > 0; left -= glance {
			time.Sleep(min(left, glance))
			ctx.WithLock(t, func() { cancelled = t.Info.Cancelled })
			if cancelled {
				return true
			}
		}
	}
	return false
}

// perform runs a task to its end.
func (s *sim) perform(ctx *simulator.Context, t *simulator.Task, j job, f work, refused *refusal) {
	s.update(ctx, t, map[string]any{"info.startTime": time.Now().Add(-j.age), "info.state": types.TaskInfoStateRunning})
	var result types.AnyType
	var fault types.BaseMethodFault
	var message string
	if refused != nil {
		fault, message = refused.fault, refused.message
	} else {
		result, fault, message = s.attempt(ctx, t, j, f)
	}
	state := types.TaskInfoStateSuccess
	var problem any
	if fault != nil {
		state = types.TaskInfoStateError
		if message == "" {
			message = faultName(fault)
		}
		problem = types.LocalizedMethodFault{Fault: fault, LocalizedMessage: message}
	}
	s.update(ctx, t, map[string]any{
		"info.completeTime": time.Now().Add(-j.age), "info.state": state, "info.result": result, "info.error": problem, "info.cancelable": false})
}

// attempt applies the injected faults and does the work, then gives back what the task had claimed; a panic
// becomes a fault.
func (s *sim) attempt(ctx *simulator.Context, t *simulator.Task, j job, f work) (result types.AnyType, fault types.BaseMethodFault, message string) {
	defer func() {
		if p := recover(); p != nil {
			log.Printf("%s: %v\n%s", t.Info.DescriptionId, p, debug.Stack())
			result, fault, message = nil, &types.SystemError{Reason: fmt.Sprint(p)}, fmt.Sprintf("the lab failed: %v", p)
		}
	}()
	defer s.busy.CompareAndDelete(j.entity, t.Self)
	defer s.busy.CompareAndDelete(j.disk, t.Self)
	progress := func(percent int32) { s.update(ctx, t, map[string]any{"info.progress": percent}) }
	delay := j.delay
	x := s.rules.task(t.Info.DescriptionId, j.objects()...)
	if x != nil {
		delay += time.Duration(x.DelayMS) * time.Millisecond
	}
	if delay > 0 && s.pass(ctx, t, delay, progress) {
		return nil, &types.RequestCanceled{}, "The task was canceled by a user"
	}
	if x != nil && x.fault != nil {
		if x.Partly > 0 && j.partly != nil {
			ctx.WithLock(j.entity, func() { j.partly(ctx, x.Partly) }) // what vSphere does not undo
		}
		return nil, x.fault, x.message()
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
	"reconfigVm": "ReconfigVM_Task", "powerOn": "PowerOnVM_Task", "powerOff": "PowerOffVM_Task", "relocate": "RelocateVM_Task", "destroy": "Destroy_Task",
	"createVm": "CreateVM_Task", "attachDisk": "AttachDisk_Task", "detachDisk": "DetachDisk_Task",
	"createDisk": "CreateDisk_Task", "extendDisk": "ExtendDisk_Task", "deleteDisk": "DeleteVStorageObject_Task",
	"cloneDisk": "CloneVStorageObject_Task", "createDiskFromSnapshot": "CreateDiskFromSnapshot_Task",
	"deleteSnapshot": "DeleteSnapshot_Task", "revertDisk": "RevertVStorageObject_Task",
	"updateMetadata": "VCenterUpdateVStorageObjectMetadataEx_Task", "updatePolicy": "UpdateVStorageObjectPolicy_Task",
}
