// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"context"
	"net/url"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vapi/rest"
	_ "github.com/vmware/govmomi/vapi/simulator" // keeps categories and tags
	"github.com/vmware/govmomi/vapi/tags"
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
	return m.VcenterVStorageObjectManager.ListTagsAttachedToVStorageObject(ctx, req)
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

// createTagVerb makes a tag, and its category if there is none, as an administrator would.
func (s *sim) createTagVerb(p struct {
	Category string `json:"category"`
	Name     string `json:"name"`
}) (any, error) {
	ctx := context.Background()
	address, err := url.Parse(s.ready.URL)
	if err != nil {
		return nil, err
	}
	client, err := govmomi.NewClient(ctx, address, true)
	if err != nil {
		return nil, err
	}
	session := rest.NewClient(client.Client)
	if err := session.Login(ctx, url.UserPassword(s.user, s.password)); err != nil {
		return nil, err
	}
	defer func() { _ = session.Logout(ctx) }()
	manager := tags.NewManager(session)
	category := p.Category
	if known, err := manager.GetCategory(ctx, p.Category); err == nil {
		category = known.ID
	} else if category, err = manager.CreateCategory(ctx, &tags.Category{Name: p.Category, Cardinality: "MULTIPLE"}); err != nil {
		return nil, err
	}
	return manager.CreateTag(ctx, &tags.Tag{Name: p.Name, CategoryID: category})
}
