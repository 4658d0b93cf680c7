// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"cmp"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

const mebibyte = 1 << 20

// fcd is a first class disk: a disk with an identity, which may belong to no VM. Its bytes, files
// and change tracking are those of its disk, as for a VM's.
type fcd struct {
	id           types.ID
	created      time.Time
	datastore    types.ManagedObjectReference
	disk         *disk
	provisioning string
	backingID    string

	mu        sync.Mutex // after a VM's lock, before the disk's
	name      string
	file      string // the datastore path that its user writes to
	keep      bool   // when its VM is deleted
	pinned    bool   // relocation disabled
	tracked   bool   // change tracking enabled
	metadata  []types.KeyValue
	policy    string // ID of the storage policy
	snapshots []*fcdSnapshot
	consumers []types.ID                    // others than the VM
	vm        *types.ManagedObjectReference // that it is attached to
	key       int32                         // of the VM's device
	tags      map[string]bool
}

// fcdSnapshot is one moment of a first class disk.
type fcdSnapshot struct {
	id          types.ID
	backingID   string
	created     time.Time
	description string
	file        string // frozen
	changeID    string
	metadata    []types.KeyValue
}

// fcds is the catalog of all first class disks.
type fcds struct {
	mu   sync.Mutex
	byID map[string]*fcd
}

// all lists the first class disks of a datastore, or of all, by ID.
func (c *fcds) all(datastore *types.ManagedObjectReference) (out []*fcd) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.byID {
		if datastore == nil || f.datastore == *datastore {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b *fcd) int { return cmp.Compare(a.id.Id, b.id.Id) })
	return out
}

// find looks up a first class disk on a datastore, or on any.
func (s *sim) findFCD(id types.ID, datastore *types.ManagedObjectReference) (*fcd, types.BaseMethodFault) {
	if datastore != nil {
		if _, fault := s.datastore(*datastore); fault != nil {
			return nil, fault
		}
	}
	s.fcds.mu.Lock()
	defer s.fcds.mu.Unlock()
	f := s.fcds.byID[id.Id]
	if f == nil || datastore != nil && f.datastore != *datastore {
		return nil, &types.NotFound{}
	}
	return f, nil
}

func (s *sim) datastore(ref types.ManagedObjectReference) (*simulator.Datastore, types.BaseMethodFault) {
	if datastore, ok := s.reg.Get(ref).(*simulator.Datastore); ok {
		return datastore, nil
	}
	return nil, &types.InvalidDatastore{Datastore: &ref}
}

// enter adds a first class disk over a disk to the catalog.
func (s *sim) enter(f *fcd) {
	f.created = time.Now().UTC()
	f.backingID = uuid.NewString()
	f.disk.fcd.Store(f)
	s.fcds.mu.Lock()
	defer s.fcds.mu.Unlock()
	s.fcds.byID[f.id.Id] = f
}

// leave takes a first class disk out of the catalog; its files stay.
func (s *sim) leave(f *fcd) {
	f.disk.fcd.Store(nil)
	s.fcds.mu.Lock()
	defer s.fcds.mu.Unlock()
	delete(s.fcds.byID, f.id.Id)
}

// createFCD makes an empty first class disk.
func (s *sim) createFCD(spec *types.VslmCreateSpec) (*fcd, types.BaseMethodFault) {
	if spec.CapacityInMB < 1 {
		return nil, &types.InvalidArgument{InvalidProperty: "spec.capacityInMB"}
	}
	f, fault := s.makeFCD(spec.Name, spec.BackingSpec, spec.CapacityInMB*mebibyte)
	if fault != nil {
		return nil, fault
	}
	f.keep = spec.KeepAfterDeleteVm != nil && *spec.KeepAfterDeleteVm
	f.metadata = merged(nil, spec.Metadata, nil)
	if fault := s.setPolicy(f, spec.Profile); fault != nil {
		s.disks.removeAll(f.disk)
		return nil, fault
	}
	s.enter(f)
	return f, nil
}

