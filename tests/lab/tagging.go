// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
)

// taggingPath is where vCenter has its tags since 7.0 Update 2. The simulator has them at the old place only.
const (
	taggingPath = "/api/cis/tagging/"
	oldTagging  = "/rest/com/vmware/cis/tagging/"
)

// tagError is an error of the Automation API.
type tagError struct {
	status int
	kind   string
	text   string
}

// tagRequest is a request by the new paths, on its way to the old ones.
type tagRequest struct {
	mux     http.Handler
	session string
}

// taggingAPI answers the new paths: plain values instead of wrapped ones, plain bodies, "action" without a tilde.
func (s *sim) taggingAPI() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t := &tagRequest{s.service.ServeMux, r.Header.Get("vmware-api-session-id")}
		body, _ := io.ReadAll(r.Body)
		value, status, failed := t.serve(r, body)
		if failed != nil {
			writeJSON(w, failed.status, map[string]any{"error_type": failed.kind,
				"messages": []any{map[string]any{"id": "lab", "default_message": failed.text, "args": []string{}}}})
			return
		}
		if status == http.StatusNoContent {
			w.WriteHeader(status)
			return
		}
		writeJSON(w, status, value)
	})
}

func (t *tagRequest) serve(r *http.Request, body []byte) (any, int, *tagError) {
	kind, id, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, taggingPath), "/")
	action := r.URL.Query().Get("action")
	switch kind + " " + r.Method + " " + action {
	case "category GET ", "tag GET ":
		if id != "" {
			return t.object(kind, id)
		}
		return t.list(kind)
	case "category POST ", "tag POST ":
		return t.create(kind, body)
	case "tag POST list-tags-for-category":
		var given struct {
			Category string `json:"category_id"`
		}
		if err := json.Unmarshal(body, &given); err != nil {
			return nil, 0, &tagError{http.StatusBadRequest, "INVALID_ARGUMENT", err.Error()}
		}
		if _, _, failed := t.object("category", given.Category); failed != nil {
			return nil, 0, failed
		}
		return t.old(http.MethodPost, "tag/id:"+given.Category+"?~action="+action, nil, http.StatusOK)
	case "tag-association POST list-attached-tags", "tag-association POST list-attached-objects-on-tags",
		"tag-association POST list-attached-tags-on-objects":
		return t.old(http.MethodPost, "tag-association?~action="+action, body, http.StatusOK)
	case "tag-association POST attach-multiple-tags-to-object":
		return t.attach(body)
	case "tag-association POST detach-multiple-tags-from-object":
		return t.detach(body)
	}
	return nil, 0, &tagError{http.StatusNotFound, "NOT_FOUND", r.Method + " " + r.URL.String()}
}

// list gives an empty list where the simulator gives nothing.
func (t *tagRequest) list(kind string) (any, int, *tagError) {
	return t.old(http.MethodGet, kind, nil, http.StatusOK)
}

func (t *tagRequest) object(kind, id string) (any, int, *tagError) {
	if decoded, err := url.PathUnescape(id); err == nil {
		id = decoded
	}
	return t.old(http.MethodGet, kind+"/id:"+id, nil, http.StatusOK)
}

// create asks for all that vCenter asks for.
func (t *tagRequest) create(kind string, body []byte) (any, int, *tagError) {
	var given map[string]any
	_ = json.Unmarshal(body, &given)
	needed := map[string][]string{"category": {"name", "description", "cardinality", "associable_types"}, "tag": {"name", "description", "category_id"}}
	for _, key := range needed[kind] {
		if _, there := given[key]; !there {
			return nil, 0, &tagError{http.StatusBadRequest, "INVALID_ARGUMENT", "no " + key}
		}
	}
	wrapped, _ := json.Marshal(map[string]any{"create_spec": given})
	return t.old(http.MethodPost, kind, wrapped, http.StatusCreated)
}

