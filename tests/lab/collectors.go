// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"context"
	"net/http"
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// collectors knows the open sessions, for two things that the simulator lacks: it tells updates
// to only one of the sessions that wait by the common property collector, and it lets a call of
// WaitForUpdates wait for ever when its client is gone.
type collectors struct {
	mu       sync.Mutex
	sessions map[string]*simulator.Session
}

// meet notes a session at its calls and gives its common collector a name of its own, under
// which the simulator registers it for updates.
func (c *collectors) meet(session *simulator.Session, common types.ManagedObjectReference) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions[session.Key] != nil {
		return
	}
	c.sessions[session.Key] = session
	if collector, ok := session.Get(common).(*simulator.PropertyCollector); ok {
		collector.Self.Value += "-" + session.Key
	}
}

// leave forgets a session and stops telling its collector of updates.
func (c *collectors) leave(reg *simulator.Registry, common types.ManagedObjectReference, key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if session := c.sessions[key]; session != nil {
		if collector, ok := session.Get(common).(*simulator.PropertyCollector); ok {
			reg.RemoveHandler(collector)
		}
		delete(c.sessions, key)
	}
}

// attend ends a wait for updates as soon as its client is gone. The caller calls what it
// returns when the wait is over.
func (c *collectors) attend(r *http.Request, method, object, key string) func() bool {
	if !strings.HasPrefix(method, "WaitForUpdates") {
		return func() bool { return true }
	}
	return context.AfterFunc(r.Context(), func() {
		c.mu.Lock()
		session := c.sessions[key]
		c.mu.Unlock()
		if session == nil {
			return
		}
		ref := types.ManagedObjectReference{Type: "PropertyCollector", Value: object}
		if collector, ok := session.Get(ref).(*simulator.PropertyCollector); ok {
			collector.CancelWaitForUpdates(&types.CancelWaitForUpdates{This: ref})
		}
	})
}
