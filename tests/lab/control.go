// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/vmware/govmomi/vim25/types"
)

// verb answers one JSON request of the control interface.
type verb func(body json.RawMessage) (any, error)

// controlMux serves the control interface: POST /control/<verb> with a JSON object.
func (s *sim) controlMux() http.Handler {
	mux := http.NewServeMux()
	verbs := map[string]verb{}
	handle := func(name string, v verb) {
		verbs[name] = v
		mux.HandleFunc("POST /control/"+name, serveVerb(v))
	}
	handle("ready", typed(func(struct{}) (any, error) { return s.ready, nil }))
	handle("fault", typed(func(x rule) (any, error) {
		if x.Do != "" {
			if x.first = verbs[x.Do]; x.first == nil {
				return nil, fmt.Errorf("no verb %q", x.Do)
			}
		}
		return nil, s.rules.add(&x)
	}))
	handle("clear_faults", typed(s.clearFaults))
	handle("requests", typed(s.requests))
	handle("sessions", typed(func(struct{}) (any, error) { return s.sessions(), nil }))
	handle("expire_sessions", typed(func(struct{}) (any, error) { return s.expireSessions(), nil }))
	handle("solution_user", typed(s.sts.addSolutionUser))
	handle("saml_token", typed(s.sts.tokenVerb))
	handle("drop_connections", typed(func(struct{}) (any, error) { return s.connections.drop(), nil }))
	handle("knobs", s.setKnobs)
	handle("create_vm", typed(s.createVMVerb))
	handle("vm", s.onVM(s.describe))
	handle("vms", typed(s.listVMsVerb))
	handle("destroy_vm", s.onVM(s.destroyVerb))
	handle("power", typed(s.powerVerb))
	handle("tools", typed(s.toolsVerb))
	handle("connection", typed(s.connectionVerb))
	handle("add_disk", typed(s.addDiskVerb))
	handle("grow_disk", s.onDisk(s.growVerb))
	handle("remove_disk", s.onDisk(s.removeVerb))
	handle("replace_disk", s.onDisk(s.replaceVerb))
	handle("file", s.onBytes(s.fileVerb))
	handle("write", s.onBytes(s.writeVerb))
	handle("trim", s.onBytes(s.trimVerb))
	handle("scatter", s.onBytes(s.scatterVerb))
	handle("load", s.onBytes(s.loadVerb))
	handle("snapshots", s.onVM(s.snapshotsVerb))
	handle("take_snapshot", typed(s.takeVerb))
	handle("remove_snapshot", typed(s.removeSnapshotVerb))
	handle("rename_snapshot", typed(s.renameVerb))
	handle("revert_snapshot", typed(s.revertVerb))
	handle("rename_vm", typed(s.renameVMVerb))
	handle("task", typed(s.taskVerb))
	handle("tasks", s.onVM(s.tasksVerb))
	handle("datastore", typed(s.datastoreVerb))
	handle("reset_tracking", s.onBytes(s.resetTrackingVerb))
	handle("relocate", typed(s.relocateVerb))
	handle("crash_host", typed(s.crashVerb))
	handle("create_fcd", typed(s.createFCDVerb))
	handle("fcds", typed(s.listFCDVerb))
	handle("fcd", s.onStore(s.fcdVerb))
	handle("destroy_fcd", s.onStore(s.destroyFCDVerb))
	handle("attach_fcd", s.onStore(s.attachFCDVerb))
	handle("detach_fcd", s.onStore(s.detachFCDVerb))
	handle("fcd_snapshots", s.onStore(s.fcdSnapshotsVerb))
	handle("fcd_snapshot", s.onStore(s.snapshotFCDVerb))
	handle("fcd_delete_snapshot", s.onStore(s.dropSnapshotFCDVerb))
	handle("create_tag", typed(s.createTagVerb))
	handle("nfc", typed(s.nfc.control))
	s.vddkRoutes(mux)
	return mux
}

// typed makes a verb of a function over its parameters; unknown ones are refused.
func typed[P any](f func(P) (any, error)) verb {
	return func(body json.RawMessage) (any, error) {
		var p P
		decoder := json.NewDecoder(bytes.NewReader(body))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&p); err != nil {
			return nil, err
		}
		return f(p)
	}
}

// serveVerb answers 200 with the verb's result, or 400 with {"error": ...}.
func serveVerb(v verb) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var answer any
		if err == nil {
			answer, err = v(body)
		}
		if err != nil {
			writeJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
			return
		}
		writeJSON(w, http.StatusOK, answer)
	}
}

// clearFaults forgets injected faults and puts the knobs back.
func (s *sim) clearFaults(struct{}) (any, error) {
	s.rules.clear()
	s.knobsMu.Lock()
	defer s.knobsMu.Unlock()
	s.settings = defaultKnobs()
	return nil, nil
}

// setKnobs changes the knobs given and returns all.
func (s *sim) setKnobs(body json.RawMessage) (any, error) {
	s.knobsMu.Lock()
	defer s.knobsMu.Unlock()
	next := s.settings
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&next); err != nil {
		return nil, err
	}
	if err := next.check(); err != nil {
		return nil, err
	}
	s.settings = next
	return next, nil
}

// requests returns the counters, and empties them if asked.
func (s *sim) requests(p struct {
	Reset bool `json:"reset"`
}) (any, error) {
	s.counts.mu.Lock()
	defer s.counts.mu.Unlock()
	body, err := json.Marshal(&s.counts)
	if p.Reset {
		s.counts.reset()
	}
	return json.RawMessage(body), err
}

// vmRef names a VM by its managed object ID.
func vmRef(moid string) types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "VirtualMachine", Value: moid}
}
