// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"

	"github.com/vmware/govmomi/pbm"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
	"github.com/vmware/govmomi/vslm"
)

// soapCall finds the method and the object in a SOAP request without decoding it all.
var soapCall = regexp.MustCompile(`<(?:\w+:)?Body[^>]*>\s*<(?:\w+:)?(\w+)[^>]*>\s*(?:<(?:\w+:)?_this[^>]*>([^<]*)<)?`)

// soapCookie finds the session in the header, where the services beside the VIM API expect it.
var soapCookie = regexp.MustCompile(`<(?:\w+:)?vcSessionCookie[^>]*>([^<]+)<`)

// soapID finds the ID of a first class disk.
var soapID = regexp.MustCompile(`<(?:\w+:)?(?:id|diskId)\b[^>]*>\s*<(?:\w+:)?id\b[^>]*>([^<]+)<`)

// An empty description is not the same as none, but is in Go; so it gets a mark on its way.
var emptyDescription = regexp.MustCompile(`<(?:\w+:)?description(?:\s[^>]*)?(?:/>|>\s*</(?:\w+:)?description>)`)

const cleared = "\uE000"

// isSOAP tells whether a path is that of a SOAP endpoint: VIM, VSLM or PBM.
func isSOAP(path string) bool {
	return path == "/sdk" || strings.HasPrefix(path, "/sdk/vimService") || path == vslm.Path || path == pbm.Path || path == pbmSDK
}

// front is the first handler of every request to the vCenter: it counts, injects faults and
// asks for a session where the simulator does not.
func (s *sim) front(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		session := ""
		if cookie, err := r.Cookie(soap.SessionCookieName); err == nil {
			session = cookie.Value
		}
		switch {
		case r.URL.Path == vslm.Path && !s.knobs().VSLM:
			s.counts.http(r.Method + " " + r.URL.Path)
			http.NotFound(w, r)
			return
		case r.Method == http.MethodPost && isSOAP(r.URL.Path):
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			match := soapCall.FindSubmatch(body)
			if match == nil {
				break
			}
			method := string(match[1])
			if method == "RenameSnapshot" {
				body = emptyDescription.ReplaceAll(body, []byte("<description>"+cleared+"</description>"))
				r.Body = io.NopCloser(bytes.NewReader(body))
				r.ContentLength = int64(len(body))
			}
			if header := soapCookie.FindSubmatch(body); header != nil && session == "" {
				session = string(header[1])
			}
			s.counts.add(method, session)
			objects := []string{string(match[2])}
			if id := soapID.FindSubmatch(body); id != nil {
				objects = append(objects, string(id[1]))
			}
			if s.misbehave(w, s.rules.call(method, objects...)) {
				return
			}
			if method == "LoginByToken" {
				if err := s.sts.admits(body); err != nil {
					soapFault(w, &types.InvalidLogin{}, "Cannot complete login: "+err.Error())
					return
				}
			}
			over := s.collectors.attend(r, method, string(match[2]), session)
			defer over()
		case strings.HasPrefix(r.URL.Path, "/folder/"):
			s.counts.http(r.Method + " /folder")
			if s.misbehave(w, s.rules.call(r.Method+" /folder", "")) {
				return
			}
			if !s.sessionActive(session) {
				w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
				http.Error(w, "not authenticated", http.StatusUnauthorized)
				return
			}
			if r.Method == http.MethodDelete { // the simulator would answer it as a GET
				http.Error(w, "use FileManager", http.StatusMethodNotAllowed)
				return
			}
		case r.Method == http.MethodPost && r.URL.Path == "/api/session" && strings.HasPrefix(r.Header.Get("Authorization"), "SIGN "):
			s.counts.http(r.Method + " " + r.URL.Path)
			if s.sts.admitsHeader(r.Header.Get("Authorization")) != nil { // the simulator takes any
				r.Header.Del("Authorization")
			}
		default:
			s.counts.http(r.Method + " " + r.URL.Path)
			if s.misbehave(w, s.rules.call(r.Method+" "+r.URL.Path, "")) {
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// misbehave does what the rule says and tells whether the request is answered.
func (s *sim) misbehave(w http.ResponseWriter, x *rule) bool {
	if x == nil {
		return false
	}
	if x.first != nil {
		if _, err := x.first(x.With); err != nil {
			soapFault(w, &types.SystemError{Reason: err.Error()}, fmt.Sprintf("the lab cannot %s: %v", x.Do, err))
			return true
		}
	}
	x.delay()
	switch {
	case x.Drop:
		if h, ok := w.(http.Hijacker); ok {
			if conn, _, err := h.Hijack(); err == nil {
				reset(conn)
			}
		}
	case x.Status != 0:
		http.Error(w, x.Message, x.Status)
	case x.fault != nil:
		soapFault(w, x.fault, x.message())
	default:
		return false
	}
	return true
}

func (x *rule) message() string {
	if x.Message != "" {
		return x.Message
	}
	return faultName(x.fault) + " injected by the lab"
}

// soapFault answers a SOAP call with a fault, in the form that all client libraries take.
func soapFault(w http.ResponseWriter, fault types.BaseMethodFault, message string) {
	var detail, text bytes.Buffer
	name := faultName(fault)
	start := xml.StartElement{Name: xml.Name{Local: name + "Fault"}, Attr: []xml.Attr{
		{Name: xml.Name{Local: "xmlns"}, Value: "urn:vim25"}, {Name: xml.Name{Local: "xsi:type"}, Value: name}}}
	if err := xml.NewEncoder(&detail).EncodeElement(fault, start); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_ = xml.EscapeText(&text, []byte(message))
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.WriteHeader(http.StatusInternalServerError)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" `+
		`xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><soapenv:Fault>`+
		`<faultcode>ServerFaultCode</faultcode><faultstring>%s</faultstring><detail>%s</detail></soapenv:Fault></soapenv:Body></soapenv:Envelope>`,
		text.String(), detail.String())
}

// counts is what clients asked for since the last reset.
type counts struct {
	mu       sync.Mutex
	Total    int            `json:"total"` // API calls, those by VI JSON too
	Logins   int            `json:"logins"`
	Methods  map[string]int `json:"methods"`
	Sessions map[string]int `json:"sessions"` // by session key; "" before log-in
	HTTP     map[string]int `json:"http"`     // all other requests
}

func (c *counts) add(method, session string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Total++
	c.Methods[method]++
	c.Sessions[session]++
	if method == "Login" || method == "LoginByToken" {
		c.Logins++
	}
}

func (c *counts) http(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.HTTP[what]++
}

// reset empties the counters; the caller holds the lock.
func (c *counts) reset() {
	c.Total, c.Logins = 0, 0
	c.Methods, c.Sessions, c.HTTP = map[string]int{}, map[string]int{}, map[string]int{}
}

// connections knows the open connections, to break them on demand.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]struct{}
}

// note is the server's ConnState hook.
func (c *connections) note(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		c.open[conn] = struct{}{}
	case http.StateClosed, http.StateHijacked:
		delete(c.open, conn)
	}
}

// drop resets all open connections and returns how many there were.
func (c *connections) drop() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		reset(conn)
	}
	return len(c.open)
}

// reset ends a connection by RST, as a crashed peer would.
func reset(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if t, ok := conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = conn.Close()
}
