// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// station is a lab with one VM, seen through a client.
type station struct {
	*testing.T
	lab    *lab
	client *govmomi.Client
	vm     *object.VirtualMachine
}

func newStation(t *testing.T, spec map[string]any) *station {
	l, client := startLab(t)
	var made struct{ Moid string }
	all := map[string]any{"name": "w", "disks": []any{map[string]any{"size": 4 * block, "thin": true}}}
	for key, value := range spec {
		all[key] = value
	}
	control(t, l, "create_vm", all, &made)
	return &station{t, l, client, object.NewVirtualMachine(client.Client, vmRef(made.Moid))}
}

// do sends a verb about the VM; it answers the moid that the verb answers.
func (s *station) do(verb string, params map[string]any) string {
	s.Helper()
	all := map[string]any{"vm": s.vm.Reference().Value}
	for key, value := range params {
		all[key] = value
	}
	var answer struct{ Moid string }
	control(s.T, s.lab, verb, all, &answer)
	return answer.Moid
}

func (s *station) inject(rule map[string]any) { control(s.T, s.lab, "fault", rule, nil) }

func (s *station) read(paths ...string) (vm mo.VirtualMachine) {
	s.Helper()
	if err := s.vm.Properties(s.Context(), s.vm.Reference(), paths, &vm); err != nil {
		s.Fatal(err)
	}
	return vm
}

// post sends a SOAP call as it is written, in the client's session.
func (s *station) post(call string) (string, error) {
	envelope := `<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body>` + call + `</Body></Envelope>`
	req, err := http.NewRequest(http.MethodPost, s.lab.ready.URL, strings.NewReader(envelope))
	if err != nil {
		return "", err
	}
	var answer []byte
	err = s.client.Client.Client.Do(s.Context(), req, func(res *http.Response) error {
		answer, err = io.ReadAll(res.Body)
		return err
	})
	return string(answer), err
}

// names are those of the VM's snapshots, parents first.
func (s *station) names() (out []string) {
	if info := s.read("snapshot").Snapshot; info != nil {
		walkTree(info.RootSnapshotList, func(way []*types.VirtualMachineSnapshotTree) { out = append(out, way[len(way)-1].Name) })
	}
	return out
}

func (s *station) want(what string, got, want any) {
	s.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		s.Errorf("%s: %v, not %v", what, got, want)
	}
}

// finish waits for a task that a client started and answers its fault, or "".
func (s *station) finish(t *object.Task, err error) string {
	s.Helper()
	if err == nil {
		err = t.Wait(s.Context())
	}
	var failed task.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &failed):
		return faultName(failed.Fault())
	}
	found := ""
	fault.In(err, func(f types.BaseMethodFault, _ string, _ []types.LocalizableMessage) bool {
		found = faultName(f)
		return true
	})
	return found
}

func TestAnotherClientBetweenPlanAndAct(t *testing.T) {
	s := newStation(t, nil)
	one := s.do("take_snapshot", map[string]any{"name": "one"})
	// A snapshot comes, one goes, one is renamed, a task begins, the VM goes: each just before a call arrives.
	before := func(method, verb string, with map[string]any) {
		with["vm"] = s.vm.Reference().Value
		s.inject(map[string]any{"method": method, "do": verb, "with": with, "count": 1})
	}
	before("CreateSnapshot_Task", "take_snapshot", map[string]any{"name": "theirs"})
	s.want("create", s.finish(s.vm.CreateSnapshot(s.Context(), "mine", "", false, false)), "")
	s.want("snapshots", s.names(), []string{"one", "theirs", "mine"})
	before("RemoveSnapshot_Task", "rename_snapshot", map[string]any{"snapshot": one, "name": "uno"})
	s.want("remove", s.finish(s.vm.RemoveSnapshot(s.Context(), "theirs", false, nil)), "")
	s.want("snapshots", s.names(), []string{"uno", "mine"})
	before("RemoveSnapshot_Task", "remove_snapshot", map[string]any{"snapshot": one})
	s.want("remove what has just gone", s.finish(s.vm.RemoveSnapshot(s.Context(), one, false, nil)), "ManagedObjectNotFound")
	control(t, s.lab, "knobs", map[string]any{"cancelable": "all"}, nil)
	before("CreateSnapshot_Task", "task", map[string]any{"name": "relocate", "seconds": 60, "background": true})
	s.want("create beside a task", s.finish(s.vm.CreateSnapshot(s.Context(), "late", "", false, false)), "TaskInProgress")
	for _, ref := range s.read("recentTask").RecentTask {
		if theirs := object.NewTask(s.client.Client, ref); theirs.Cancel(s.Context()) == nil { // the only one that has not ended
			s.want("their task", s.finish(theirs, nil), "RequestCanceled")
		}
	}
	before("RevertToCurrentSnapshot_Task", "destroy_vm", map[string]any{})
	s.want("revert what has just gone", s.finish(s.vm.RevertToCurrentSnapshot(s.Context(), false)), "ManagedObjectNotFound")
}

