// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	showTicket = "SESSION "
	banner     = "BANNER \r\n"
	plainText  = "THUMBPRINT_SHA2 PlainText\r\n"
	proxy      = "PROXY vpxa-nfc\r\n"
)

func TestNFCLoginIsStrict(t *testing.T) {
	r := newRig(t, "v")
	for name, x := range map[string]struct {
		lines  []string // % stands for a good ticket
		answer string   // its begin
		rule   string
	}{
		"another service":      {[]string{"SESSION %\r\n", banner, plainText, "PROXY nfc\r\n"}, "501", "PROXY nfc"},
		"no ticket":            {[]string{banner}, "530", "SESSION was due"},
		"a wrong ticket":       {[]string{"SESSION 52cdebc5-b7ee-359a-1dec-76f0bc105ac5\r\n", banner, plainText, proxy}, "530", "never given out"},
		"no banner":            {[]string{"SESSION %\r\n", plainText}, "530", "BANNER was due"},
		"no space":             {[]string{"SESSION %\r\n", "BANNER\r\n"}, "501", `"BANNER"`},
		"no thumbprint":        {[]string{"SESSION %\r\n", banner, proxy}, "530", "THUMBPRINT_SHA2 was due"},
		"another thumbprint":   {[]string{"SESSION %\r\n", banner, "THUMBPRINT_SHA2 AA:BB\r\n"}, "501", "AA:BB"},
		"a user":               {[]string{"USER root\r\n"}, "530", "USER, where"},
		"a password":           {[]string{"PASS Secret-7\r\n"}, "530", "PASS, where"},
		"lines without CR":     {[]string{"SESSION %\r\n", "BANNER \n"}, "", "without CRLF"},
		"an endless line":      {[]string{"SESSION %\r\n", "BANNER " + strings.Repeat("x", 600) + "\r\n"}, "", "no whole line"},
		"an argument to spare": {[]string{"SESSION %\r\n", "BANNER x\r\n"}, "501", "BANNER x"},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			r.set(map[string]any{"reset": true})
			ticket := r.readTicket()
			for i := range x.lines {
				x.lines[i] = strings.ReplaceAll(x.lines[i], "%", ticket.SessionId)
			}
			conn, answer, err := r.authdLines(ticket, x.lines...)
			if x.answer == "" {
				if err == nil {
					t.Fatal(answer)
				}
			} else if err != nil || !strings.HasPrefix(answer, x.answer) {
				t.Fatal(answer, err)
			}
			if conn != nil {
				_, _ = io.Copy(io.Discard, conn)
			}
			r.violated(x.rule)
		})
	}
}

func TestNFCCommandBeforeTLS(t *testing.T) {
	r := newRig(t, "v")
	ticket := r.readTicket()
	conn, err := net.Dial("tcp", r.nfc.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, showTicket+ticket.SessionId+"\r\n"+banner)
	_ = conn.SetDeadline(time.Now().Add(patience))
	rest, err := io.ReadAll(conn)
	if bytes.Contains(rest, []byte("200 ")) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%q %v", rest, err)
	}
	r.violated("before TLS")
}

func TestNFCPlainTextForNbdssl(t *testing.T) {
	r := newRig(t, "v")
	ticket := r.readTicket()
	conn, _, err := r.authdLines(ticket, showTicket+ticket.SessionId+"\r\n", banner, plainText, "PROXY vpxa-nfcssl\r\n")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write(append([]byte("\x2b\x00\x00\x00PlainText"), make([]byte, 251)...))
	_, _ = io.Copy(io.Discard, conn)
	r.violated("second TLS handshake")
}

func TestNFCTicketsAreForOnce(t *testing.T) {
	r := newRig(t, "v")
	ticket := r.readTicket()
	p := r.connect(ticket, "nbd")
	p.session(65536)
	p.open(r.path, 0x1e)
	p.close()
	_, answer, err := r.authdLines(ticket, showTicket+ticket.SessionId+"\r\n", banner, plainText, proxy)
	if err != nil || !strings.HasPrefix(answer, "530 ") {
		t.Fatal(answer, err)
	}
	r.violated("used twice")
}

