// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// diskParams name a disk and what to do with it; each verb takes what it needs.
type diskParams struct {
	VM       string `json:"vm"`
	Key      int32  `json:"key"`
	FCD      string `json:"fcd"` // instead of VM and Key; the snapshot is then one of the first class disk
	Snapshot string `json:"snapshot"`
	Offset   int64  `json:"offset"`
	Length   int64  `json:"length"`
	Size     int64  `json:"size"`
	Data     []byte `json:"data"` // base64
	File     string `json:"file"`
	Places   int64  `json:"places"`
	Seed     uint64 `json:"seed"`
	Lose     bool   `json:"lose"`
}

// target is the disk that a verb works on.
type target struct {
	ctx   *simulator.Context
	vm    *simulator.VirtualMachine // nil for a first class disk that no VM has
	key   int32
	disk  *types.VirtualDisk // nil for a first class disk
	owner *disk
	node  *node
}

// onVM makes a verb of what runs under a VM's lock.
func (s *sim) onVM(f func(*simulator.Context, *simulator.VirtualMachine) (any, error)) verb {
	return typed(func(p struct {
		VM string `json:"vm"`
	}) (any, error) {
		return s.locked(p.VM, f)
	})
}

// locked runs f with a VM and its lock.
func (s *sim) locked(moid string, f func(*simulator.Context, *simulator.VirtualMachine) (any, error)) (answer any, err error) {
	vm := s.vm(vmRef(moid))
	if vm == nil {
		return nil, fmt.Errorf("no VM %q", moid)
	}
	ctx := s.context()
	ctx.WithLock(vm, func() { answer, err = f(ctx, vm) })
	return answer, err
}

// onBytes makes a verb of what runs with a VM's disk or a first class disk, under the VM's lock.
func (s *sim) onBytes(f func(target, diskParams) (any, error)) verb {
	onDisk := s.onDisk(f)
	return func(body json.RawMessage) (any, error) {
		return typed(func(p diskParams) (any, error) {
			if p.FCD == "" {
				return onDisk(body)
			}
			return s.fcdTarget(p, f)
		})(body)
	}
}

// onDisk makes a verb of what runs with a VM's disk, under the VM's lock.
func (s *sim) onDisk(f func(target, diskParams) (any, error)) verb {
	return typed(func(p diskParams) (any, error) {
		return s.locked(p.VM, func(ctx *simulator.Context, vm *simulator.VirtualMachine) (any, error) {
			devices := vm.Config.Hardware.Device
			if p.Snapshot != "" {
				snapshot, ok := s.reg.Get(types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: p.Snapshot}).(*simulator.VirtualMachineSnapshot)
				if !ok || snapshot.Vm != vm.Self {
					return nil, fmt.Errorf("VM %s has no snapshot %q", p.VM, p.Snapshot)
				}
				devices = snapshot.Config.Hardware.Device
			}
			d, view := findDisk(devices, p.Key)
			if d == nil {
				return nil, fmt.Errorf("VM %s has no disk %d", p.VM, p.Key)
			}
			owner := s.owner(d, view)
			if owner == nil {
				return nil, fmt.Errorf("%s has no file", view.file.FileName)
			}
			return f(target{ctx, vm, d.Key, d, owner, owner.node(view.file.FileName)}, p)
		})
	})
}

func (s *sim) fileVerb(t target, _ diskParams) (any, error) {
	return map[string]string{"file": t.node.flat}, nil
}

func (s *sim) writeVerb(t target, p diskParams) (any, error) {
	if err := t.node.within(p.Offset, int64(len(p.Data))); err != nil {
		return nil, err
	}
	return nil, t.owner.change(t.node, s.knobs().notice(&t.owner.track), func(f *os.File, mark func(extent)) error {
		mark(extent{p.Offset, int64(len(p.Data))})
		_, err := f.WriteAt(p.Data, p.Offset)
		return err
	})
}