func TestARemovalThatFailsInTheMiddle(t *testing.T) {
	s := newStation(t, nil)
	first := s.do("take_snapshot", map[string]any{"name": "1"})
	for _, name := range []string{"2", "3", "4"} {
		s.do("take_snapshot", map[string]any{"name": name})
	}
	s.inject(map[string]any{"task": "removeSnapshot", "fault": "FileFault", "partly": 2, "count": 1})
	s.want("remove with children", s.finish(s.vm.RemoveSnapshot(s.Context(), first, true, nil)), "FileFault")
	s.want("snapshots", s.names(), []string{"1", "2"})
	s.inject(map[string]any{"task": "removeAllSnapshots", "fault": "FileFault", "partly": 1, "count": 1})
	s.want("remove all", s.finish(s.vm.RemoveAllSnapshot(s.Context(), nil)), "FileFault")
	s.want("snapshots", s.names(), []string{"1"})
}

func TestCancelling(t *testing.T) {
	s := newStation(t, nil)
	one := types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: s.do("take_snapshot", map[string]any{"name": "one"})}
	cancel := func(t *object.Task, err error) string {
		s.Helper()
		if err != nil {
			s.Fatal(err)
		}
		return s.finish(t, t.Cancel(s.Context()))
	}
	s.inject(map[string]any{"task": "createSnapshot", "delay_ms": 60_000})
	s.want("a creation", cancel(s.vm.CreateSnapshot(s.Context(), "two", "", false, false)), "RequestCanceled")
	s.want("snapshots", s.names(), []string{"one"})
	ends := s.lab.reg.AcquireLock(s.lab.context(), s.vm.Reference()) // no task can, before
	res, err := methods.RemoveSnapshot_Task(s.Context(), s.client.Client, &types.RemoveSnapshot_Task{This: one})
	if err != nil {
		s.Fatal(err)
	}
	removal := object.NewTask(s.client.Client, res.Returnval)
	s.want("a removal", cancel(removal, nil), "NotSupported")
	ends()
	s.want("the removal", s.finish(removal, nil), "")
	s.want("an ended task", cancel(removal, nil), "InvalidState")
	s.want("snapshots", s.names(), []string{})
}

