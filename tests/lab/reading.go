// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// prepareRead sets the clock, which stands still in the simulator, before somebody reads it, and keeps pages
// as small as the knob says.
func (s *sim) prepareRead(ctx *simulator.Context, m *simulator.Method) {
	switch m.Name {
	case "Fetch", "RetrieveProperties", "RetrievePropertiesEx", "WaitForUpdatesEx", "CreateFilter":
		ctx.WithLock(s.instance, func() { s.instance.ServerClock = time.Now().UTC() })
	}
	page := s.knobs().ObjectPage
	if page == 0 {
		return
	}
	switch body := m.Body.(type) {
	case *types.RetrievePropertiesEx:
		if body.Options.MaxObjects == 0 || body.Options.MaxObjects > page {
			body.Options.MaxObjects = page
		}
	case *types.WaitForUpdatesEx:
		if body.Options == nil {
			body.Options = new(types.WaitOptions)
		}
		if body.Options.MaxObjectUpdates == 0 || body.Options.MaxObjectUpdates > page {
			body.Options.MaxObjectUpdates = page
		}
	}
}
