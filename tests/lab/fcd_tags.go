// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator" // keeps categories and tags
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	vim "github.com/vmware/govmomi/vim25/types"
	vslmMethods "github.com/vmware/govmomi/vslm/methods"
	"github.com/vmware/govmomi/vslm/types"
)

// The simulator keeps tags, but does not ask whether what they are on exists.

func (m *labStore) AttachTagToVStorageObject(ctx *simulator.Context, req *vim.AttachTagToVStorageObject) soap.HasFault {
	if _, fault := m.s.findFCD(req.Id, nil); fault != nil {
		return &methods.AttachTagToVStorageObjectBody{Fault_: refuse(fault, "")}
	}
	return m.VcenterVStorageObjectManager.AttachTagToVStorageObject(ctx, req)
}

func (m *labStore) DetachTagFromVStorageObject(ctx *simulator.Context, req *vim.DetachTagFromVStorageObject) soap.HasFault {
	if _, fault := m.s.findFCD(req.Id, nil); fault != nil {
		return &methods.DetachTagFromVStorageObjectBody{Fault_: refuse(fault, "")}
	}
	return m.VcenterVStorageObjectManager.DetachTagFromVStorageObject(ctx, req)
}

func (m *labStore) ListTagsAttachedToVStorageObject(ctx *simulator.Context, req *vim.ListTagsAttachedToVStorageObject) soap.HasFault {
	if _, fault := m.s.findFCD(req.Id, nil); fault != nil {
		return &methods.ListTagsAttachedToVStorageObjectBody{Fault_: refuse(fault, "")}
	}
	body := m.VcenterVStorageObjectManager.ListTagsAttachedToVStorageObject(ctx, req).(*methods.ListTagsAttachedToVStorageObjectBody)
	if body.Res == nil || len(body.Res.Returnval) == 0 {
		return body
	}
	if err := m.s.nameCategories(body.Res.Returnval); err != nil {
		return &methods.ListTagsAttachedToVStorageObjectBody{Fault_: refuse(&vim.SystemError{Reason: err.Error()}, "")}
	}
	return body
}

// nameCategories puts the category's name where the simulator gives its ID.
func (s *sim) nameCategories(entries []vim.VslmTagEntry) error {
	service, err := s.tagging()
	if err != nil {
		return err
	}
	defer service.leave()
	names, err := service.categories()
	for i := range entries {
		entries[i].ParentCategoryName = names[entries[i].ParentCategoryName]
	}
	return err
}

// store is the other API, which VSLM's answers about tags come from.
func (m *vslmStore) store(ctx *simulator.Context) (*labStore, *simulator.Context) {
	return &labStore{m.s.reg.VStorageObjectManager(), m.s}, ctx.For(vim25.Path)
}

func (m *vslmStore) VslmAttachTagToVStorageObject(ctx *simulator.Context, req *types.VslmAttachTagToVStorageObject) soap.HasFault {
	store, own := m.store(ctx)
	body := store.AttachTagToVStorageObject(own, &vim.AttachTagToVStorageObject{Id: req.Id, Category: req.Category, Tag: req.Tag})
	if fault := body.Fault(); fault != nil {
		return &vslmMethods.VslmAttachTagToVStorageObjectBody{Fault_: fault}
	}
	return &vslmMethods.VslmAttachTagToVStorageObjectBody{Res: new(types.VslmAttachTagToVStorageObjectResponse)}
}

func (m *vslmStore) VslmDetachTagFromVStorageObject(ctx *simulator.Context, req *types.VslmDetachTagFromVStorageObject) soap.HasFault {
	store, own := m.store(ctx)
	body := store.DetachTagFromVStorageObject(own, &vim.DetachTagFromVStorageObject{Id: req.Id, Category: req.Category, Tag: req.Tag})
	if fault := body.Fault(); fault != nil {
		return &vslmMethods.VslmDetachTagFromVStorageObjectBody{Fault_: fault}
	}
	return &vslmMethods.VslmDetachTagFromVStorageObjectBody{Res: new(types.VslmDetachTagFromVStorageObjectResponse)}
}