func (s *sim) trimVerb(t target, p diskParams) (any, error) {
	if err := t.node.within(p.Offset, p.Length); err != nil {
		return nil, err
	}
	return nil, t.owner.change(t.node, s.knobs().notice(&t.owner.track), func(f *os.File, mark func(extent)) error {
		mark(extent{p.Offset, p.Length})
		return discard(f, extent{p.Offset, p.Length})
	})
}

// scatterVerb writes incompressible data in places spread evenly over the disk.
func (s *sim) scatterVerb(t target, p diskParams) (any, error) {
	if p.Places < 1 || p.Length < 1 || p.Places > t.node.capacity/p.Length {
		return nil, fmt.Errorf("%d places of %d bytes do not fit", p.Places, p.Length)
	}
	stride := t.node.capacity / p.Places / 512 * 512
	if stride < p.Length {
		stride = p.Length
	}
	places := make([][2]int64, 0, p.Places)
	source := rand.NewChaCha8([32]byte{byte(p.Seed), byte(p.Seed >> 8), byte(p.Seed >> 16)})
	data := make([]byte, p.Length)
	err := t.owner.change(t.node, s.knobs().notice(&t.owner.track), func(f *os.File, mark func(extent)) error {
		for i := range p.Places {
			at := i * stride
			_, _ = source.Read(data)
			mark(extent{at, p.Length})
			if _, err := f.WriteAt(data, at); err != nil {
				return err
			}
			places = append(places, [2]int64{at, p.Length})
		}
		return nil
	})
	return places, err
}

func (s *sim) loadVerb(t target, p diskParams) (any, error) {
	source, err := os.Open(p.File)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	if info, err := source.Stat(); err != nil || info.Size() > t.node.capacity {
		return nil, fmt.Errorf("%s is larger than the disk: %d bytes, %w", p.File, t.node.capacity, err)
	}
	var written int64
	err = t.owner.change(t.node, s.knobs().notice(&t.owner.track), func(f *os.File, mark func(extent)) error {
		written, err = load(source, f, t.node.capacity, mark)
		return err
	})
	return written, err
}

func (s *sim) growVerb(t target, p diskParams) (any, error) {
	next := copyDisk(t.disk)
	next.CapacityInBytes, next.CapacityInKB = p.Size, p.Size/1024
	return nil, s.deviceVerb(t, types.VirtualDeviceConfigSpecOperationEdit, "", next)
}

func (s *sim) removeVerb(t target, _ diskParams) (any, error) {
	return nil, s.deviceVerb(t, types.VirtualDeviceConfigSpecOperationRemove, types.VirtualDeviceConfigSpecFileOperationDestroy, t.disk)
}

// deviceVerb reconfigures one device.
func (s *sim) deviceVerb(t target, operation types.VirtualDeviceConfigSpecOperation, files types.VirtualDeviceConfigSpecFileOperation, device types.BaseVirtualDevice) error {
	spec := &types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: operation, FileOperation: files, Device: device}}}
	return asError(s.reconfigure(t.ctx, t.vm, spec))
}

// replaceVerb removes a disk and adds an empty one at the same place, so under the same key.
func (s *sim) replaceVerb(t target, p diskParams) (any, error) {
	if p.Size == 0 {
		p.Size = t.disk.CapacityInBytes
	}
	next := copyDisk(t.disk)
	next.CapacityInBytes, next.CapacityInKB, next.Key = p.Size, 0, -1
	setFiles(next, "", nil)
	view := backingOf(next)
	*view.uuid, *view.changeID, view.file.Datastore = "", "", nil
	if _, err := s.removeVerb(t, p); err != nil {
		return nil, err
	}
	if err := s.deviceVerb(t, types.VirtualDeviceConfigSpecOperationAdd, types.VirtualDeviceConfigSpecFileOperationCreate, next); err != nil {
		return nil, err
	}
	d, b := findDisk(t.vm.Config.Hardware.Device, p.Key)
	return s.record(t.vm, d, b), nil
}

