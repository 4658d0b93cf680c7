// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

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
	r.Put(&compliance{vim.ManagedObjectReference{Type: "PbmComplianceManager", Value: "complianceManager"}})
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

// of are the policies of an object: a first class disk is asked for by its ID as the UUID of a virtual disk, the home of
// a VM by the VM's managed object ID, a disk of a VM by that and its device key.
func (p *policies) of(object types.PbmServerObjectRef) (found []types.PbmProfileId, fault vim.BaseMethodFault) {
	policy, known := "", false
	switch types.PbmObjectType(object.ObjectType) {
	case types.PbmObjectTypeVirtualDiskUUID:
		if f, unknown := p.s.findFCD(vim.ID{Id: object.Key}, nil); unknown == nil {
			f.mu.Lock()
			policy, known = f.policy, true
			f.mu.Unlock()
		} else {
			known = true // of another disk than a first class one nothing is said
		}
	case types.PbmObjectTypeVirtualMachine:
		if known = p.s.vm(vmRef(object.Key)) != nil; known {
			policy = p.s.homePolicy(object.Key)
		}
	case types.PbmObjectTypeVirtualDiskId:
		moid, key, _ := strings.Cut(object.Key, ":")
		_, err := p.s.locked(moid, func(_ *simulator.Context, vm *simulator.VirtualMachine) (any, error) {
			eachDisk(vm.Config.Hardware.Device, func(d *vim.VirtualDisk, b *backing) {
				if owner := p.s.owner(d, b); owner != nil && key == strconv.Itoa(int(d.Key)) {
					policy, known = owner.policyID(), true
				}
			})
			return nil, nil
		})
		known = known && err == nil
	}
	if !known {
		return nil, &vim.InvalidArgument{InvalidProperty: "entity"}
	}
	if policy != "" {
		found = []types.PbmProfileId{{UniqueId: policy}}
	}
	return found, nil
}

func (p *policies) PbmQueryAssociatedProfile(req *types.PbmQueryAssociatedProfile) soap.HasFault {
	found, fault := p.of(req.Entity)
	if fault != nil {
		return &methods.PbmQueryAssociatedProfileBody{Fault_: refuse(fault, "")}
	}
	return &methods.PbmQueryAssociatedProfileBody{Res: &types.PbmQueryAssociatedProfileResponse{Returnval: found}}
}

func (p *policies) PbmQueryAssociatedProfiles(req *types.PbmQueryAssociatedProfiles) soap.HasFault {
	res := new(types.PbmQueryAssociatedProfilesResponse)
	for _, object := range req.Entities {
		found, fault := p.of(object)
		result := types.PbmQueryProfileResult{Object: object, ProfileId: found}
		if fault != nil {
			result.Fault = &vim.LocalizedMethodFault{Fault: fault, LocalizedMessage: faultName(fault)}
		}
		res.Returnval = append(res.Returnval, result)
	}
	return &methods.PbmQueryAssociatedProfilesBody{Res: res}
}

// compliance tells that everything is as its policy wants it.
type compliance struct {
	vim.ManagedObjectReference
}

func (*compliance) PbmFetchComplianceResult(req *types.PbmFetchComplianceResult) soap.HasFault {
	res := new(types.PbmFetchComplianceResultResponse)
	for _, object := range req.Entities {
		res.Returnval = append(res.Returnval, types.PbmComplianceResult{CheckTime: time.Now(), Entity: object,
			ComplianceStatus: string(types.PbmComplianceStatusCompliant)})
	}
	return &methods.PbmFetchComplianceResultBody{Res: res}
}

// profile reads a requirement of a VM's home or disk: the ID of a policy, or none for the datastore's default.
func (p *policies) profile(specs []vim.BaseVirtualMachineProfileSpec) (id string, ok bool) {
	if len(specs) != 1 {
		return "", false
	}
	switch spec := specs[0].(type) {
	case *vim.VirtualMachineDefinedProfileSpec:
		id, known := p.id(spec.ProfileId)
		return id, known && id == spec.ProfileId
	case *vim.VirtualMachineDefaultProfileSpec, *vim.VirtualMachineEmptyProfileSpec:
		return "", true
	}
	return "", false
}

// require writes a requirement for the policy of that name or ID; none without one.
func (p *policies) require(name string) ([]vim.BaseVirtualMachineProfileSpec, error) {
	if name == "" {
		return nil, nil
	}
	id, known := p.id(name)
	if !known {
		return nil, fmt.Errorf("no policy %q", name)
	}
	return []vim.BaseVirtualMachineProfileSpec{&vim.VirtualMachineDefinedProfileSpec{ProfileId: id}}, nil
}

// homePolicy is the ID of the policy of a VM's home, or empty.
func (s *sim) homePolicy(moid string) string {
	policy, _ := s.homes.Load(moid)
	id, _ := policy.(string)
	return id
}

// policyID is the ID of the disk's policy, or empty.
func (d *disk) policyID() string {
	if f := d.fcd.Load(); f != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.policy
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.policy
}

func (d *disk) setPolicy(id string) {
	if f := d.fcd.Load(); f != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.policy = id
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.policy = id
}

// applyPolicies gives a VM's home and disks the policies that a specification asks for.
func (s *sim) applyPolicies(vm *simulator.VirtualMachine, p *preparation) {
	if p.home != nil {
		s.homes.Store(vm.Self.Value, *p.home)
	}
	eachDisk(vm.Config.Hardware.Device, func(d *vim.VirtualDisk, b *backing) {
		if id, asked := p.policies[d.Key]; asked {
			if owner := s.owner(d, b); owner != nil {
				owner.setPolicy(id)
			}
		}
	})
}
