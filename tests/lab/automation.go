// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"time"
)

// apiSession is where sessions of the Automation API begin and end since vCenter 7.0 Update 2. They are those of the
// simulator's old path.
const (
	apiSession = "/api/session"
	oldSession = "/rest/com/vmware/cis/session"
)

// sessionAPI opens, shows and ends a session.
func (s *sim) sessionAPI(w http.ResponseWriter, r *http.Request) {
	request := httptest.NewRequest(r.Method, oldSession, nil)
	request.Header = r.Header.Clone()
	answer := httptest.NewRecorder()
	s.service.ServeMux.ServeHTTP(answer, request)
	if answer.Code != http.StatusOK {
		writeJSON(w, http.StatusUnauthorized, map[string]any{"error_type": "UNAUTHENTICATED", "messages": []any{}})
		return
	}
	var wrapped struct {
		Value any `json:"value"`
	}
	_ = json.Unmarshal(answer.Body.Bytes(), &wrapped)
	switch r.Method {
	case http.MethodPost:
		writeJSON(w, http.StatusCreated, wrapped.Value)
	case http.MethodGet:
		now := time.Now().UTC().Format(time.RFC3339)
		writeJSON(w, http.StatusOK, map[string]any{"user": s.user, "created_time": now, "last_accessed_time": now})
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}
