// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

// The lab as others' software sees it: govmomi's client library, which govc is made of.

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// startLab runs a lab with its listeners and logs in to it.
func startLab(t testing.TB) (*lab, *govmomi.Client) {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir())
	l, err := start(options{host: "127.0.0.1", user: "u", password: "p", root: t.TempDir(), datastores: 1, hosts: 1, vms: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.nfc.stop(); l.server.Close(); l.control.Close(); l.model.Remove() })
	target, err := url.Parse(l.ready.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport := soap.NewClient(target, false)
	if err := transport.SetRootCAs(l.ready.CAFile); err != nil {
		t.Fatal(err)
	}
	target.User = url.UserPassword("u", "p")
	vim, err := vim25.NewClient(t.Context(), transport)
	if err != nil {
		t.Fatal(err)
	}
	client := &govmomi.Client{Client: vim, SessionManager: session.NewManager(vim)}
	if err := client.Login(t.Context(), url.UserPassword("u", "p")); err != nil {
		t.Fatal(err)
	}
	return l, client
}

// control sends a verb to the control interface.
func control(t testing.TB, l *lab, verb string, params any, answer any) {
	t.Helper()
	body, err := json.Marshal(params)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.Post(l.ready.Control+"/control/"+verb, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, _ := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", verb, content)
	}
	if answer != nil {
		if err := json.Unmarshal(content, answer); err != nil {
			t.Fatal(err)
		}
	}
}

// patience is how long a test waits for what must come: on a busy machine too, as only a failure takes so long.
const patience = time.Minute

// await waits until something has happened.
func await(t testing.TB, what string, happened func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !happened(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("still to come:", what)
		}
	}
}

func TestGovmomiReadsAndChangesOurState(t *testing.T) {
	l, client := startLab(t)
	ctx := t.Context()
	var made struct{ Moid, Path string }
	control(t, l, "create_vm", vmSpec{Name: "v", Tracking: true, Folder: "a", Disks: []diskSpec{{Size: 1 << 20}}}, &made)
	vm, err := find.NewFinder(client.Client).VirtualMachine(ctx, "/"+made.Path)
	if err != nil || vm.Reference().Value != made.Moid {
		t.Fatal(err, vm)
	}
	wait := func(task *object.Task, err error) {
		t.Helper()
		if err == nil {
			err = task.Wait(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	take := func(name string) *types.ManagedObjectReference {
		t.Helper()
		wait(vm.CreateSnapshot(ctx, name, "", false, false))
		ref, err := vm.FindSnapshot(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	write := diskParams{VM: made.Moid, Key: 2000, Offset: 3*block + 1, Data: []byte("x")}
	first := take("first")
	control(t, l, "write", write, nil)
	second := take("second")
	devices, err := vm.Device(ctx)
	if err != nil {
		t.Fatal(err)
	}
	disk := devices.FindByKey(2000).(*types.VirtualDisk)
	changed, err := vm.QueryChangedDiskAreas(ctx, first, second, disk, 0)
	want := types.DiskChangeExtent{Start: 3 * block, Length: block}
	if err != nil || len(changed.ChangedArea) != 1 || changed.ChangedArea[0] != want {
		t.Fatal(changed, err)
	}
	if found, err := vm.FindSnapshot(ctx, "first/second"); err != nil || *found != *second {
		t.Fatal("by its path: ", found, err)
	}
	wait(vm.RevertToSnapshot(ctx, "first", true))
	wait(vm.RemoveSnapshot(ctx, "first", true, nil))
	var now mo.VirtualMachine
	if err := vm.Properties(ctx, vm.Reference(), []string{"snapshot", "layoutEx", "config"}, &now); err != nil || now.Snapshot != nil {
		t.Fatal(now.Snapshot, err)
	}
	wait(vm.Destroy(ctx))
}

func TestControlRefusesWhatItDoesNotKnow(t *testing.T) {
	l, _ := startLab(t)
	for verb, body := range map[string]string{
		"create_vm": `{"name": "v", "disk": []}`, "write": `{"vm": "vm-0", "key": 2000}`, "knobs": `{"page": 0}`, "fault": `{}`, "power": `[]`,
	} {
		response, err := http.Post(l.ready.Control+"/control/"+verb, "application/json", bytes.NewReader([]byte(body)))
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusBadRequest {
			t.Errorf("%s %s: %s", verb, body, response.Status)
		}
	}
}
