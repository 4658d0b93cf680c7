// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"github.com/vmware/govmomi/pbm/methods"
	pbm "github.com/vmware/govmomi/pbm/simulator"
	"github.com/vmware/govmomi/pbm/types"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	vim "github.com/vmware/govmomi/vim25/types"
)

// pbmSDK is the other path of the service.
const pbmSDK = "/pbm/sdk"

// policies are the storage policies: the simulator's, with the first class disks that have them.
type policies struct {
	*pbm.ProfileManager
	s *sim
}

// pbmRegistry are the managed objects of the policy service.
func (s *sim) pbmRegistry() *simulator.Registry {
	r := pbm.New()
	manager := vim.ManagedObjectReference{Type: "PbmProfileProfileManager", Value: "ProfileManager"}
	s.policies = &policies{r.Get(manager).(*pbm.ProfileManager), s}
	r.Put(s.policies)
	return r
}

// id finds a policy by its ID or its name.
func (p *policies) id(name string) (string, bool) {
	ctx := p.s.context()
	found, known := "", false
	p.s.pbm.WithLock(ctx, p.ProfileManager, func() {
		for _, resource := range []string{"STORAGE", "DATASERVICE"} {
			all := p.PbmQueryProfile(&types.PbmQueryProfile{ResourceType: types.PbmProfileResourceType{ResourceType: resource}})
			profiles := all.(*methods.PbmQueryProfileBody).Res.Returnval
			if len(profiles) == 0 {
				continue
			}
			content := p.PbmRetrieveContent(&types.PbmRetrieveContent{ProfileIds: profiles}).(*methods.PbmRetrieveContentBody)
			for _, profile := range content.Res.Returnval {
				if own := profile.GetPbmProfile(); own.ProfileId.UniqueId == name || own.Name == name {
					found, known = own.ProfileId.UniqueId, true
				}
			}
		}
	})
	return found, known
}

// of are the policies of an object: a first class disk is asked for by its ID as the UUID of a virtual disk.
func (p *policies) of(object types.PbmServerObjectRef) []types.PbmProfileId {
	if object.ObjectType != string(types.PbmObjectTypeVirtualDiskUUID) {
		return nil
	}
	f, fault := p.s.findFCD(vim.ID{Id: object.Key}, nil)
	if fault != nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.policy == "" {
		return nil
	}
	return []types.PbmProfileId{{UniqueId: f.policy}}
}

func (p *policies) PbmQueryAssociatedProfile(req *types.PbmQueryAssociatedProfile) soap.HasFault {
	return &methods.PbmQueryAssociatedProfileBody{Res: &types.PbmQueryAssociatedProfileResponse{Returnval: p.of(req.Entity)}}
}

func (p *policies) PbmQueryAssociatedProfiles(req *types.PbmQueryAssociatedProfiles) soap.HasFault {
	res := new(types.PbmQueryAssociatedProfilesResponse)
	for _, object := range req.Entities {
		res.Returnval = append(res.Returnval, types.PbmQueryProfileResult{Object: object, ProfileId: p.of(object)})
	}
	return &methods.PbmQueryAssociatedProfilesBody{Res: res}
}
