// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math/bits"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Error codes that the lab gives beside those of openDisk.
const (
	vixUserPermissions = 3014
	vixCannotConnect   = 18000
	vixDisabled        = 20005
)

// vddkFault fails requests that touch a range: Op is connect, open, read, write, flush, blocks,
// prepare, end or cleanup. Code -1 ends the process, as a panic of the library does. Opens have no
// bytes: there a process's attempts are counted, from 0.
type vddkFault struct {
	Op     string `json:"op"`
	Start  int64  `json:"start"`  // bytes
	Length int64  `json:"length"` // bytes; 0: all
	Code   int    `json:"code"`
	Count  int    `json:"count"` // how often, in all processes together
}

// vddkKnobs is how the stand-in behaves. Most are read at each open of a disk.
type vddkKnobs struct {
	LatencyMS     float64     `json:"latency_ms"`      // of each request
	InFlight      int         `json:"in_flight"`       // requests served at the same time
	Memory        int64       `json:"memory"`          // bytes in flight; more ends in error 2
	Callbacks     string      `json:"callbacks"`       // late, reversed (newest first), inline
	Transport     string      `json:"transport"`       // "": the first NBD one that is asked for
	BlocksDelayMS float64     `json:"blocks_delay_ms"` // of each QueryAllocatedBlocks
	CheckThread   bool        `json:"check_thread"`    // Open, Close and QueryAllocatedBlocks from one thread only
	Variant       string      `json:"variant"`         // "", no-blocks, 6.5
	Thumbprint    string      `json:"thumbprint"`      // of the certificate that the library gets to see; "": the right one
	Faults        []vddkFault `json:"faults"`
}

// vddkHandle is one open disk.
type vddkHandle struct {
	opening
	PID int `json:"pid"`
	opened
	state string // the file shared with the stand-in: an error code, then a bit for each 64 KiB written
}

// vddkReport is what tests look at.
type vddkReport struct {
	Opens      int                 `json:"opens"`
	Open       []*vddkHandle       `json:"open"`
	Closed     []map[string]string `json:"closed"`     // counters of each closed handle
	Prepared   []string            `json:"prepared"`   // VMs and first class disks
	Violations []string            `json:"violations"` // rules of the interface that a client broke
	Knobs      vddkKnobs           `json:"knobs"`
}

// vddk is the lab's side of the stand-in for VDDK.
type vddk struct {
	s       *sim
	dir     string
	mu      sync.Mutex
	knobs   vddkKnobs
	handles map[string]*vddkHandle
	report  vddkReport
	next    int
}

// vddkRoutes serves POST /control/vddk to tests, and to the stand-in its questions: lines of key=value.
func (s *sim) vddkRoutes(mux *http.ServeMux) {
	v := &vddk{s: s, dir: filepath.Join(s.root, "vddk"), handles: map[string]*vddkHandle{}}
	v.reset()
	s.library = v
	if s.vddk != "" {
		if err := v.install(); err != nil {
			panic(err)
		}
	}
	mux.HandleFunc("POST /control/vddk", serveVerb(typed(v.control)))
	for verb, answer := range map[string]func(lines) lines{
		"init": v.init, "connect": v.connect, "open": v.open, "close": v.close, "fault": v.fault,
		"violation": v.violation, "prepare": v.prepare, "end": v.end, "cleanup": v.cleanup,
	} {
		mux.HandleFunc("POST /control/vddk/"+verb, func(w http.ResponseWriter, r *http.Request) {
			question := readLines(r.Body)
			v.mu.Lock()
			defer v.mu.Unlock()
			_, _ = io.WriteString(w, answer(question).String())
		})
	}
	go v.watch()
}

// lines is what the stand-in asks or is told. Keys that may repeat are joined by newlines.
type lines map[string]string

func readLines(r io.Reader) lines {
	l := lines{}
	for scanner := bufio.NewScanner(r); scanner.Scan(); {
		key, value, _ := strings.Cut(scanner.Text(), "=")
		l[key] = value
	}
	return l
}

func (l lines) String() string {
	var b strings.Builder
	for key, values := range l {
		for value := range strings.SplitSeq(values, "\n") {
			fmt.Fprintf(&b, "%s=%s\n", key, value)
		}
	}
	return b.String()
}

func denied(code int, format string, a ...any) lines {
	return lines{"error": strconv.Itoa(code), "reason": fmt.Sprintf(format, a...)}
}

