// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vslm"
	vslmtypes "github.com/vmware/govmomi/vslm/types"
)

// volume is a first class disk and a VM that may have it, together with what both must hold.
type volume struct {
	t   *testing.T
	s   *sim
	f   *fcd
	vm  *simulator.VirtualMachine
	now []byte
	own map[string][]byte                       // content of its snapshots
	vms map[types.ManagedObjectReference][]byte // content of the VM's snapshots that hold it
}

const volumeSize = mebibyte

func newVolume(t *testing.T, trackedVM bool) *volume {
	s := newTestSim(t)
	vm, err := s.makeVM(vmSpec{Name: "w", Tracking: trackedVM, Disks: []diskSpec{{Size: block}}})
	if err != nil {
		t.Fatal(err)
	}
	backing := &types.VslmCreateSpecDiskFileBackingSpec{}
	backing.Datastore = s.reg.Any("Datastore").Reference()
	f, fault := s.createFCD(&types.VslmCreateSpec{Name: "v", CapacityInMB: volumeSize / mebibyte, BackingSpec: backing})
	v := &volume{t: t, s: s, f: f, vm: vm, now: make([]byte, volumeSize), own: map[string][]byte{}, vms: map[types.ManagedObjectReference][]byte{}}
	v.check(fault)
	v.check(s.setFlags(s.context(), f, []string{"enableChangedBlockTracking"}, true))
	return v
}

func (v *volume) check(fault types.BaseMethodFault) {
	v.t.Helper()
	if fault != nil {
		v.t.Fatal(asError(fault))
	}
}

func (v *volume) write(at int64, data []byte) {
	err := v.f.disk.change(v.f.disk.node(v.f.file), v.f.disk.track.mark, func(file *os.File, mark func(extent)) error {
		mark(extent{at, int64(len(data))})
		_, err := file.WriteAt(data, at)
		return err
	})
	if err != nil {
		v.t.Fatal(err)
	}
	copy(v.now[at:], data)
}

func (v *volume) take() {
	made, fault := v.s.snapshotFCD(v.s.context(), v.f, "s")
	v.check(fault)
	v.own[made.id.Id] = bytes.Clone(v.now)
}

func (v *volume) drop(n *fcdSnapshot) {
	v.check(v.s.dropSnapshotFCD(v.s.context(), v.f, n.id))
	delete(v.own, n.id.Id)
}

func (v *volume) takeVM() {
	ref, err := v.s.takeSnapshot(v.s.context(), v.vm, &types.CreateSnapshotEx_Task{Name: "n"}, false, 0)
	if err != nil {
		v.t.Fatal(err)
	}
	v.vms[ref] = bytes.Clone(v.now)
}

func (v *volume) dropVM(ref types.ManagedObjectReference) {
	tree, gone := without(copyTree(roots(v.vm)), ref, false)
	v.check(v.s.drop(v.s.context(), v.vm, tree, gone, nil))
	delete(v.vms, ref)
}

func (v *volume) attach() {
	ctx := v.s.context()
	ctx.WithLock(v.vm, func() { v.check(v.s.attach(ctx, v.vm, v.f, 0, nil)) })
}

func (v *volume) detach() {
	ctx := v.s.context()
	ctx.WithLock(v.vm, func() { v.check(v.s.detach(ctx, v.vm, v.f.id)) })
}

func (v *volume) revert(n *fcdSnapshot) {
	v.check(v.s.revertFCD(v.s.context(), v.f, n.id))
	v.now = bytes.Clone(v.own[n.id.Id])
	left := map[string][]byte{}
	for _, n := range v.f.snapshots {
		left[n.id.Id] = v.own[n.id.Id]
	}
	v.own = left
}

func (v *volume) holds(file string, content []byte, what string) {
	v.t.Helper()
	n := v.f.disk.node(file)
	if n == nil {
		v.t.Fatalf("%s: %s is gone", what, file)
	}
	if got, err := os.ReadFile(n.flat); err != nil || !bytes.Equal(got, content) {
		v.t.Fatalf("%s: %s has other content: %v", what, file, err)
	}
}

