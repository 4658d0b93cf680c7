// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"crypto/x509"
	"log"
	"net"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const apiVersion = "8.0.3.0"

// sim is the lab's own state beside the simulator's registry.
type sim struct {
	options
	ready       ready
	service     *simulator.Service
	reg         *simulator.Registry
	rules       rules
	counts      counts
	connections connections
	collectors  collectors
	instance    *simulator.ServiceInstance
	common      types.ManagedObjectReference // the property collector that all sessions see
	disks       disks
	fcds        fcds
	nfc         *nfc
	library     *vddk // none in a lab without listeners
	sts         *sts
	pbm         *simulator.Registry
	policies    *policies
	homes       sync.Map // policy of a VM's home by managed object ID
	knobsMu     sync.Mutex
	settings    knobs
	tasks       atomic.Int64
	busy        sync.Map // the task at work, by VM or by ID of the first class disk
	snapshots   atomic.Int32
}

// newSim hooks the lab into a simulator whose inventory has no VM yet.
func newSim(service *simulator.Service, root types.ManagedObjectReference, o options) *sim {
	s := &sim{options: o, service: service, reg: service.Context.Map}
	s.settings = defaultKnobs()
	s.disks.files, s.disks.roots = map[string]*disk{}, map[string]string{}
	s.fcds.byID = map[string]*fcd{}
	s.sts = &sts{s: s, users: map[string]*x509.Certificate{}}
	s.pbm = s.pbmRegistry()
	for _, e := range s.reg.All("Datastore") {
		datastore := e.(*simulator.Datastore)
		s.disks.roots[datastore.Name] = datastore.Summary.Url
	}
	s.instance = s.reg.Get(vim25.ServiceInstance).(*simulator.ServiceInstance)
	s.common = s.instance.ServiceContent().PropertyCollector
	s.collectors.sessions = map[string]*simulator.Session{}
	s.counts.reset()
	s.connections.open = map[net.Conn]struct{}{}
	s.tasks.Store(1_000_000) // above the simulator's own numbers
	s.reg.AddHandler(&watcher{s, root})
	s.reg.Handler = s.dispatch
	return s
}

// context is a new caller, for work that no client's request started: it shares no locks.
func (s *sim) context() *simulator.Context {
	c := *s.service.Context
	return &c
}

// fork gives a request's context an identity of its own for locks, to use after the request.
func fork(ctx *simulator.Context) *simulator.Context {
	c := *ctx
	return &c
}

// knobs are the present settings of change tracking.
func (s *sim) knobs() *knobs {
	s.knobsMu.Lock()
	defer s.knobsMu.Unlock()
	out := s.settings
	return &out
}

// vm finds a VM by its reference, or nil.
func (s *sim) vm(ref types.ManagedObjectReference) *simulator.VirtualMachine {
	vm, _ := s.reg.Get(ref).(*simulator.VirtualMachine)
	return vm
}

// dispatch is asked before every call. To answer a call itself it points the call at a name
// that the caller's session does not know: only then the handler returned here is taken.
func (s *sim) dispatch(ctx *simulator.Context, m *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	if m.Name == "RetrieveInternalContent" {
		return &internals{m.This, s.nfc}, nil
	}
	if ctx.Session == nil {
		switch m.Name {
		case "Fetch", "RetrieveProperties", "RetrievePropertiesEx": // the simulator would answer
			return nil, &types.NotAuthenticated{NoPermission: types.NoPermission{Object: &m.This, PrivilegeId: "System.View"}}
		}
		return nil, nil
	}
	if strings.HasPrefix(m.This.Type, "Guest") { // some of the simulator's answers leave the VM locked
		return nil, &types.GuestOperationsUnavailable{}
	}
	s.collectors.meet(ctx.Session, s.common)
	if m.Name == "Logout" {
		s.collectors.leave(s.reg, s.common, ctx.Session.Key)
	}
	s.prepareRead(ctx, m)
	if m.Name == "Fetch" {
		if pc, ok := ctx.Session.Get(m.This).(*simulator.PropertyCollector); ok {
			m.This.Type = "Lab" + m.This.Type
			return &fetcher{pc}, nil
		}
		return nil, nil
	}
	var own mo.Reference
	switch o := ctx.Map.Get(m.This).(type) {
	case *simulator.VirtualMachine:
		own = &labVM{o, s}
	case *simulator.VirtualMachineSnapshot:
		own = &labSnapshot{o, s}
	case *simulator.Task:
		if o.Execute != nil {
			return nil, nil // one of the simulator's own
		}
		own = &labTask{o, s}
	case *simulator.Folder:
		own = &labFolder{o, s}
	case *simulator.VcenterVStorageObjectManager:
		own = &labStore{o, s}
	default:
		return nil, nil
	}
	m.This.Type = "Lab" + m.This.Type
	return own, nil
}