// makeFCD makes the files of a first class disk, which is not yet in the catalog.
func (s *sim) makeFCD(name string, backing types.BaseVslmCreateSpecBackingSpec, capacity int64) (*fcd, types.BaseMethodFault) {
	if name == "" {
		return nil, &types.InvalidArgument{InvalidProperty: "spec.name"}
	}
	spec, ok := backing.(*types.VslmCreateSpecDiskFileBackingSpec)
	if !ok {
		return nil, &types.InvalidArgument{InvalidProperty: "spec.backingSpec"}
	}
	datastore, fault := s.datastore(spec.Datastore)
	if fault != nil {
		return nil, fault
	}
	provisioning := cmp.Or(spec.ProvisioningType, string(types.BaseConfigInfoDiskFileBackingInfoProvisioningTypeThin))
	if !slices.Contains(types.BaseConfigInfoDiskFileBackingInfoProvisioningType("").Strings(), provisioning) {
		return nil, &types.InvalidArgument{InvalidProperty: "spec.backingSpec.provisioningType"}
	}
	id := uuid.NewString()
	place := cmp.Or(spec.Path, "fcd")
	if path.Ext(place) != ".vmdk" {
		place = path.Join(place, strings.ReplaceAll(id, "-", "")+".vmdk")
	}
	file := fmt.Sprintf("[%s] %s", datastore.Name, place)
	if s.disks.find(file) != nil {
		return nil, &types.FileAlreadyExists{FileFault: types.FileFault{File: file}}
	}
	made, err := s.disks.open(file, backingUUID(), capacity)
	if err == nil {
		err = s.disks.describe(made.nodes[file])
	}
	if err != nil {
		return nil, &types.FileFault{File: file}
	}
	return &fcd{id: types.ID{Id: id}, name: name, datastore: datastore.Self, disk: made, file: file, provisioning: provisioning}, nil
}

// describe writes the descriptor that belongs to a file's bytes.
func (d *disks) describe(n *node) error {
	text := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\n"+
		"# Extent description\nRW %d VMFS \"%s\"\n", n.capacity/512, path.Base(n.flat))
	return os.WriteFile(d.descriptor(n), []byte(text), 0o600)
}

// copyFCD makes a first class disk with the bytes of another one, or of one of its snapshots. What
// completes it before it enters the catalog is left to the caller.
func (s *sim) copyFCD(name string, backing types.BaseVslmCreateSpecBackingSpec, from *fcd, snapshot *types.ID, complete func(*fcd) types.BaseMethodFault) (made *fcd, fault types.BaseMethodFault) {
	missing := from.in(snapshot, func(file, _ string) {
		source := from.disk.node(file)
		if made, fault = s.makeFCD(name, backing, source.capacity); fault != nil {
			return
		}
		from.disk.mu.Lock()
		defer from.disk.mu.Unlock()
		if err := sparseCopy(source.flat, made.disk.nodes[made.file].flat); err != nil {
			fault = &types.FileFault{File: file}
		} else {
			fault = complete(made)
		}
		if fault != nil {
			s.disks.removeAll(made.disk)
		}
	})
	if missing != nil {
		return nil, missing
	}
	if fault == nil {
		s.enter(made)
	}
	return made, fault
}

// object is what the API tells of a first class disk.
func (f *fcd) object(consumer string) types.VStorageObject {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out types.VStorageObject
	n := f.disk.node(f.file)
	backing := &types.BaseConfigInfoDiskFileBackingInfo{ProvisioningType: f.provisioning}
	backing.Datastore, backing.FilePath, backing.BackingObjectId = f.datastore, f.file, f.backingID
	c := &out.Config
	c.Id, c.Name, c.CreateTime, c.Backing = f.id, f.name, f.created, backing
	c.KeepAfterDeleteVm, c.RelocationDisabled = types.NewBool(f.keep), types.NewBool(f.pinned)
	c.NativeSnapshotSupported, c.ChangedBlockTrackingEnabled = types.NewBool(false), types.NewBool(f.tracked)
	c.Metadata = slices.Clone(f.metadata)
	c.CapacityInMB, c.ConsumptionType = n.capacity/mebibyte, []string{"disk"}
	c.ConsumerId = slices.Clone(f.consumers)
	if consumer != "" {
		c.ConsumerId = append(c.ConsumerId, types.ID{Id: consumer})
	}
	return out
}

// tell is object with the VM that has it.
func (s *sim) tell(f *fcd) types.VStorageObject {
	vm, _ := s.consumer(f)
	return f.object(vm)
}

// consumer is the ID under which the VM that a first class disk is attached to is known, or "", and
// the key of its device.
func (s *sim) consumer(f *fcd) (string, int32) {
	vm := s.vmOf(f)
	if vm == nil {
		return "", 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.knobs().ConsumerID == "uuid" {
		return vm.Config.Uuid, f.key
	}
	return vm.Config.InstanceUuid, f.key
}

// vmOf is the VM that a first class disk is attached to, or nil.
func (s *sim) vmOf(f *fcd) *simulator.VirtualMachine {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.vm == nil {
		return nil
	}
	return s.vm(*f.vm)
}

// merged is metadata with some entries set and others gone, sorted by key.
func merged(old, set []types.KeyValue, gone []string) []types.KeyValue {
	all := map[string]string{}
	for _, entry := range append(slices.Clone(old), set...) {
		all[entry.Key] = entry.Value
	}
	for _, key := range gone {
		delete(all, key)
	}
	out := make([]types.KeyValue, 0, len(all))
	for key, value := range all {
		out = append(out, types.KeyValue{Key: key, Value: value})
	}
	slices.SortFunc(out, func(a, b types.KeyValue) int { return cmp.Compare(a.Key, b.Key) })
	return out
}
