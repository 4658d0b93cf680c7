// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

// VI JSON: the VIM API over HTTP and JSON, as vCenter serves it since 8.0 Update 1.
//
// Every call is translated and handed to the SOAP endpoint, so both APIs share one
// implementation, its counters and its injected faults. The translation is strict: members that
// are unknown, missing or of another type are refused, and session IDs are not those of SOAP.

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

const (
	viSession = "vmware-api-session-id"
	viSystem  = "/api/vcenter/system"
	viHello   = "8.0.2.0" // the first release that negotiates
	viContent = "ServiceInstance/RetrieveServiceContent"
	viLogin   = "SessionManager/Login"
	viLogout  = "SessionManager/Logout"
)

// viMethods are the methods served; a body names the types of its request and response.
var viMethods = map[string]func() soap.HasFault{
	viContent:                              func() soap.HasFault { return new(methods.RetrieveServiceContentBody) },
	viLogin:                                func() soap.HasFault { return new(methods.LoginBody) },
	viLogout:                               func() soap.HasFault { return new(methods.LogoutBody) },
	"VirtualMachine/QueryChangedDiskAreas": func() soap.HasFault { return new(methods.QueryChangedDiskAreasBody) },
	"VcenterVStorageObjectManager/VstorageObjectVCenterQueryChangedDiskAreas": func() soap.HasFault {
		return new(methods.VstorageObjectVCenterQueryChangedDiskAreasBody)
	},
}

// viGateway keeps for each VI JSON session the cookie of the SOAP session behind it.
type viGateway struct {
	soap     http.Handler
	releases []string
	mutex    sync.Mutex
	cookies  map[string]*http.Cookie
}