func (s *sim) resetTrackingVerb(t target, p diskParams) (any, error) {
	t.owner.mu.Lock()
	if p.Lose || t.owner.track.current == nil {
		t.owner.track.off()
	} else {
		t.owner.track.on(len(t.owner.nodes) > 1)
	}
	shown := s.knobs().shown(&t.owner.track)
	t.owner.mu.Unlock()
	if t.vm == nil {
		return nil, nil
	}
	s.setDevices(t.ctx, t.vm, edited(t.vm.Config.Hardware.Device, func(d *types.VirtualDisk, b *backing) bool {
		*b.changeID = shown
		return d.Key == t.key
	}))
	return nil, nil
}

func (s *sim) destroyVerb(ctx *simulator.Context, vm *simulator.VirtualMachine) (any, error) {
	if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
		if err := asError(s.power(ctx, vm, types.VirtualMachinePowerStatePoweredOff)); err != nil {
			return nil, err
		}
	}
	return nil, asError(s.destroy(ctx, vm))
}

func (s *sim) powerVerb(p struct {
	VM    string                         `json:"vm"`
	State types.VirtualMachinePowerState `json:"state"`
}) (any, error) {
	return s.locked(p.VM, func(ctx *simulator.Context, vm *simulator.VirtualMachine) (any, error) {
		if vm.Runtime.PowerState == p.State {
			return nil, nil
		}
		return nil, asError(s.power(ctx, vm, p.State))
	})
}

// toolsVerb starts or stops VMware Tools, as the guest does when it has booted.
func (s *sim) toolsVerb(p struct {
	VM      string `json:"vm"`
	Running bool   `json:"running"`
}) (any, error) {
	return s.locked(p.VM, func(ctx *simulator.Context, vm *simulator.VirtualMachine) (any, error) {
		s.setTools(ctx, vm, p.Running)
		return nil, nil
	})
}

// crashVerb takes the power from a host: its VMs go down dirty.
func (s *sim) crashVerb(p struct {
	Host string `json:"host"`
}) (any, error) {
	host, ok := s.reg.Get(types.ManagedObjectReference{Type: "HostSystem", Value: p.Host}).(*simulator.HostSystem)
	if vm := s.vm(vmRef(p.Host)); vm != nil {
		host, ok = s.reg.Get(*vm.Runtime.Host).(*simulator.HostSystem), true
	}
	if !ok {
		return nil, fmt.Errorf("no host and no VM %q", p.Host)
	}
	down := []string{}
	for _, ref := range host.Vm {
		vm := s.vm(ref)
		if vm == nil || vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
			continue
		}
		if _, err := s.locked(ref.Value, s.crash); err != nil {
			return nil, err
		}
		down = append(down, ref.Value)
	}
	return down, nil
}

// crash ends a VM without its consent; change tracking does not survive it unless told so.
func (s *sim) crash(ctx *simulator.Context, vm *simulator.VirtualMachine) (any, error) {
	if s.knobs().OnCrash == "reset" {
		eachDisk(vm.Config.Hardware.Device, func(d *types.VirtualDisk, b *backing) {
			if owner := s.owner(d, b); owner != nil {
				owner.mu.Lock()
				if owner.track.current != nil {
					owner.track.on(len(owner.nodes) > 1)
				}
				owner.mu.Unlock()
			}
		})
		s.activate(ctx, vm)
	}
	return nil, asError(s.power(ctx, vm, types.VirtualMachinePowerStatePoweredOff))
}

// asError is a fault as an error, for those who don't speak SOAP.
func asError(f types.BaseMethodFault) error {
	if f == nil {
		return nil
	}
	detail, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return fmt.Errorf("%s %s", faultName(f), detail)
}

// connectionVerb lets a VM be disconnected, inaccessible, invalid or orphaned.
func (s *sim) connectionVerb(p struct {
	VM    string `json:"vm"`
	State string `json:"state"`
}) (any, error) {
	return s.locked(p.VM, func(ctx *simulator.Context, vm *simulator.VirtualMachine) (any, error) {
		state := types.VirtualMachineConnectionState(p.State)
		s.update(ctx, vm, map[string]any{"runtime.connectionState": state, "summary.runtime.connectionState": state})
		return nil, nil
	})
}