// attach also looks at what the categories allow, which the simulator does not.
func (t *tagRequest) attach(body []byte) (any, int, *tagError) {
	var given struct {
		Object map[string]string `json:"object_id"`
		Tags   []string          `json:"tag_ids"`
	}
	if err := json.Unmarshal(body, &given); err != nil {
		return nil, 0, &tagError{http.StatusBadRequest, "INVALID_ARGUMENT", err.Error()}
	}
	encoded, _ := json.Marshal(map[string]any{"object_id": given.Object})
	there, _, failed := t.old(http.MethodPost, "tag-association?~action=list-attached-tags", encoded, http.StatusOK)
	if failed != nil {
		return nil, 0, failed
	}
	taken := map[string]string{}
	for _, id := range there.([]any) {
		taken[t.field("tag", id.(string), "category_id")] = id.(string)
	}
	var errors []any
	for _, id := range given.Tags {
		category := t.field("tag", id, "category_id")
		if other := taken[category]; other != "" && other != id && t.field("category", category, "cardinality") == "SINGLE" {
			errors = append(errors, map[string]any{"id": "cis.tagging.cardinality.violation.error", "args": []string{},
				"default_message": fmt.Sprintf("%s has a tag of this category already", given.Object["id"])})
		}
		taken[category] = id
	}
	if errors != nil {
		return map[string]any{"success": false, "error_messages": errors}, http.StatusOK, nil
	}
	return t.old(http.MethodPost, "tag-association?~action=attach-multiple-tags-to-object", body, http.StatusOK)
}

// detach takes tags off one by one: the simulator's way for several leaves them listed.
func (t *tagRequest) detach(body []byte) (any, int, *tagError) {
	var given struct {
		Object map[string]string `json:"object_id"`
		Tags   []string          `json:"tag_ids"`
	}
	if err := json.Unmarshal(body, &given); err != nil {
		return nil, 0, &tagError{http.StatusBadRequest, "INVALID_ARGUMENT", err.Error()}
	}
	encoded, _ := json.Marshal(map[string]any{"object_id": given.Object})
	for _, id := range given.Tags {
		if _, _, failed := t.old(http.MethodPost, "tag-association/id:"+id+"?~action=detach", encoded, http.StatusOK); failed != nil {
			return map[string]any{"success": false, "error_messages": []any{
				map[string]any{"id": "cis.tagging.objectNotFound.error", "default_message": failed.text, "args": []string{}}}}, http.StatusOK, nil
		}
	}
	return map[string]any{"success": true}, http.StatusOK, nil
}

func (t *tagRequest) field(kind, id, name string) string {
	object, _, failed := t.object(kind, id)
	if failed != nil {
		return ""
	}
	value, _ := object.(map[string]any)[name].(string)
	return value
}

// old asks the simulator at the old paths.
func (t *tagRequest) old(method, path string, body []byte, status int) (any, int, *tagError) {
	request := httptest.NewRequest(method, oldTagging+path, bytes.NewReader(body))
	request.Header.Set("vmware-api-session-id", t.session)
	answer := httptest.NewRecorder()
	t.mux.ServeHTTP(answer, request)
	text := strings.TrimSpace(answer.Body.String())
	switch {
	case answer.Code == http.StatusUnauthorized:
		return nil, 0, &tagError{answer.Code, "UNAUTHENTICATED", "no session"}
	case answer.Code == http.StatusNotFound:
		return nil, 0, &tagError{answer.Code, "NOT_FOUND", path}
	case answer.Code != http.StatusOK && strings.Contains(text, "already_exists"):
		return nil, 0, &tagError{http.StatusBadRequest, "ALREADY_EXISTS", path}
	case answer.Code != http.StatusOK:
		return nil, 0, &tagError{answer.Code, "INVALID_ARGUMENT", text}
	}
	var wrapped struct {
		Value any `json:"value"`
	}
	_ = json.Unmarshal(answer.Body.Bytes(), &wrapped)
	if wrapped.Value == nil {
		wrapped.Value = []any{}
	}
	return wrapped.Value, status, nil
}
