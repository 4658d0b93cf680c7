// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// newTestSim is a lab without listeners.
func newTestSim(t *testing.T) *sim {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir())
	model := simulator.VPX()
	model.Machine, model.Host, model.Datastore = 0, 0, 2
	if err := model.Create(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(model.Remove)
	return newSim(model.Service, model.RootFolder.Self, options{user: "u"})
}

// seeded is a source of random choices. A test that fails tells its seed; HOLDFAST_SEED gives it again.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed, err := strconv.ParseUint(os.Getenv("HOLDFAST_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("HOLDFAST_SEED=%d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// world is a VM together with what its disks must hold, now and in each snapshot.
type world struct {
	t         *testing.T
	s         *sim
	vm        *simulator.VirtualMachine
	keys      []int32
	size      int64
	now       map[int32][]byte
	snapshots map[types.ManagedObjectReference]map[int32][]byte
	names     int
	done      []string // told if the test fails
}

func newWorld(t *testing.T, disks int, size int64) *world {
	t.Helper()
	w := &world{t: t, s: newTestSim(t), size: size, now: map[int32][]byte{}, snapshots: map[types.ManagedObjectReference]map[int32][]byte{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("after %d actions:\n%s", len(w.done), strings.Join(w.done, "\n"))
		}
	})
	spec := vmSpec{Name: "w", Tracking: true}
	for range disks {
		spec.Disks = append(spec.Disks, diskSpec{Size: size})
	}
	vm, err := w.s.makeVM(spec)
	if err != nil {
		t.Fatal(err)
	}
	w.vm = vm
	eachDisk(vm.Config.Hardware.Device, func(d *types.VirtualDisk, _ *backing) {
		w.keys = append(w.keys, d.Key)
		w.now[d.Key] = make([]byte, size)
	})
	return w
}

func (w *world) check(fault types.BaseMethodFault) {
	w.t.Helper()
	if fault != nil {
		w.t.Fatal(asError(fault))
	}
}

func (w *world) note(format string, values ...any) {
	w.done = append(w.done, fmt.Sprintf(format, values...))
}

// move is Storage vMotion of all disks.
func (w *world) move(datastore string) {
	w.t.Helper()
	w.note("move to %s", datastore)
	_, err := w.s.relocateVerb(struct {
		VM        string `json:"vm"`
		Datastore string `json:"datastore"`
	}{w.vm.Self.Value, datastore})
	if err != nil {
		w.t.Fatal(err)
	}
	eachDisk(w.vm.Config.Hardware.Device, func(_ *types.VirtualDisk, b *backing) {
		if !strings.HasPrefix(b.file.FileName, "["+datastore+"]") || !strings.HasPrefix(w.s.disks.host(b.file.FileName), w.s.disks.roots[datastore]) {
			w.t.Fatalf("%s is not on %s", b.file.FileName, datastore)
		}
	})
}

func (w *world) copyNow() map[int32][]byte {
	out := map[int32][]byte{}
	for key, data := range w.now {
		out[key] = bytes.Clone(data)
	}
	return out
}

func (w *world) owner(devices []types.BaseVirtualDevice, key int32) (*disk, *node, *backing) {
	d, b := findDisk(devices, key)
	owner, err := w.s.disks.open(b.file.FileName, *b.uuid, d.CapacityInBytes)
	if err != nil {
		w.t.Fatal(err)
	}
	return owner, owner.node(b.file.FileName), b
}