// install lays out a kit of the chosen variant beside a lab.conf that leads back here.
func (v *vddk) install() error {
	from, to := filepath.Join(v.s.vddk, v.knobs.Variant, "lib64"), filepath.Join(v.dir, "lib64")
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	control := strings.TrimPrefix(v.s.ready.Control, "http://")
	return os.WriteFile(filepath.Join(to, "lab.conf"), []byte("control="+control+"\n"), 0o600)
}

// reset forgets all but the open handles.
func (v *vddk) reset() {
	v.knobs = vddkKnobs{InFlight: 8, Memory: 48 << 20, Callbacks: "late", CheckThread: true, Faults: []vddkFault{}}
	v.report = vddkReport{Open: []*vddkHandle{}, Closed: []map[string]string{}, Prepared: []string{}, Violations: []string{}}
}

// control sets the given knobs, the others stay; and returns the report.
func (v *vddk) control(p struct {
	vddkChange
	Reset bool `json:"reset"`         // all knobs to their defaults and the report emptied, first
	Break int  `json:"break_handles"` // error code that all requests on the handles open now end in
}) (any, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	variant := v.knobs.Variant
	if p.Reset {
		v.reset()
	}
	p.apply(&v.knobs)
	if v.knobs.Variant != variant {
		if err := v.install(); err != nil {
			return nil, err
		}
	}
	if p.Break != 0 {
		for _, h := range v.handles {
			h.fail(p.Break)
		}
	}
	report := v.report
	report.Knobs = v.knobs
	report.Knobs.Faults = slices.Clone(v.knobs.Faults)
	for _, h := range v.handles {
		report.Open = append(report.Open, h)
	}
	return report, nil
}

// vddkChange is vddkKnobs with each knob optional.
type vddkChange struct {
	LatencyMS     *float64     `json:"latency_ms"`
	InFlight      *int         `json:"in_flight"`
	Memory        *int64       `json:"memory"`
	Callbacks     *string      `json:"callbacks"`
	Transport     *string      `json:"transport"`
	BlocksDelayMS *float64     `json:"blocks_delay_ms"`
	CheckThread   *bool        `json:"check_thread"`
	Variant       *string      `json:"variant"`
	Thumbprint    *string      `json:"thumbprint"`
	Faults        *[]vddkFault `json:"faults"`
}