// fetcher answers Fetch of an unset property with an empty response, as vCenter does; the
// simulator's answer breaks pyVmomi.
type fetcher struct{ *simulator.PropertyCollector }

type fetchResponse struct {
	Returnval types.AnyType `xml:"returnval,omitempty,typeattr"`
}

type fetchBody struct {
	Res    *fetchResponse `xml:"urn:vim25 FetchResponse,omitempty"`
	Fault_ *soap.Fault    `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

func (b *fetchBody) Fault() *soap.Fault { return b.Fault_ }

// Fetch takes a request type that is private to the simulator, hence reflection.
func (f *fetcher) Fetch(ctx *simulator.Context, req any) soap.HasFault {
	in := []reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(req)}
	res := reflect.ValueOf(f.PropertyCollector).MethodByName("Fetch").Call(in)[0].Interface().(soap.HasFault)
	if _, unset := res.(*methods.RetrievePropertiesExBody); unset && res.Fault() == nil {
		return &fetchBody{Res: new(fetchResponse)}
	}
	return res
}

// watcher corrects objects as the simulator registers them and follows their removal.
type watcher struct {
	s    *sim
	root types.ManagedObjectReference
}

func (w *watcher) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "LabWatcher", Value: "watcher"}
}

func (w *watcher) UpdateObject(*simulator.Context, mo.Reference, []types.PropertyChange) {}

func (w *watcher) RemoveObject(_ *simulator.Context, ref types.ManagedObjectReference) {}

func (w *watcher) PutObject(_ *simulator.Context, o mo.Reference) {
	switch x := o.(type) {
	case *simulator.VirtualMachine: // pyVmomi refuses the empty values
		for _, runtime := range []*types.VirtualMachineRuntimeInfo{&x.Runtime, &x.Summary.Runtime} {
			runtime.FaultToleranceState = types.VirtualMachineFaultToleranceStateNotConfigured
			runtime.RecordReplayState = types.VirtualMachineRecordReplayStateInactive
		}
	case *simulator.Task:
		if x.Execute != nil {
			w.guard(x)
		}
	}
}

// guard keeps a panic in one of the simulator's own tasks from ending the process, gives the
// task the faults injected for it, and an entity that pyVmomi accepts.
func (w *watcher) guard(t *simulator.Task) {
	if _, ok := w.s.reg.Get(*t.Info.Entity).(mo.Entity); !ok {
		t.Info.Entity = &w.root
	}
	if e, ok := w.s.reg.Get(*t.Info.Entity).(mo.Entity); ok {
		t.Info.EntityName = e.Entity().Name
	}
	t.Info.Reason = &types.TaskReasonUser{UserName: w.s.user}
	run := t.Execute
	t.Execute = func(t *simulator.Task) (result types.AnyType, fault types.BaseMethodFault) {
		defer func() {
			if p := recover(); p != nil {
				log.Printf("%s: %v\n%s", t.Info.DescriptionId, p, debug.Stack())
				result, fault = nil, &types.SystemError{Reason: "the simulator failed"}
			}
		}()
		if _, short, _ := strings.Cut(t.Info.DescriptionId, "."); ownTasks[short] == "" {
			x := w.s.rules.task(t.Info.DescriptionId, t.Info.Entity.Value)
			x.delay()
			if x != nil && x.fault != nil {
				return nil, x.fault
			}
		}
		return run(t)
	}
}

// sessionActive tells whether a SOAP session's cookie is good.
func (s *sim) sessionActive(id string) bool {
	return slices.ContainsFunc(s.sessions(), func(session types.UserSession) bool { return session.Key == id })
}

// sessions lists the SOAP sessions.
func (s *sim) sessions() []types.UserSession {
	view := simulator.Session{Registry: simulator.NewRegistry(), Map: s.reg}
	open := view.Get(s.reg.SessionManager().Self).(*simulator.SessionManager).SessionList
	return append([]types.UserSession{}, open...) // never null in JSON
}

// expireSessions ends all SOAP sessions, as an idle time-out would, and returns how many.
func (s *sim) expireSessions() int {
	var keys []string
	for _, session := range s.sessions() {
		keys = append(keys, session.Key)
		s.collectors.leave(s.reg, s.common, session.Key)
	}
	ctx := s.context()
	ctx.Session = &simulator.Session{UserSession: types.UserSession{Key: "control"}}
	m := s.reg.SessionManager()
	m.TerminateSession(ctx, &types.TerminateSession{This: m.Self, SessionId: keys})
	return len(keys)
}

// refuse is the answer to a call that fails.
func refuse(f types.BaseMethodFault, message string) *soap.Fault {
	if message == "" {
		message = faultName(f)
	}
	return simulator.Fault(message, f)
}