func (w *world) write(key int32, at int64, data []byte) {
	w.note("write %x to disk %d at %d", data, key, at)
	owner, n, _ := w.owner(w.vm.Config.Hardware.Device, key)
	err := owner.change(n, owner.track.mark, func(f *os.File, mark func(extent)) error {
		mark(extent{at, int64(len(data))})
		_, err := f.WriteAt(data, at)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	copy(w.now[key][at:], data)
}

func (w *world) take() types.ManagedObjectReference {
	w.names++
	ref, err := w.s.takeSnapshot(w.s.context(), w.vm, &types.CreateSnapshotEx_Task{Name: fmt.Sprint(w.names)}, false, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	w.note("took %s", ref.Value)
	w.snapshots[ref] = w.copyNow()
	return ref
}

func (w *world) remove(ref types.ManagedObjectReference, children bool, consolidate *bool) {
	w.note("remove %s, its children: %t, consolidate: %t", ref.Value, children, consolidate == nil || *consolidate)
	tree, gone := without(copyTree(roots(w.vm)), ref, children)
	w.check(w.s.drop(w.s.context(), w.vm, tree, gone, consolidate))
	for _, ref := range gone {
		delete(w.snapshots, ref)
	}
}

func (w *world) revert(ref types.ManagedObjectReference) {
	w.note("revert to %s", ref.Value)
	w.check(w.s.revert(w.s.context(), w.vm, w.s.reg.Get(ref).(*simulator.VirtualMachineSnapshot), nil, nil))
	w.now = map[int32][]byte{}
	for key, data := range w.snapshots[ref] {
		w.now[key] = bytes.Clone(data)
	}
}

// verify compares every disk of the VM and of its snapshots with the model, and every answer
// about changed areas with the true difference.
func (w *world) verify() {
	w.t.Helper()
	holders := map[string]map[int32][]byte{"": w.now}
	devices := map[string][]types.BaseVirtualDevice{"": w.vm.Config.Hardware.Device}
	for ref, content := range w.snapshots {
		snapshot, ok := w.s.reg.Get(ref).(*simulator.VirtualMachineSnapshot)
		if !ok {
			w.t.Fatalf("%s is gone", ref.Value)
		}
		holders[ref.Value], devices[ref.Value] = content, snapshot.Config.Hardware.Device
	}
	for name, content := range holders {
		for _, key := range w.keys {
			_, n, b := w.owner(devices[name], key)
			got, err := os.ReadFile(n.flat)
			if err != nil {
				w.t.Fatal(err)
			}
			if !bytes.Equal(got, content[key]) {
				w.t.Fatalf("disk %d of %q is wrong in %s", key, name, b.file.FileName)
			}
			if name != "" {
				w.verifyChanges(name, key, *b.changeID, holders, devices)
			}
		}
	}
}

func (w *world) verifyChanges(name string, key int32, to string, holders map[string]map[int32][]byte, devices map[string][]types.BaseVirtualDevice) {
	w.t.Helper()
	owner, _, _ := w.owner(devices[name], key)
	for other := range holders {
		_, _, b := w.owner(devices[other], key)
		if other == "" || *b.changeID == "" {
			continue
		}
		areas, problem := owner.track.changed(*b.changeID, to)
		if problem != 0 {
			continue // said so
		}
		for at := int64(0); at < w.size; at += block {
			if !bytes.Equal(holders[name][key][at:at+block], holders[other][key][at:at+block]) && !areas.covers(at) {
				w.t.Fatalf("disk %d, %s to %s: the change at %d is not told", key, *b.changeID, to, at)
			}
		}
	}
}

func TestRandomSnapshotsAgainstAModel(t *testing.T) {
	const size = 16 * block
	chance, w := seeded(t), newWorld(t, 2, size)
	pick := func() types.ManagedObjectReference {
		var refs []types.ManagedObjectReference
		for _, snapshot := range w.s.snapshotObjects(w.vm) {
			refs = append(refs, snapshot.Self)
		}
		return refs[chance.IntN(len(refs))]
	}
	for range 250 {
		action := chance.IntN(13)
		if len(w.snapshots) == 0 && action > 6 {
			action = 6
		}
		switch {
		case action < 5:
			data := []byte{byte(chance.IntN(256)), byte(chance.IntN(256))}
			w.write(w.keys[chance.IntN(2)], chance.Int64N(size-2), data)
		case action < 7:
			w.take()
		case action < 9:
			w.remove(pick(), chance.IntN(4) == 0, nil)
		case action == 9:
			w.remove(pick(), false, types.NewBool(false))
		case action == 10:
			w.note("consolidate")
			w.check(w.s.consolidate(w.s.context(), w.vm, w.s.owners(w.s.context(), w.vm)))
		case action == 11:
			w.move(fmt.Sprintf("LocalDS_%d", chance.IntN(2)))
		default:
			w.revert(pick())
		}
		w.verify()
	}
	w.take() // its removal folds what removals without consolidation left, even if no other snapshot is there
	for len(roots(w.vm)) > 0 {
		w.remove(roots(w.vm)[0].Snapshot, true, nil)
	}
	w.move("LocalDS_0")
	w.verify()
	for _, key := range w.keys {
		owner, n, b := w.owner(w.vm.Config.Hardware.Device, key)
		if owner.files() != 1 || n.parent != nil || len(n.path) > len("[LocalDS_0] w/w_1.vmdk") {
			t.Fatalf("disk %d ended as %s with %d files", key, b.file.FileName, owner.files())
		}
	}
	files, err := os.ReadDir(w.s.home(w.vm))
	if err != nil || len(files) != 7 { // two disks of two files, vmx, nvram, log
		t.Fatalf("left over: %v %v", files, err)
	}
}

func TestASnapshotCostsNothingUntilWritten(t *testing.T) {
	w := newWorld(t, 1, 4*block)
	w.write(w.keys[0], 0, bytes.Repeat([]byte("x"), block))
	w.take()
	frozen, _ := os.Stat(w.hostFile(t, w.snapshotDevices(t)))
	live, _ := os.Stat(w.hostFile(t, w.vm.Config.Hardware.Device))
	if !os.SameFile(frozen, live) {
		t.Fatal("the redo file was copied before it was written")
	}
	w.write(w.keys[0], 5, []byte("new"))
	if got, _ := os.ReadFile(w.hostFile(t, w.snapshotDevices(t))); bytes.Equal(got, w.now[w.keys[0]]) {
		t.Fatal("the write reached the snapshot")
	}
	w.verify()
}

func (w *world) snapshotDevices(t *testing.T) []types.BaseVirtualDevice {
	t.Helper()
	return w.s.snapshotObjects(w.vm)[0].Config.Hardware.Device
}

func (w *world) hostFile(t *testing.T, devices []types.BaseVirtualDevice) string {
	t.Helper()
	_, n, _ := w.owner(devices, w.keys[0])
	return n.flat
}

func TestTrackingBeginsWithAStun(t *testing.T) {
	s := newTestSim(t)
	vm, err := s.makeVM(vmSpec{Name: "w", Disks: []diskSpec{{Size: block}, {Size: block, Mode: "independent_persistent"}}})
	if err != nil {
		t.Fatal(err)
	}
	ids := func(devices []types.BaseVirtualDevice) (out []string) {
		eachDisk(devices, func(_ *types.VirtualDisk, b *backing) { out = append(out, *b.changeID) })
		return out
	}
	ctx := s.context()
	if f := s.reconfigure(ctx, vm, &types.VirtualMachineConfigSpec{ChangeTrackingEnabled: types.NewBool(true)}); f != nil {
		t.Fatal(asError(f))
	}
	if got := ids(vm.Config.Hardware.Device); got[0] != "" {
		t.Fatalf("tracking was active before a stun: %q", got)
	}
	take := func() *simulator.VirtualMachineSnapshot {
		ref, err := s.takeSnapshot(ctx, vm, &types.CreateSnapshotEx_Task{Name: "a"}, false, 0)
		if err != nil {
			t.Fatal(err)
		}
		return s.reg.Get(ref).(*simulator.VirtualMachineSnapshot)
	}
	if got := ids(take().Config.Hardware.Device); got[0] != "" {
		t.Fatalf("the activating snapshot has an ID: %q", got)
	}
	if got := ids(vm.Config.Hardware.Device); got[0] == "" || got[1] != "" {
		t.Fatalf("after the stun: %q", got)
	}
	if got := ids(take().Config.Hardware.Device); got[0] == "" || got[1] != "" {
		t.Fatalf("the second snapshot: %q", got)
	}
	if value, _ := extra(vm, "scsi0:0.ctkEnabled"); value != "TRUE" {
		t.Fatalf("scsi0:0.ctkEnabled is %q", value)
	}
}

func TestTrackingOfOneDiskEndsWithAStun(t *testing.T) {
	s := newTestSim(t)
	vm, err := s.makeVM(vmSpec{Name: "w", Tracking: true, Disks: []diskSpec{{Size: block}, {Size: block}}})
	if err != nil {
		t.Fatal(err)
	}
	now := func() (out []string) {
		eachDisk(vm.Config.Hardware.Device, func(_ *types.VirtualDisk, b *backing) { out = append(out, *b.changeID) })
		return out
	}
	ctx := s.context()
	set := func(value string) {
		t.Helper()
		option := &types.OptionValue{Key: "scsi0:1.ctkEnabled", Value: value}
		if f := s.reconfigure(ctx, vm, &types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{option}}); f != nil {
			t.Fatal(asError(f))
		}
		if _, err := s.takeSnapshot(ctx, vm, &types.CreateSnapshotEx_Task{Name: value}, false, 0); err != nil {
			t.Fatal(err)
		}
	}
	before := now()
	set("FALSE")
	if got := now(); got[0] == "" || got[1] != "" {
		t.Fatalf("with one disk left out: %q", got)
	}
	set("TRUE")
	uuid := func(id string) string { return strings.Split(id, "/")[0] }
	if got := now(); uuid(got[0]) != uuid(before[0]) || got[1] == "" || uuid(got[1]) == uuid(before[1]) {
		t.Fatalf("%q became %q", before, got)
	}
}

func TestDevicesGetVCentersKeys(t *testing.T) {
	s := newTestSim(t)
	two := int32(2)
	vm, err := s.makeVM(vmSpec{Name: "w", Disks: []diskSpec{
		{Size: block}, {Size: block, Unit: &two}, {Size: block, Bus: 1}, {Size: block, Controller: "sata"}, {Size: block, Controller: "nvme"}}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[int32][2]string{2000: {"Hard disk 1", "scsi0:0"}, 2002: {"Hard disk 2", "scsi0:2"}, 2016: {"Hard disk 3", "scsi1:0"},
		16000: {"Hard disk 4", "sata0:0"}, 32000: {"Hard disk 5", "nvme0:0"}}
	found := 0
	eachDisk(vm.Config.Hardware.Device, func(d *types.VirtualDisk, _ *backing) {
		found++
		if got := [2]string{label(d), slot(vm.Config.Hardware.Device, d)}; got != want[d.Key] {
			t.Errorf("disk %d is %v", d.Key, got)
		}
	})
	if found != len(want) {
		t.Fatalf("%d disks", found)
	}
	controller := findDevice(vm.Config.Hardware.Device, 1000).(types.BaseVirtualController).GetVirtualController()
	if fmt.Sprint(controller.Device) != "[2000 2002]" {
		t.Fatalf("the controller lists %v", controller.Device)
	}
}

func TestOpenDiskRefusesWhatTheLibraryRefuses(t *testing.T) {
	w := newWorld(t, 1, 2*block)
	base := "[LocalDS_0] w/w.vmdk"
	snapshot := w.take()
	ref, live := w.vm.Self.Value, "[LocalDS_0] w/w-000001.vmdk"
	w.check(w.s.power(w.s.context(), w.vm, types.VirtualMachinePowerStatePoweredOn))
	for _, c := range []struct {
		vm, snapshot, path string
		write              bool
		code               uint64
	}{
		{"vm-0", "", live, false, vixVMNotFound},
		{ref, "snapshot-0", base, false, vixSnapshotNotFound},
		{ref, snapshot.Value, live, false, vixFileNotFound},
		{ref, snapshot.Value, base, true, vixFileReadOnly},
		{ref, "", live, false, vixFileLocked},
		{ref, "", live, true, vixFileLocked},
		{ref, "", base, false, vixFileNotFound},
		{ref, snapshot.Value, base, false, 0},
	} {
		found, err := w.s.openDisk(opening{VM: c.vm, Snapshot: c.snapshot, Path: c.path, Write: c.write})
		if got := code(err); got != c.code || (err == nil) == (found.flat == "") {
			t.Errorf("%+v: %v", c, err)
		}
	}
	w.check(w.s.power(w.s.context(), w.vm, types.VirtualMachinePowerStatePoweredOff))
	if found, err := w.s.openDisk(opening{VM: ref, Path: live, Write: true}); err != nil || found.flat == "" || found.capacity != 2*block {
		t.Errorf("writing into a VM that is off: %v", err)
	}
	w.remove(snapshot, false, nil)
	if _, err := w.s.openDisk(opening{VM: ref, Snapshot: snapshot.Value, Path: base}); code(err) != vixSnapshotNotFound {
		t.Errorf("after the snapshot: %v", err)
	}
	w.check(w.s.destroy(w.s.context(), w.vm))
	if _, err := w.s.openDisk(opening{VM: ref, Path: base}); code(err) != vixVMNotFound {
		t.Errorf("after the VM: %v", err)
	}
}

func code(err *vixError) uint64 {
	if err == nil {
		return 0
	}
	return err.Code
}