func TestNFCTicketsExpire(t *testing.T) {
	r := newRig(t, "v")
	late := r.readTicket()
	r.set(map[string]any{"expire_tickets": true})
	r.set(map[string]any{"ticket_seconds": 0.001})
	soon := r.readTicket()
	time.Sleep(5 * time.Millisecond)
	for _, ticket := range []types.HostServiceTicket{late, soon} {
		_, answer, err := r.authdLines(ticket, showTicket+ticket.SessionId+"\r\n", banner, plainText, proxy)
		if err != nil || !strings.HasPrefix(answer, "530 ") {
			t.Fatal(answer, err)
		}
	}
	r.violated()
}

// faulted asks the service and returns the fault.
func faulted(t *testing.T, err error) any {
	t.Helper()
	if err == nil || !soap.IsSoapFault(err) {
		t.Fatal("no fault: ", err)
	}
	return soap.ToSoapFault(err).VimFault()
}

func TestNFCServiceRefuses(t *testing.T) {
	r := newRig(t, "v")
	ask := func(vm, host *types.ManagedObjectReference, key *int32) any {
		t.Helper()
		call := openDiskCall{Req: &nfcRandomAccess{nfcOfVCenter, vm, key, host}}
		return faulted(t, r.client.RoundTrip(t.Context(), &call, &openDiskCall{}))
	}
	right, wrong := int32(2000), int32(2001)
	nobody := vmRef("vm-99999")
	if f, ok := ask(&r.vm, &r.host, &wrong).(types.InvalidArgument); !ok || f.InvalidProperty != "diskDeviceKey" {
		t.Fatal(f)
	}
	if f, ok := ask(&r.vm, nil, &right).(types.InvalidArgument); !ok || f.InvalidProperty != "hostForAccess" {
		t.Fatal(f)
	}
	if f, ok := ask(&nobody, &r.host, &right).(types.ManagedObjectNotFound); !ok {
		t.Fatal(f)
	}
	r.set(map[string]any{"maintenance": true})
	if f, ok := ask(&r.vm, &r.host, &right).(types.InvalidHostState); !ok {
		t.Fatal(f)
	}
	r.set(map[string]any{"reset": true, "esxi": true})
	if f, ok := ask(&r.vm, &r.host, &right).(types.ManagedObjectNotFound); !ok {
		t.Fatal(f)
	}
	version := libVersionCall{Req: &nfcOfHost{nfcOfESXi, &r.host}}
	if err := r.client.RoundTrip(t.Context(), &version, &version); err != nil || version.Res.Returnval != 11 {
		t.Fatal(version.Res, err)
	}
	call := getFilesCall{Req: &nfcGetVMFiles{nfcOfESXi, &r.vm}}
	if err := r.client.RoundTrip(t.Context(), &call, &call); err != nil {
		t.Fatal(err)
	}
	ticket := call.Res.Returnval
	if ticket.Host != "" || ticket.Service != "ha-nfc" || ticket.Port == 0 {
		t.Fatal(ticket)
	}
	ticket.Host = "127.0.0.1"
	p := r.connect(ticket, "nbdssl")
	p.session(65536)
	p.open(r.path, 0x1e)
	p.close()
	r.set(map[string]any{"reset": true, "ticket_pem": true})
	if ticket := r.readTicket(); ticket.SslThumbprint != "" || !strings.HasPrefix(ticket.SslCertificate, "-----BEGIN CERTIFICATE") {
		t.Fatal(ticket)
	}
}