// verify compares all contents with the model, and the changed areas between neighbours with the
// true differences.
func (v *volume) verify() {
	v.t.Helper()
	v.holds(v.f.file, v.now, "now")
	if v.f.vm != nil {
		d, b := findDisk(v.vm.Config.Hardware.Device, v.f.key)
		if d == nil || b.file.FileName != v.f.file || d.VDiskId == nil || *d.VDiskId != v.f.id {
			v.t.Fatal("the VM and the first class disk disagree")
		}
		flat, parents := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo), v.f.disk.node(v.f.file).parents()
		for ; flat.Parent != nil && len(parents) > 0 && flat.Parent.FileName == parents[0]; flat = flat.Parent {
			parents = parents[1:]
		}
		if flat.Parent != nil || len(parents) > 0 {
			v.t.Fatal("the VM shows another chain of files")
		}
	}
	for ref, content := range v.vms {
		snapshot := v.s.reg.Get(ref).(*simulator.VirtualMachineSnapshot)
		eachDisk(snapshot.Config.Hardware.Device, func(d *types.VirtualDisk, b *backing) {
			if d.VDiskId != nil {
				v.holds(b.file.FileName, content, "a snapshot of the VM")
			}
		})
	}
	for i, n := range v.f.snapshots {
		v.holds(n.file, v.own[n.id.Id], "a snapshot")
		if i == 0 || n.changeID[:47] != v.f.snapshots[i-1].changeID[:47] {
			continue // the first, or a revert between
		}
		before := v.f.snapshots[i-1]
		answer, fault, _ := v.s.changesFCD(v.f, n.id, 0, before.changeID)
		v.check(fault)
		told := extents{}
		for _, area := range answer.ChangedArea {
			told.add(extent{area.Start, area.Length})
		}
		was, is := v.own[before.id.Id], v.own[n.id.Id]
		for at := int64(0); at < volumeSize; at += block {
			if !bytes.Equal(was[at:at+block], is[at:at+block]) && !told.covers(at) {
				v.t.Fatalf("the change at %d is not in %v", at, told)
			}
		}
	}
}

func TestFirstClassDisksKeepTheirContent(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			v, chance := newVolume(t, seed%2 == 0), rand.New(rand.NewPCG(seed, 7))
			for range 60 {
				switch snapshots, attached := v.f.snapshots, v.f.vm != nil; chance.IntN(9) {
				case 0, 1:
					v.take()
				case 2:
					if len(snapshots) > 0 {
						v.drop(snapshots[chance.IntN(len(snapshots))])
					}
				case 3:
					if len(snapshots) > 0 && !attached {
						v.revert(snapshots[chance.IntN(len(snapshots))])
					}
				case 4:
					if !attached && len(v.vms) == 0 {
						v.attach()
					} else if attached && len(v.vms) == 0 {
						v.detach()
					}
				case 5:
					if attached && len(v.vms) < 3 {
						v.takeVM()
					}
				case 6:
					if len(v.vms) > 0 {
						v.dropVM(v.s.snapshotObjects(v.vm)[chance.IntN(len(v.vms))].Self)
					}
				default:
					v.write(chance.Int64N(volumeSize-9), []byte(fmt.Sprint(chance.IntN(1_000_000))))
				}
				v.verify()
			}
			for _, snapshot := range v.s.snapshotObjects(v.vm) {
				v.dropVM(snapshot.Self)
			}
			for len(v.f.snapshots) > 0 {
				v.drop(v.f.snapshots[0])
			}
			v.verify()
			if v.f.disk.files() != 1 {
				t.Fatalf("%d files are left", v.f.disk.files())
			}
		})
	}
}

func TestOthersMayAskAboutADiskAtWork(t *testing.T) {
	v := newVolume(t, true)
	v.take()
	first := v.f.snapshots[0]
	stop, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		for {
			select {
			case <-stop:
				return
			default:
			}
			v.s.tell(v.f)
			v.s.fcdRecord(v.f)
			if _, fault, _ := v.s.changesFCD(v.f, first.id, 0, "*"); fault != nil {
				t.Error(asError(fault))
			}
			if found, refused := v.s.openDisk(opening{FCD: v.f.id.Id, Datastore: v.f.datastore.Value, Snapshot: first.id.Id}); refused != nil || found.capacity != volumeSize {
				t.Error(refused)
			}
		}
	}()
	for range 40 {
		v.attach()
		v.take()
		v.write(1, []byte("x"))
		v.detach()
		v.drop(v.f.snapshots[1])
	}
	close(stop)
	<-gone
	v.verify()
}