// newVIJSON serves these releases of VI JSON (at least one) before a SOAP endpoint at /sdk.
func newVIJSON(soapEndpoint http.Handler, releases []string) http.Handler {
	g := &viGateway{soap: soapEndpoint, releases: releases, cookies: map[string]*http.Cookie{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /sdk/vim25/{release}/ServiceInstance/ServiceInstance/content", g.content)
	mux.HandleFunc("POST /sdk/vim25/{release}/{type}/{id}/{method}", g.call)
	mux.HandleFunc("POST "+viSystem, g.hello)
	return mux
}

// hello answers the first release of the caller's list that both sides speak, or "".
func (g *viGateway) hello(w http.ResponseWriter, r *http.Request) {
	var wanted struct {
		Releases []string `json:"api_releases"`
	}
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if r.URL.Query().Get("action") != "hello" || slices.Max(g.releases) < viHello {
		http.NotFound(w, r)
		return
	}
	if err := decoder.Decode(&wanted); err != nil || !isJSON(r) {
		http.Error(w, "expected JSON with api_releases", http.StatusBadRequest)
		return
	}
	chosen := ""
	if i := slices.IndexFunc(wanted.Releases, g.speaks); i >= 0 {
		chosen = wanted.Releases[i]
	}
	writeJSON(w, http.StatusOK, map[string]string{"api_release": chosen})
}

func (g *viGateway) speaks(release string) bool { return slices.Contains(g.releases, release) }

// content is the one property that is served, and the one that needs no session.
func (g *viGateway) content(w http.ResponseWriter, r *http.Request) {
	if !g.speaks(r.PathValue("release")) {
		http.NotFound(w, r)
		return
	}
	body := &methods.RetrieveServiceContentBody{Req: &types.RetrieveServiceContent{
		This: types.ManagedObjectReference{Type: "ServiceInstance", Value: "ServiceInstance"},
	}}
	g.forward(w, body, nil)
}

func (g *viGateway) call(w http.ResponseWriter, r *http.Request) {
	this := types.ManagedObjectReference{Type: r.PathValue("type"), Value: r.PathValue("id")}
	method := this.Type + "/" + r.PathValue("method")
	newBody, known := viMethods[method]
	if !known || !g.speaks(r.PathValue("release")) {
		http.NotFound(w, r)
		return
	}
	id := r.Header.Get(viSession)
	cookie := g.cookie(id)
	if cookie == nil && method != viLogin && method != viContent {
		http.Error(w, "no session", http.StatusUnauthorized)
		return
	}
	body := newBody()
	if err := readRequest(r, this, body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if method == viLogout {
		g.forget(id)
	}
	g.forward(w, body, cookie)
}

func (g *viGateway) cookie(id string) *http.Cookie {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	return g.cookies[id]
}

func (g *viGateway) forget(id string) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	delete(g.cookies, id)
}

// remember gives a new SOAP session an ID of its own.
func (g *viGateway) remember(cookie *http.Cookie) string {
	id := rand.Text()
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.cookies[id] = cookie
	return id
}

// forward sends the request to the SOAP endpoint and answers with its answer.
func (g *viGateway) forward(w http.ResponseWriter, body soap.HasFault, cookie *http.Cookie) {
	var envelope bytes.Buffer
	if err := xml.NewEncoder(&envelope).Encode(soap.Envelope{Body: body}); err != nil {
		panic(err) // a body of the table above can always be encoded
	}
	request := httptest.NewRequest(http.MethodPost, "/sdk", &envelope)
	if cookie != nil {
		request.AddCookie(cookie)
	}
	recorder := &viRecorder{ResponseRecorder: httptest.NewRecorder(), client: w}
	g.soap.ServeHTTP(recorder, request)
	if recorder.hijacked {
		return
	}
	answer := recorder.Result()
	if answer.StatusCode != http.StatusOK && answer.StatusCode != http.StatusInternalServerError {
		http.Error(w, recorder.Body.String(), answer.StatusCode)
		return
	}
	for _, set := range answer.Cookies() {
		if set.Name == soap.SessionCookieName {
			w.Header().Set(viSession, g.remember(set))
		}
	}
	decoder := xml.NewDecoder(answer.Body)
	decoder.TypeFunc = types.TypeFunc()
	if err := decoder.Decode(&soap.Envelope{Body: body}); err != nil {
		http.Error(w, fmt.Sprintf("SOAP answered %s: %v", answer.Status, err), http.StatusBadGateway)
		return
	}
	if fault := body.Fault(); fault != nil {
		writeFault(w, fault)
		return
	}
	returned := reflect.ValueOf(body).Elem().FieldByName("Res").Elem().FieldByName("Returnval")
	if !returned.IsValid() {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	writeJSON(w, http.StatusOK, encode(returned.Interface()))
}

// viRecorder takes the SOAP answer; who hijacks it to break the connection gets the caller's.
type viRecorder struct {
	*httptest.ResponseRecorder
	client   http.ResponseWriter
	hijacked bool
}

func (r *viRecorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	h, ok := r.client.(http.Hijacker)
	if !ok {
		return nil, nil, http.ErrNotSupported
	}
	r.hijacked = true
	return h.Hijack()
}

// writeFault gives the fault itself as body, with the message where a fault carries one.
func writeFault(w http.ResponseWriter, fault *soap.Fault) {
	members := map[string]any{}
	if err := json.Unmarshal(encode(fault.VimFault()), &members); err != nil {
		panic(err) // a fault is an object
	}
	if _, told := members["faultMessage"]; !told && fault.String != "" {
		members["faultMessage"] = []map[string]string{
			{"_typeName": "LocalizableMessage", "key": "lab.fault", "message": fault.String},
		}
	}
	writeJSON(w, http.StatusInternalServerError, members)
}

// readRequest fills the body's request from the HTTP request and addresses it to an object.
func readRequest(r *http.Request, this types.ManagedObjectReference, body soap.HasFault) error {
	field := reflect.ValueOf(body).Elem().FieldByName("Req")
	request := reflect.New(field.Type().Elem())
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	if len(data) > 0 {
		if !isJSON(r) {
			return fmt.Errorf("the content type %q is not application/json", r.Header.Get("Content-Type"))
		}
		if err := checkMembers("", data, request.Type().Elem()); err != nil {
			return err
		}
		if err := types.NewJSONDecoder(bytes.NewReader(data)).Decode(request.Interface()); err != nil {
			return err
		}
	} else if err := checkMembers("", []byte("{}"), request.Type().Elem()); err != nil {
		return err
	}
	request.Elem().FieldByName("This").Set(reflect.ValueOf(this))
	field.Set(request)
	return nil
}

// checkMembers refuses an object whose members are not exactly those of a type.
func checkMembers(path string, data []byte, t reflect.Type) error {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(data, &members); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	// The parameters of a method need no type name (their own is the method's, with RequestType
	// or, as govmomi's client has it, without), every object among them does.
	given, ok := members["_typeName"]
	named := strings.Trim(string(given), `"`)
	if ok || path != "" {
		if named != t.Name() && (path != "" || named != t.Name()+"RequestType") {
			return fmt.Errorf("%s: _typeName is %q, expected %q", path, named, t.Name())
		}
	}
	delete(members, "_typeName")
	for i := range t.NumField() {
		name, options, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == "-" || t.Field(i).Anonymous { // embedded in data objects is what no JSON of theirs has
			continue
		}
		given, ok := members[name]
		if !ok && options != "omitempty" {
			return fmt.Errorf("%s: %s is missing", path, name)
		}
		inner := t.Field(i).Type
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if ok && inner.Kind() == reflect.Struct {
			if err := checkMembers(path+"/"+name, given, inner); err != nil {
				return err
			}
		}
		delete(members, name)
	}
	for name := range members {
		return fmt.Errorf("%s: %s is unknown", path, name)
	}
	return nil
}

// isJSON lets pass a request that does not say what it is, as those of govmomi's client.
func isJSON(r *http.Request) bool {
	given := r.Header.Get("Content-Type")
	media, _, err := mime.ParseMediaType(given)
	return given == "" || err == nil && media == "application/json"
}

// encode gives every object its _typeName.
func encode(value any) json.RawMessage {
	var encoded bytes.Buffer
	if err := types.NewJSONEncoder(&encoded).Encode(value); err != nil {
		panic(err) // what came by SOAP can be written as JSON
	}
	return encoded.Bytes()
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value)
}
