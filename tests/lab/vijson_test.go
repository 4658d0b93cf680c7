// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

// The gateway against the simulator as it is, asked by hand and by govmomi's own JSON client.

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// serveVIJSON starts a simulator behind a gateway and returns its URL.
func serveVIJSON(t *testing.T) string {
	t.Helper()
	model := simulator.VPX()
	if err := model.Create(); err != nil {
		t.Fatal(err)
	}
	model.Service.Listen = &url.URL{User: url.UserPassword("user", "pass")}
	model.Service.RegisterSDK(model.Map())
	mux := model.Service.ServeMux
	gateway := newVIJSON(mux, []string{"8.0.1.0", "8.0.2.0", "8.0.3.0"})
	outer := http.NewServeMux()
	outer.Handle("/sdk/vim25/", gateway)
	outer.Handle(viSystem, gateway)
	outer.Handle("/", mux)
	server := httptest.NewServer(outer)
	t.Cleanup(func() { server.Close(); model.Remove() })
	return server.URL
}

// ask sends one request by hand and returns status, session header and body.
func ask(t *testing.T, method, target, sessionID, body string) (int, string, string) {
	t.Helper()
	request, err := http.NewRequest(method, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set(viSession, sessionID)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, _ := io.ReadAll(response.Body)
	return response.StatusCode, response.Header.Get(viSession), string(data)
}

func TestVIJSONHello(t *testing.T) {
	target := serveVIJSON(t) + viSystem
	for body, want := range map[string]string{
		`{"api_releases": ["9.9.0.0", "8.0.3.0", "8.0.2.0"]}`: `{"api_release":"8.0.3.0"}`,
		`{"api_releases": ["9.9.0.0"]}`:                       `{"api_release":""}`,
	} {
		if status, _, got := ask(t, "POST", target+"?action=hello", "", body); status != 200 || strings.TrimSpace(got) != want {
			t.Errorf("%s: %d %s, want %s", body, status, got, want)
		}
	}
	if status, _, _ := ask(t, "POST", target, "", `{}`); status != 404 {
		t.Errorf("without the action: %d", status)
	}
	if status, _, _ := ask(t, "POST", target+"?action=hello", "", `{"releases": []}`); status != 400 {
		t.Errorf("with an unknown member: %d", status)
	}
}

func TestVIJSONSession(t *testing.T) {
	base := serveVIJSON(t) + "/sdk/vim25/8.0.3.0"
	login, logout := base+"/SessionManager/SessionManager/Login", base+"/SessionManager/SessionManager/Logout"
	if status, _, body := ask(t, "GET", base+"/ServiceInstance/ServiceInstance/content", "", ""); status != 200 || !strings.Contains(body, `"sessionManager"`) {
		t.Errorf("content: %d %s", status, body)
	}
	if status, id, body := ask(t, "POST", login, "", `{"userName": "user", "password": "wrong"}`); status != 500 || id != "" || !strings.Contains(body, `"_typeName":"InvalidLogin"`) {
		t.Errorf("wrong password: %d %q %s", status, id, body)
	}
	status, id, body := ask(t, "POST", login, "", `{"userName": "user", "password": "pass"}`)
	if status != 200 || id == "" || strings.Contains(body, id) {
		t.Fatalf("login: %d %q %s", status, id, body)
	}
	if status, _, _ := ask(t, "POST", logout, "", "{}"); status != 401 {
		t.Errorf("logout without session: %d", status)
	}
	if status, _, body := ask(t, "POST", logout, id, ""); status != 204 || body != "" {
		t.Errorf("logout: %d %s", status, body)
	}
	if status, _, _ := ask(t, "POST", logout, id, ""); status != 401 {
		t.Errorf("second logout: %d", status)
	}
}

func TestVIJSONIsStrict(t *testing.T) {
	server := serveVIJSON(t)
	base := server + "/sdk/vim25/8.0.3.0"
	_, id, _ := ask(t, "POST", base+"/SessionManager/SessionManager/Login", "", `{"userName": "user", "password": "pass"}`)
	query := base + "/VirtualMachine/vm-1/QueryChangedDiskAreas"
	snapshot := `{"_typeName": "ManagedObjectReference", "type": "VirtualMachineSnapshot", "value": "snapshot-1"}`
	rest := `"deviceKey": 2000, "startOffset": 0, "changeId": "*"`
	for body, want := range map[string]int{
		`{"snapshot": ` + snapshot + `, ` + rest + `}`:                                            500, // the fault of a VM that does not exist
		`{"_typeName": "QueryChangedDiskAreasRequestType", ` + rest + `}`:                         500,
		`{"_typeName": "Login", ` + rest + `}`:                                                    400,
		`{"snapshot": {"type": "VirtualMachineSnapshot", "value": "s"}, ` + rest + `}`:            400,
		`{"snapshot": {"_typeName": "ObjectReference", "type": "T", "value": "s"}, ` + rest + `}`: 400,
		`{` + rest + `, "offset": 0}`:                                                             400,
		`{"deviceKey": "2000", "startOffset": 0, "changeId": "*"}`:                                400,
		`{"deviceKey": 2000, "startOffset": 0}`:                                                   400,
		`{`:                                                                                       400,
		``:                                                                                        400,
	} {
		if status, _, got := ask(t, "POST", query, id, body); status != want {
			t.Errorf("%s: %d %s, want %d", body, status, got, want)
		}
	}
	for _, target := range []string{
		base + "/VirtualMachine/vm-1/PowerOnVM_Task",
		server + "/sdk/vim25/7.0.0.0/VirtualMachine/vm-1/QueryChangedDiskAreas",
	} {
		if status, _, _ := ask(t, "POST", target, id, "{}"); status != 404 {
			t.Errorf("%s: %d", target, status)
		}
	}
}

func TestVIJSONIsUnderstoodByGovmomi(t *testing.T) {
	ctx := context.Background()
	target, _ := soap.ParseURL(serveVIJSON(t) + vim25.Path)
	rt := soap.NewClient(target, true)
	client := &vim25.Client{Client: rt, RoundTripper: rt}
	rt.Namespace, rt.Version = "vim25", "8.0.3.0"
	rt.UseJSON(true)
	content, err := methods.GetServiceContent(ctx, rt)
	if err != nil {
		t.Fatal(err)
	}
	client.ServiceContent = content
	manager := session.NewManager(client)
	if err := manager.Login(ctx, url.UserPassword("user", "pass")); err != nil {
		t.Fatal(err)
	}
	_, err = methods.QueryChangedDiskAreas(ctx, rt, &types.QueryChangedDiskAreas{
		This:     types.ManagedObjectReference{Type: "VirtualMachine", Value: "vm-1"},
		ChangeId: "*",
	})
	if !fault.Is(err, new(types.ManagedObjectNotFound)) {
		t.Errorf("query of an unknown VM: %v", err)
	}
	if err := manager.Logout(ctx); err != nil {
		t.Error(err)
	}
}