func (m *vslmStore) VslmListTagsAttachedToVStorageObject(ctx *simulator.Context, req *types.VslmListTagsAttachedToVStorageObject) soap.HasFault {
	store, own := m.store(ctx)
	body := store.ListTagsAttachedToVStorageObject(own, &vim.ListTagsAttachedToVStorageObject{Id: req.Id})
	if fault := body.Fault(); fault != nil {
		return &vslmMethods.VslmListTagsAttachedToVStorageObjectBody{Fault_: fault}
	}
	return &vslmMethods.VslmListTagsAttachedToVStorageObjectBody{Res: &types.VslmListTagsAttachedToVStorageObjectResponse{
		Returnval: body.(*methods.ListTagsAttachedToVStorageObjectBody).Res.Returnval}}
}

func (m *vslmStore) VslmListVStorageObjectsAttachedToTag(ctx *simulator.Context, req *types.VslmListVStorageObjectsAttachedToTag) soap.HasFault {
	store, own := m.store(ctx)
	body := store.ListVStorageObjectsAttachedToTag(own, &vim.ListVStorageObjectsAttachedToTag{Category: req.Category, Tag: req.Tag})
	if fault := body.Fault(); fault != nil {
		return &vslmMethods.VslmListVStorageObjectsAttachedToTagBody{Fault_: fault}
	}
	return &vslmMethods.VslmListVStorageObjectsAttachedToTagBody{Res: &types.VslmListVStorageObjectsAttachedToTagResponse{
		Returnval: body.(*methods.ListVStorageObjectsAttachedToTagBody).Res.Returnval}}
}

// tagging is the REST service in which the simulator keeps categories and tags, asked in process:
// clients' requests are counted, these are not.
type tagging struct {
	mux     http.Handler
	session string
}

func (s *sim) tagging() (*tagging, error) {
	t := &tagging{mux: s.service.ServeMux}
	request := httptest.NewRequest(http.MethodPost, "/rest/com/vmware/cis/session", nil)
	request.SetBasicAuth(s.user, s.password)
	return t, t.do(request, &t.session)
}

// call sends a request and decodes the answer's value.
func (t *tagging) call(method, path string, body, value any) error {
	encoded, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request := httptest.NewRequest(method, "/rest/com/vmware/cis/"+path, bytes.NewReader(encoded))
	request.Header.Set("vmware-api-session-id", t.session)
	return t.do(request, value)
}

func (t *tagging) do(request *http.Request, value any) error {
	answer := httptest.NewRecorder()
	t.mux.ServeHTTP(answer, request)
	if answer.Code != http.StatusOK {
		return fmt.Errorf("%s: %d %s", request.URL.Path, answer.Code, answer.Body)
	}
	return json.Unmarshal(answer.Body.Bytes(), &struct {
		Value any `json:"value"`
	}{value})
}

func (t *tagging) leave() { _ = t.call(http.MethodDelete, "session", nil, new(any)) }

// categories are the names of all categories by ID.
func (t *tagging) categories() (map[string]string, error) {
	var known []string
	names := map[string]string{}
	if err := t.call(http.MethodGet, "tagging/category", nil, &known); err != nil {
		return nil, err
	}
	for _, id := range known {
		var category struct {
			Name string `json:"name"`
		}
		if err := t.call(http.MethodGet, "tagging/category/id:"+id, nil, &category); err != nil {
			return nil, err
		}
		names[id] = category.Name
	}
	return names, nil
}

// createTagVerb makes a tag, and its category if there is none, as an administrator would.
func (s *sim) createTagVerb(p struct {
	Category string `json:"category"`
	Name     string `json:"name"`
}) (any, error) {
	service, err := s.tagging()
	if err != nil {
		return nil, err
	}
	defer service.leave()
	names, err := service.categories()
	if err != nil {
		return nil, err
	}
	category := ""
	for id, name := range names {
		if name == p.Category {
			category = id
		}
	}
	type spec map[string]any
	if category == "" {
		given := spec{"create_spec": spec{"name": p.Category, "description": "", "cardinality": "MULTIPLE", "associable_types": []string{}}}
		if err := service.call(http.MethodPost, "tagging/category", given, &category); err != nil {
			return nil, err
		}
	}
	var made string
	given := spec{"create_spec": spec{"name": p.Name, "description": "", "category_id": category}}
	return made, service.call(http.MethodPost, "tagging/tag", given, &made)
}