func TestNFCHandshakeIsStrict(t *testing.T) {
	r := newRig(t, "v")
	hello := make([]byte, 264)
	copy(hello, "\x2b\x00\x00\x00PlainText")
	padded := slices.Clone(hello)
	padded[263] = 1
	for name, x := range map[string]struct {
		messages [][]byte
		rule     string
	}{
		"another greeting": {[][]byte{word264(43)}, "type 43 was due"},
		"padding":          {[][]byte{padded}, "type 43 was due"},
		"order":            {[][]byte{hello, word264(51, 4, 11)}, "type 33 was due"},
		"version":          {[][]byte{hello, word264(33), word264(51, 4, 10)}, "type 51 was due"},
		"no names":         {[][]byte{hello, word264(33), word264(51, 4, 11), word264(54)}, "type 54 was due"},
		"long names":       {[][]byte{hello, word264(33), word264(51, 4, 11), word264(54, 4, 1<<31, 8, 7)}, "type 54 was due"},
		"features":         {[][]byte{hello, word264(33), word264(51, 4, 11), append(word264(54, 4, 1, 8, 1), "ab"...), word264(55, 4, 7)}, "type 55 was due"},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			r.set(map[string]any{"reset": true})
			ticket := r.readTicket()
			conn, _, err := r.authdLines(ticket, showTicket+ticket.SessionId+"\r\n", banner, plainText, proxy)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range x.messages {
				_, _ = conn.Write(m)
			}
			_, _ = io.Copy(io.Discard, conn)
			r.violated(x.rule)
		})
	}
}