func TestADeletedVMTakesItsFirstClassDisksUnlessTheyAreKept(t *testing.T) {
	for _, keep := range []bool{false, true} {
		v := newVolume(t, true)
		v.f.keep = keep
		v.write(1, []byte("content"))
		v.take()
		v.attach()
		v.takeVM()
		v.write(9, []byte("more"))
		v.check(v.s.destroy(v.s.context(), v.vm))
		_, fault := v.s.findFCD(v.f.id, nil)
		if !keep {
			if fault == nil || v.f.disk.files() != 0 {
				t.Fatal("it is still there")
			}
			continue
		}
		v.check(fault)
		v.vms = nil
		v.verify()
		if v.f.vm != nil || v.f.disk.files() != 2 {
			t.Fatalf("attached to %v, %d files", v.f.vm, v.f.disk.files())
		}
	}
}

func TestGovmomisClientWorksOnFirstClassDisks(t *testing.T) {
	l, client := startLab(t)
	ctx := t.Context()
	service, err := vslm.NewClient(ctx, client.Client)
	if err != nil {
		t.Fatal(err)
	}
	catalog, store := vslm.NewGlobalObjectManager(service), vslm.NewObjectManager(client.Client)
	done := func(task *vslm.Task, err error) types.AnyType {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		result, err := task.WaitNonDefault(ctx, patience, time.Millisecond, true, 50*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		return result
	}
	backing := &types.VslmCreateSpecDiskFileBackingSpec{ProvisioningType: "thin"}
	backing.Datastore = l.reg.Any("Datastore").Reference()
	made := done(catalog.CreateDisk(ctx, types.VslmCreateSpec{Name: "v", CapacityInMB: 4, BackingSpec: backing})).(types.VStorageObject)
	id := made.Config.Id
	if err := catalog.SetControlFlags(ctx, id, []string{"enableChangedBlockTracking"}); err != nil {
		t.Fatal(err)
	}
	first := done(catalog.CreateSnapshot(ctx, id, "first")).(types.ID)
	control(t, l, "write", diskParams{FCD: id.Id, Offset: 3 * block, Data: []byte("x")}, nil)
	second := done(catalog.CreateSnapshot(ctx, id, "second")).(types.ID)
	details, err := catalog.RetrieveSnapshotDetails(ctx, id, first)
	if err != nil {
		t.Fatal(err)
	}
	changed, err := catalog.QueryChangedDiskAreas(ctx, id, second, 0, details.ChangedBlockTrackingId)
	if want := (types.DiskChangeExtent{Start: 3 * block, Length: block}); err != nil || len(changed.ChangedArea) != 1 || changed.ChangedArea[0] != want {
		t.Fatal(changed, err)
	}
	query := vslmtypes.VslmVsoVStorageObjectQuerySpec{QueryField: "name", QueryOperator: "equals", QueryValue: []string{"v"}}
	found, err := catalog.ListObjectsForSpec(ctx, []vslmtypes.VslmVsoVStorageObjectQuerySpec{query}, 10)
	if err != nil || !found.AllRecordsReturned || len(found.Id) != 1 || found.Id[0] != id {
		t.Fatal(found, err)
	}
	if err := catalog.Rename(ctx, id, "renamed"); err != nil {
		t.Fatal(err)
	}
	other, err := store.Retrieve(ctx, backing.Datastore, id.Id)
	if err != nil || other.Config.Name != "renamed" || !*other.Config.ChangedBlockTrackingEnabled {
		t.Fatal(other, err)
	}
	done(catalog.DeleteSnapshot(ctx, id, first))
	done(catalog.DeleteSnapshot(ctx, id, second))
	done(catalog.Delete(ctx, id))
	if left, err := store.List(ctx, backing.Datastore); err != nil || len(left) != 0 {
		t.Fatal(left, err)
	}
}