func TestRevertAndThePowerState(t *testing.T) {
	s := newStation(t, map[string]any{"power": "poweredOn", "memory_mb": 8})
	s.do("take_snapshot", map[string]any{"name": "running", "memory": true})
	s.do("take_snapshot", map[string]any{"name": "off"})
	var host *types.ManagedObjectReference
	revert := func(name string, suppress bool) types.VirtualMachinePowerState {
		s.Helper()
		ref, err := s.vm.FindSnapshot(s.Context(), name)
		if err != nil {
			s.Fatal(err)
		}
		res, err := methods.RevertToSnapshot_Task(s.Context(), s.client.Client, &types.RevertToSnapshot_Task{This: *ref, Host: host, SuppressPowerOn: &suppress})
		if err != nil {
			s.Fatal(err)
		}
		s.want("revert", s.finish(object.NewTask(s.client.Client, res.Returnval), nil), "")
		now := s.read("snapshot", "runtime")
		s.want("current", now.Snapshot.CurrentSnapshot, ref)
		return now.Runtime.PowerState
	}
	s.want("without memory", revert("off", false), "poweredOff")
	s.want("with memory, suppressed", revert("running", true), "suspended")
	s.want("with memory", revert("running", false), "poweredOn")
	control(t, s.lab, "knobs", map[string]any{"suppressed": "poweredOff"}, nil)
	s.want("with memory, suppressed otherwise", revert("running", true), "poweredOff")
	hosts, err := view.NewManager(s.client.Client).CreateContainerView(t.Context(), s.client.ServiceContent.RootFolder, []string{"HostSystem"}, true)
	if err != nil {
		t.Fatal(err)
	}
	found, err := hosts.Find(t.Context(), []string{"HostSystem"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	host = &found[0]
	s.want("on a host", revert("running", false), "poweredOn")
	s.want("the host", s.read("runtime.host").Runtime.Host, host)
}

func TestRenamingClearsOnlyWhatIsGiven(t *testing.T) {
	s := newStation(t, nil)
	ref := types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: s.do("take_snapshot", map[string]any{"name": "a/b", "description": "why"})}
	entry := func() string {
		n := s.read("snapshot").Snapshot.RootSnapshotList[0]
		return n.Name + "|" + n.Description
	}
	rename := func(body string) {
		s.Helper()
		res, err := s.post(`<RenameSnapshot xmlns="urn:vim25"><_this type="VirtualMachineSnapshot">` + ref.Value + `</_this>` + body + `</RenameSnapshot>`)
		if err != nil || !strings.Contains(res, "RenameSnapshotResponse") {
			s.Fatal(res, err)
		}
	}
	s.want("as given", entry(), "a/b|why")
	rename(`<name>c</name>`)
	s.want("description not given", entry(), "c|why")
	rename(`<description versionId="8.0.3.0"></description>`)
	s.want("description empty", entry(), "c|")
	control(t, s.lab, "knobs", map[string]any{"escape_names": true}, nil)
	rename(`<name>50%/x</name><description>new</description>`)
	s.want("escaped", entry(), "50%25%2fx|new")
}

func TestWhoTookASnapshotAndWhen(t *testing.T) {
	s := newStation(t, nil)
	old := s.do("take_snapshot", map[string]any{"name": "old", "user": "VSPHERE.LOCAL\\ann", "age": 86400})
	s.do("take_snapshot", map[string]any{"name": "forgotten"})
	s.want("ours", s.finish(s.vm.CreateSnapshot(s.Context(), "ours", "", false, false)), "")
	collector, err := task.NewManager(s.client.Client).CreateCollectorForTasks(t.Context(), types.TaskFilterSpec{
		Entity: &types.TaskFilterSpecByEntity{Entity: s.vm.Reference(), Recursion: types.TaskFilterSpecRecursionOptionSelf}})
	if err != nil {
		t.Fatal(err)
	}
	var infos []types.TaskInfo
	for {
		page, err := collector.ReadNextTasks(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		infos = append(infos, page...)
	}
	var who []string
	for _, info := range infos {
		who = append(who, info.Reason.(*types.TaskReasonUser).UserName+" "+info.EntityName)
	}
	s.want("users", who, []string{"VSPHERE.LOCAL\\ann w", "u w"})
	s.want("result", infos[0].Result.(types.ManagedObjectReference).Value, old)
	var listed []struct{ User, State, Name string }
	control(t, s.lab, "tasks", map[string]any{"vm": s.vm.Reference().Value}, &listed)
	s.want("listed", listed, []string{"{VSPHERE.LOCAL\\ann success VirtualMachine.createSnapshot}", "{u success VirtualMachine.createSnapshot}"})
	n := s.read("snapshot").Snapshot.RootSnapshotList[0]
	for what, at := range map[string]time.Time{"snapshot": n.CreateTime, "task": *infos[0].CompleteTime} {
		if age := time.Since(at); age < 24*time.Hour || age > 25*time.Hour {
			t.Errorf("the %s is %v old", what, age)
		}
	}
}

func TestTheClockAndPages(t *testing.T) {
	s := newStation(t, nil)
	var instance mo.ServiceInstance
	pc := property.DefaultCollector(s.client.Client)
	if err := pc.RetrieveOne(t.Context(), types.ManagedObjectReference{Type: "ServiceInstance", Value: "ServiceInstance"}, []string{"serverClock"}, &instance); err != nil {
		t.Fatal(err)
	}
	if off := time.Since(instance.ServerClock).Abs(); off > time.Minute {
		t.Errorf("the clock is %v wrong", off)
	}
	control(t, s.lab, "knobs", map[string]any{"object_page": 2}, nil)
	var all []types.ManagedObjectReference
	for _, e := range s.lab.reg.All("VirtualMachine") {
		all = append(all, e.Reference())
	}
	req := types.RetrievePropertiesEx{This: pc.Reference(), SpecSet: []types.PropertyFilterSpec{{
		PropSet: []types.PropertySpec{{Type: "VirtualMachine", PathSet: []string{"name"}}}}}}
	for _, ref := range all {
		req.SpecSet[0].ObjectSet = append(req.SpecSet[0].ObjectSet, types.ObjectSpec{Obj: ref})
	}
	res, err := methods.RetrievePropertiesEx(t.Context(), s.client.Client, &req)
	if err != nil {
		t.Fatal(err)
	}
	pages := []int{len(res.Returnval.Objects)}
	for token := res.Returnval.Token; token != ""; {
		next, err := methods.ContinueRetrievePropertiesEx(t.Context(), s.client.Client, &types.ContinueRetrievePropertiesEx{This: pc.Reference(), Token: token})
		if err != nil {
			t.Fatal(err)
		}
		pages, token = append(pages, len(next.Returnval.Objects)), next.Returnval.Token
	}
	s.want("pages of four VMs", pages, []int{2, 2})
}

func TestWhatForbidsSnapshots(t *testing.T) {
	for _, kind := range []string{"template", "fault_tolerance"} {
		s := newStation(t, map[string]any{kind: true})
		s.want("a snapshot: "+kind, s.finish(s.vm.CreateSnapshot(s.Context(), "x", "", false, false)), "InvalidState")
		s.want("none to revert to: "+kind, s.finish(s.vm.RevertToCurrentSnapshot(s.Context(), false)), "NotFound")
	}
	s := newStation(t, nil)
	var summary types.DatastoreSummary
	control(t, s.lab, "datastore", map[string]any{"name": "LocalDS_0", "free": 5}, &summary)
	var datastore mo.Datastore
	ref := s.read("datastore").Datastore[0]
	if err := property.DefaultCollector(s.client.Client).RetrieveOne(t.Context(), ref, []string{"summary"}, &datastore); err != nil {
		t.Fatal(err)
	}
	s.want("free", []int64{summary.FreeSpace, datastore.Summary.FreeSpace}, []int64{5, 5})
}