func TestNFCSessionIsStrict(t *testing.T) {
	r := newRig(t, "v")
	low, high := func(p *peer) uint32 { return uint32(p.file) }, func(p *peer) uint32 { return uint32(p.file >> 32) }
	for name, x := range map[string]struct {
		flags uint32 // of the file that is open before; 0: none
		do    func(r *rig, p *peer)
		code  uint32 // of an error reply; 0: the connection ends
		rule  string
	}{
		"magic":           {0x1e, func(_ *rig, p *peer) { p.send(words(0xA100DA7B, 7, 44, p.op)) }, 0, "magic"},
		"unknown type":    {0x1e, func(_ *rig, p *peer) { p.ask(99, nil, 0) }, 0, "type 99"},
		"size":            {0x1e, func(_ *rig, p *peer) { p.ask(7, nil, 0) }, 0, "with a payload of 4"},
		"operation again": {0x1e, func(_ *rig, p *peer) { p.op--; p.askRead(0, 512) }, 0, "was due"},
		"operation skips": {0x1e, func(_ *rig, p *peer) { p.op++; p.askRead(0, 512) }, 0, "was due"},
		"session twice":   {0x1e, func(_ *rig, p *peer) { p.ask(2, nil, 0, 65536, 1, 0) }, 0, "OPEN_SESSION"},
		"socket options":  {0x1e, func(_ *rig, p *peer) { p.ask(9, nil, 1, 0, 0) }, 0, "SET_SOCK_OPTS"},
		"resource pool":   {0x1e, func(_ *rig, p *peer) { p.ask(22, nil, 2) }, 0, "SET_RES_POOL"},
		"second file":     {0x1e, func(r *rig, p *peer) { p.askOpen(r.path, 0x1e) }, 0, "second file"},
		"open flags":      {0, func(r *rig, p *peer) { p.askOpen(r.path, 0x1f) }, 0, "OPEN_FILE"},
		"open with NUL":   {0, func(r *rig, p *peer) { p.askOpen(r.path+"\x00", 0x1e) }, 0, "OPEN_FILE"},
		"open nothing":    {0, func(r *rig, p *peer) { p.askOpen("", 0x1e) }, 0, "OPEN_FILE"},
		"read past end":   {0x1e, func(_ *rig, p *peer) { p.askRead(rigSize-512, 1024) }, 1, "past the end"},
		"read far away":   {0x1e, func(_ *rig, p *peer) { p.askRead(1<<63, 512) }, 1, "past the end"},
		"read nothing":    {0x1e, func(_ *rig, p *peer) { p.askRead(0, 0) }, 1, "a read of 0"},
		"unaligned":       {0x1e, func(_ *rig, p *peer) { p.askRead(1, 512) }, 1, "at 1"},
		"half a sector":   {0x1e, func(_ *rig, p *peer) { p.askRead(0, 256) }, 1, "a read of 256"},
		"another handle":  {0x1e, func(_ *rig, p *peer) { p.file++; p.askRead(0, 512) }, 1, "no such handle"},
		"no file":         {0, func(_ *rig, p *peer) { p.askRead(0, 512) }, 1, "no such handle"},
		"lengths differ": {0x1e, func(_ *rig, p *peer) { p.ask(7, nil, low(p), high(p), 1, 0, 0, 0, 1024, 0, 512, 1024, 0) }, 0,
			"a read of 1024"},
		"operation":       {0x1e, func(_ *rig, p *peer) { p.ask(7, nil, low(p), high(p), 2, 0, 0, 0, 512, 0, 512, 512, 0) }, 0, "IO: "},
		"packing":         {0x1e, func(_ *rig, p *peer) { p.ask(7, nil, low(p), high(p), 1, 1, 0, 0, 512, 0, 512, 512, 0) }, 0, "IO: "},
		"write read only": {0x1e, func(_ *rig, p *peer) { p.fragment(0, 512, 0, make([]byte, 512)) }, vixFileReadOnly, "opened to read"},
		"write past end":  {0x1a, func(_ *rig, p *peer) { p.fragment(rigSize, 512, 0, make([]byte, 512)) }, 1, "past the end"},
		"write unaligned": {0x1a, func(_ *rig, p *peer) { p.fragment(100, 512, 0, make([]byte, 512)) }, 1, "at 100"},
		"write too much":  {0x1a, func(_ *rig, p *peer) { p.fragment(0, 1<<20, 0, make([]byte, 65536+512)) }, 0, "a fragment of"},
		"write a gap": {0x1a, func(_ *rig, p *peer) {
			p.fragment(0, 2048, 0, make([]byte, 512))
			p.fragment(0, 2048, 1024, make([]byte, 1024))
		}, 0, "do not add up"},
		"write half a sector": {0x1a, func(_ *rig, p *peer) {
			p.fragment(0, 2048, 0, make([]byte, 512))
			p.fragment(0, 2048, 512, make([]byte, 100))
			p.fragment(0, 2048, 612, make([]byte, 512))
		}, 0, "do not add up"},
		"write over the total": {0x1a, func(_ *rig, p *peer) {
			p.fragment(0, 1024, 0, make([]byte, 512))
			p.fragment(0, 1024, 512, make([]byte, 1024))
		}, 0, "do not add up"},
		"write another total": {0x1a, func(_ *rig, p *peer) {
			p.fragment(0, 1024, 0, make([]byte, 512))
			p.fragment(0, 2048, 512, make([]byte, 512))
		}, 0, "do not add up"},
		"read amid a write": {0x1a, func(_ *rig, p *peer) {
			p.fragment(0, 1024, 0, make([]byte, 512))
			p.op++
			p.askRead(0, 512)
		}, 0, "amid the fragments"},
		"close another":           {0x1e, func(_ *rig, p *peer) { p.ask(5, nil, 1, 2) }, 1, "no such handle"},
		"close the session":       {0x1e, func(_ *rig, p *peer) { p.ask(3, nil, 0) }, 0, "with an open file"},
		"another end":             {0, func(_ *rig, p *peer) { p.ask(3, nil, 0); p.succeed(3); p.send(word264(5)) }, 0, "type 4 was due"},
		"a request after the end": {0, func(_ *rig, p *peer) { p.ask(3, nil, 0); p.succeed(3); p.ask(9, nil, 0, 0, 0) }, 0, "type 4 was due"},
		"more after the end": {0, func(_ *rig, p *peer) {
			p.ask(3, nil, 0)
			p.succeed(3)
			p.send(append(word264(4), 1))
		}, 0, "after the end"},
		"close in flight": {0x1e, func(r *rig, p *peer) {
			r.set(map[string]any{"latency_ms": 60_000})
			p.askRead(0, 512)
			p.ask(5, nil, low(p), high(p))
		}, 0, "in flight"},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			r.set(map[string]any{"reset": true})
			before, _ := os.ReadFile(r.nfcFile())
			p := r.connect(r.writeTicket(), "nbd")
			p.session(65536)
			if x.flags != 0 {
				p.open(r.path, x.flags)
			}
			x.do(r, p)
			if x.code == 0 {
				p.closed()
			} else {
				p.fails(x.code)
				_ = p.conn.Close()
			}
			r.violated(x.rule)
			if now, _ := os.ReadFile(r.nfcFile()); !bytes.Equal(now, before) && !strings.HasPrefix(name, "write") && name != "read amid a write" {
				t.Fatal("the disk has changed")
			}
		})
	}
}

