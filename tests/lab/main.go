// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

// The lab: a vCenter with ESXi hosts on loopback, for tests and the demo. It is govmomi's
// simulator with what that lacks for backups: disk bytes, redo files, changed block
// tracking, strict snapshots, faults on demand. README.md lists the control verbs.
package main

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/vmware/govmomi/simulator"
)

// options are the command line.
type options struct {
	host       string
	port       int
	user       string
	password   string
	root       string
	vddk       string
	vms        int
	datastores int
	hosts      int
	viReleases string
	verbose    bool
}

func parseFlags() options {
	var o options
	flag.StringVar(&o.host, "host", "127.0.0.1", "address to listen on")
	flag.IntVar(&o.port, "port", 0, "port of the vCenter, 0 for a free one")
	flag.StringVar(&o.user, "user", "backup@vsphere.local", "the only user")
	flag.StringVar(&o.password, "password", "Secret-7", "that user's password")
	flag.StringVar(&o.root, "root", "", "directory for all files, removed at the end; a temporary one if empty")
	flag.StringVar(&o.vddk, "vddk", "", "directory of the built stand-in for VDDK, of which the lab makes its own copy")
	flag.IntVar(&o.vms, "vms", 0, "VMs to begin with: powered off, one empty 1 GiB disk each")
	flag.IntVar(&o.datastores, "datastores", 1, "datastores, mounted on all hosts")
	flag.IntVar(&o.hosts, "hosts", 2, "hosts of the one cluster")
	flag.StringVar(&o.viReleases, "vi-releases", "8.0.1.0,8.0.2.0,8.0.3.0", "releases of VI JSON; none for a vCenter without it")
	flag.BoolVar(&o.verbose, "verbose", false, "log to standard error")
	flag.Parse()
	return o
}

// ready is the one line on standard output that tells a client all it needs.
type ready struct {
	Host       string `json:"host"`
	Port       int    `json:"port"`
	URL        string `json:"url"`
	User       string `json:"user"`
	Password   string `json:"password"`
	Thumbprint string `json:"thumbprint"`
	CAFile     string `json:"ca_file"`
	Control    string `json:"control"`
	Root       string `json:"root"`
	VddkLibdir string `json:"vddk_libdir"`
	NFCPort    int    `json:"nfc_port"`       // of all hosts
	NFCThumb   string `json:"nfc_thumbprint"` // of their certificate
}

// lab is the running program: the simulated vCenter and its two listeners.
type lab struct {
	*sim
	model   *simulator.Model
	server  *simulator.Server
	control net.Listener
}

// start builds the inventory and opens both listeners.
func start(o options) (*lab, error) {
	if err := os.Setenv("TMPDIR", o.root); err != nil { // the simulator puts its datastores there
		return nil, err
	}
	model := simulator.VPX()
	model.ServiceContent.About.ApiVersion = apiVersion
	model.ServiceContent.About.Version = "8.0.3"
	model.Autostart = false
	model.Machine, model.Host, model.ClusterHost, model.Datastore = 0, 0, o.hosts, o.datastores
	if err := model.Create(); err != nil {
		return nil, err
	}
	s := newSim(model.Service, model.RootFolder.Self, o)
	if err := s.populate(o.vms); err != nil {
		return nil, err
	}
	certificate, thumbprint, caFile, err := makeCertificates(o.root, o.host)
	if err != nil {
		return nil, err
	}
	service := model.Service
	service.RegisterEndpoints = true
	service.Listen = &url.URL{Host: net.JoinHostPort(o.host, strconv.Itoa(o.port)), User: url.UserPassword(o.user, o.password)}
	service.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	service.ServeMux = http.NewServeMux()
	json := newVIJSON(s.front(service.ServeMux), strings.Split(o.viReleases, ","))
	service.ServeMux.Handle("/sdk/vim25/", json)
	service.ServeMux.Handle(viSystem, json)
	service.ServeMux.Handle(stsPath, s.sts)
	service.ServeMux.HandleFunc(apiSession, s.sessionAPI)
	service.ServeMux.Handle(taggingPath, s.taggingAPI())
	service.RegisterSDK(s.vslmRegistry())
	service.RegisterSDK(s.pbm, pbmSDK)
	server := service.NewServer()
	s.pbm.Put(s.policies) // the simulator put its own into our registry
	// The server runs, but nobody knows of it yet.
	server.Config.Handler = s.front(server.Config.Handler)
	states := server.Config.ConnState
	server.Config.ConnState = func(conn net.Conn, state http.ConnState) {
		s.connections.note(conn, state)
		states(conn, state)
	}
	control, err := net.Listen("tcp", net.JoinHostPort(o.host, "0"))
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(server.URL.Port())
	if err != nil {
		return nil, err
	}
	if err := s.startNFC(); err != nil {
		return nil, err
	}
	s.ready = ready{
		Host: o.host, Port: port, URL: fmt.Sprintf("https://%s:%d/sdk", o.host, port), User: o.user, Password: o.password,
		Thumbprint: thumbprint, CAFile: caFile, Control: "http://" + control.Addr().String(), Root: o.root, VddkLibdir: filepath.Join(o.root, "vddk"),
		NFCPort: s.nfc.port(), NFCThumb: s.nfc.thumbprint,
	}
	mux := s.controlMux()
	go func() { _ = http.Serve(control, mux) }()
	return &lab{s, model, server, control}, nil
}

func run(o options) error {
	if o.root == "" {
		dir, err := os.MkdirTemp("", "holdfast-lab-")
		if err != nil {
			return err
		}
		o.root = dir
	}
	root, err := filepath.Abs(o.root)
	if err != nil {
		return err
	}
	o.root = root
	defer os.RemoveAll(root)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	l, err := start(o)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(l.ready); err != nil {
		return err
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt, syscall.SIGTERM)
	go func() { // the client's death closes our standard input
		_, _ = io.Copy(io.Discard, os.Stdin)
		end <- os.Interrupt
	}()
	<-end
	return nil
}

func main() {
	o := parseFlags()
	if !o.verbose {
		log.SetOutput(io.Discard)
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}