func (c vddkChange) apply(k *vddkKnobs) {
	set(&k.LatencyMS, c.LatencyMS)
	set(&k.InFlight, c.InFlight)
	set(&k.Memory, c.Memory)
	set(&k.Callbacks, c.Callbacks)
	set(&k.Transport, c.Transport)
	set(&k.BlocksDelayMS, c.BlocksDelayMS)
	set(&k.CheckThread, c.CheckThread)
	set(&k.Variant, c.Variant)
	set(&k.Thumbprint, c.Thumbprint)
	set(&k.Faults, c.Faults)
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// Questions of the stand-in

func (v *vddk) init(lines) lines {
	var faults []string
	for _, f := range v.knobs.Faults {
		unit := int64(512)
		if f.Op == "open" {
			unit = 1
		}
		length := f.Length / unit
		if length == 0 {
			length = 1 << 62
		}
		faults = append(faults, fmt.Sprintf("%s %d %d %d %d", f.Op, f.Start/unit, length, f.Code, f.Count))
	}
	answer := lines{"check_thread": map[bool]string{true: "1", false: "0"}[v.knobs.CheckThread]}
	if faults != nil {
		answer["fault"] = strings.Join(faults, "\n")
	}
	return answer
}

func (v *vddk) fault(q lines) lines {
	n, err := strconv.Atoi(q["number"])
	if err != nil || n >= len(v.knobs.Faults) || v.knobs.Faults[n].Count == 0 {
		return lines{"take": "0"}
	}
	v.knobs.Faults[n].Count--
	return lines{"take": "1"}
}

func (v *vddk) violation(q lines) lines {
	v.report.Violations = append(v.report.Violations, q["text"])
	return lines{}
}

// connect checks the server and the credentials. A wrong thumbprint shows only at the open of a disk.
func (v *vddk) connect(q lines) lines {
	ready := v.s.ready
	if q["server"] != ready.Host || q["port"] != strconv.Itoa(ready.Port) {
		return denied(vixCannotConnect, "no server at %s:%s", q["server"], q["port"])
	}
	if q["username"] != ready.User || q["password"] != ready.Password {
		return denied(vixUserPermissions, "wrong user name or password")
	}
	return lines{}
}

func (v *vddk) open(q lines) lines {
	if !strings.EqualFold(q["thumbprint"], cmp.Or(v.knobs.Thumbprint, v.s.ready.Thumbprint)) {
		return denied(vixFail, "thumbprint does not match")
	}
	h := &vddkHandle{opening: opening{VM: strings.TrimPrefix(q["vm"], "moref="), FCD: q["fcd"], Datastore: q["datastore"],
		Snapshot: cmp.Or(q["fcd_snapshot"], q["snapshot"]), Path: q["path"], Write: q["write"] == "1"}}
	found, refused := v.s.openDisk(h.opening)
	if refused != nil {
		return denied(int(refused.Code), "%s", refused.Message)
	}
	v.next++
	id := strconv.Itoa(v.next)
	h.PID, _ = strconv.Atoi(q["pid"])
	h.opened, h.state = found, filepath.Join(v.dir, "handle-"+id)
	if err := makeState(h.state, h.capacity); err != nil {
		return denied(vixFail, "%v", err)
	}
	v.handles[id] = h
	v.report.Opens++
	k := v.knobs
	return lines{
		"id": id, "flat": h.flat, "capacity": strconv.FormatInt(h.capacity, 10), "state": h.state,
		"latency_us": microseconds(k.LatencyMS), "blocks_delay_us": microseconds(k.BlocksDelayMS),
		"in_flight": strconv.Itoa(k.InFlight), "memory": strconv.FormatInt(k.Memory, 10), "callbacks": k.Callbacks,
	}.with("transport", k.Transport)
}

func (l lines) with(key, value string) lines {
	if value != "" {
		l[key] = value
	}
	return l
}

func microseconds(ms float64) string { return strconv.FormatInt(int64(ms*1000), 10) }

func (v *vddk) close(q lines) lines {
	if h := v.handles[q["id"]]; h != nil {
		v.forget(q["id"])
		q["vm"], q["fcd"], q["snapshot"], q["path"] = h.VM, h.FCD, h.Snapshot, h.Path
		v.report.Closed = append(v.report.Closed, q)
	}
	return lines{}
}

func (v *vddk) prepare(q lines) lines {
	object := cmp.Or(q["vm"], q["fcd"])
	if slices.Contains(v.report.Prepared, object) {
		return denied(vixDisabled, "the method is already disabled")
	}
	v.report.Prepared = append(v.report.Prepared, object)
	return lines{}
}

func (v *vddk) end(q lines) lines {
	v.report.Prepared = slices.DeleteFunc(v.report.Prepared, func(object string) bool { return object == cmp.Or(q["vm"], q["fcd"]) })
	return lines{}
}

func (v *vddk) cleanup(lines) lines { return lines{"cleaned": "0", "remaining": "0"} }

// Handles

const stateHead = 64

func makeState(path string, capacity int64) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(path, stateHead+capacity/block/8+1)
}

// fail makes all requests on the handle end in an error.
func (h *vddkHandle) fail(code int) {
	if f, err := os.OpenFile(h.state, os.O_RDWR, 0); err == nil {
		_, _ = f.WriteAt(binary.LittleEndian.AppendUint32(nil, uint32(code)), 0)
		_ = f.Close()
	}
}

// forget drops a handle and tells the tracking what was written through it.
func (v *vddk) forget(id string) {
	h := v.handles[id]
	if h == nil {
		return
	}
	delete(v.handles, id)
	state, err := os.ReadFile(h.state)
	_ = os.Remove(h.state)
	if err != nil || !h.Write {
		return
	}
	note := v.s.knobs().notice(&h.owner.track)
	h.owner.mu.Lock()
	defer h.owner.mu.Unlock()
	for i, b := range state[stateHead:] {
		for ; b != 0; b &= b - 1 {
			note(extent{int64(i*8+bits.TrailingZeros8(b)) * block, block})
		}
	}
}

// alive tells whether a process runs; one that only waits for its parent to take notice is dead.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

// watch ends the handles of dead processes, and fails those whose disk is not there any more.
func (v *vddk) watch() {
	for range time.Tick(50 * time.Millisecond) {
		v.mu.Lock()
		handles := maps.Clone(v.handles)
		v.mu.Unlock()
		for id, h := range handles {
			if !alive(h.PID) {
				v.mu.Lock()
				v.forget(id)
				v.mu.Unlock()
			} else if now, refused := v.s.openDisk(h.opening); refused != nil || now.flat != h.flat {
				v.mu.Lock()
				if v.handles[id] == h { // it has not moved meanwhile
					h.fail(int(cmp.Or(refused, &vixError{Code: vixFileNotFound}).Code))
				}
				v.mu.Unlock()
			}
		}
	}
}