// nfcFile is the raw file of the rig's disk.
func (r *rig) nfcFile() string {
	var found struct{ File string }
	control(r.t, r.lab, "file", diskParams{VM: r.vm.Value, Key: 2000}, &found)
	return found.File
}

func TestNFCBuffers(t *testing.T) {
	r := newRig(t, "v")
	for _, x := range []struct {
		buffer, count, code uint32
		rule                []string
	}{
		{2 << 20, 1, 0, nil}, {2 << 20, 4, 0, nil}, {0, 0, 0, nil},
		{4 << 20, 1, nfcNoMemory, nil}, {32 << 20, 1, nfcNoMemory, nil}, {2 << 20, 16, nfcNoMemory, nil},
		{100_000, 1, 1, []string{"a buffer of 100000"}},
	} {
		r.set(map[string]any{"reset": true})
		p := r.connect(r.readTicket(), "nbd")
		p.ask(2, nil, 0, x.buffer, x.count, 0)
		switch {
		case x.rule != nil:
			p.closed()
		case x.code != 0:
			p.fails(x.code)
			p.closed()
		default:
			p.succeed(2)
			p.open(r.path, 0x1e)
			data := make([]byte, 3<<20)
			p.askRead(0, uint32(len(data)))
			want := int(max(x.buffer, 65536))
			if fragments := p.gather(p.op-1, data); len(fragments) != 3*((len(data)+want-1)/want) || !bytes.Equal(data, r.data[:len(data)]) {
				t.Fatal(fragments)
			}
			p.close()
		}
		r.violated(x.rule...)
	}
}

func TestNFCWrites(t *testing.T) {
	for _, transport := range []string{"nbd", "nbdssl"} {
		t.Run(transport, func(t *testing.T) {
			r := newRig(t, "v")
			p := r.connect(r.writeTicket(), transport)
			p.session(65536)
			p.open(r.path, 0x1a)
			chance, want := seeded(t), slices.Clone(r.data)
			for range 30 {
				offset := chance.Int64N(rigSize/512) * 512
				data := make([]byte, min(512*(1+chance.Int64N(600)), rigSize-offset))
				for i := range data {
					data[i] = byte(chance.Int())
				}
				copy(want[offset:], data)
				for at := 0; at < len(data); at += 65536 {
					p.fragment(uint64(offset), uint32(len(data)), uint32(at), data[at:min(at+65536, len(data))])
				}
				reply := p.succeed(7)
				if binary.LittleEndian.Uint64(reply[16:]) != uint64(offset) || binary.LittleEndian.Uint32(reply[32:]) != uint32(len(data)) ||
					binary.LittleEndian.Uint32(reply[36:]) != 0 {
					t.Fatalf("%x", reply)
				}
			}
			if got := p.read(0, rigSize); !bytes.Equal(got, want) {
				t.Fatal("other data")
			}
			p.close()
			r.violated()
			if now, err := os.ReadFile(r.nfcFile()); err != nil || !bytes.Equal(now, want) {
				t.Fatal("other data in the file", err)
			}
		})
	}
}

func TestNFCWriteReachesChangeTracking(t *testing.T) {
	r := newRig(t, "v")
	vm := r.vm.Value
	p := r.connect(r.writeTicket(), "nbd")
	p.session(65536)
	p.open(r.path, 0x1a)
	owner := r.disks.find(r.path)
	owner.mu.Lock()
	before := owner.track.point()
	owner.mu.Unlock()
	p.fragment(3*block+512, 512, 0, make([]byte, 512))
	p.succeed(7)
	owner.mu.Lock()
	dirty := slices.Clone(owner.track.current.dirty)
	owner.mu.Unlock()
	if before == "" || len(dirty) != 1 || dirty[0].start > 3*block+512 || dirty[0].end() < 3*block+1024 || dirty[0].length > block {
		t.Fatal(vm, before, dirty)
	}
	p.close()
}
