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
	"syscall"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"
)

func TestNFCDiskOfARunningVM(t *testing.T) {
	r := newRig(t, "v")
	vm := object.NewVirtualMachine(r.client.Client, r.vm)
	wait := func(task *object.Task, err error) {
		t.Helper()
		if err == nil {
			err = task.Wait(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	try := func(flags, code uint32, path string) {
		t.Helper()
		p := r.connect(r.writeTicket(), "nbd")
		p.session(65536)
		p.askOpen(path, flags)
		if code != 0 {
			p.fails(code)
		} else {
			p.succeed(4)
		}
		_ = p.conn.Close()
	}
	wait(vm.PowerOn(t.Context()))
	try(0x1e, vixFail, r.path)
	try(0x1a, vixFail, r.path)
	wait(vm.CreateSnapshot(t.Context(), "s", "", false, false))
	live := r.describeDisk()
	if live == r.path {
		t.Fatal("no redo file")
	}
	try(0x1e, 0, r.path) // frozen
	try(0x1a, vixFileReadOnly, r.path)
	try(0x1e, vixFail, live)
	wait(vm.PowerOff(t.Context()))
	try(0x1a, 0, live)
	try(0x1a, vixFileReadOnly, r.path)
	try(0x1e, vixFileNotFound, "[LocalDS_0] nobody/nobody.vmdk")

	// What is frozen stays as it was, and its end fails the requests to come.
	p := r.connect(r.readTicket(), "nbd")
	p.session(65536)
	p.open(r.path, 0x1e)
	control(t, r.lab, "write", diskParams{VM: r.vm.Value, Key: 2000, Data: []byte("later")}, nil)
	if got := p.read(0, 512); !bytes.Equal(got, r.data[:512]) {
		t.Fatalf("%x", got)
	}
	wait(vm.RemoveSnapshot(t.Context(), "s", false, nil))
	wait(vm.PowerOn(t.Context()))
	await(t, "an error of a disk that is in use again", func() bool {
		p.askRead(0, 512)
		kind, _, payload := p.answer()
		if kind == 7 {
			p.receive(int(binary.LittleEndian.Uint32(payload[36:])))
		}
		return kind == 1
	})
	_ = p.conn.Close()
	r.violated()
}

// describeDisk is the path of the file that the VM writes to.
func (r *rig) describeDisk() string {
	var vm struct{ Disks []struct{ Path string } }
	control(r.t, r.lab, "vm", map[string]string{"vm": r.vm.Value}, &vm)
	return vm.Disks[0].Path
}

func TestNFCTicketsAreForTheirDisk(t *testing.T) {
	r := newRig(t, "v")
	var second struct{ Path string }
	control(t, r.lab, "add_disk", map[string]any{"vm": r.vm.Value, "disk": map[string]any{"size": 1 << 20}}, &second)
	var other struct{ Disks []struct{ Path string } }
	control(t, r.lab, "create_vm", vmSpec{Name: "w", Disks: []diskSpec{{Size: 1 << 20}}}, &other)
	for _, x := range []struct {
		write       bool
		path        string
		flags, code uint32
	}{
		{true, second.Path, 0x1e, vixFileNotFound}, {true, other.Disks[0].Path, 0x1a, vixFileNotFound}, {true, r.path, 0x1e, 0}, {true, r.path, 0x1a, 0},
		{false, second.Path, 0x1e, 0}, {false, other.Disks[0].Path, 0x1e, vixFileNotFound}, {false, r.path, 0x1a, vixFileReadOnly},
	} {
		ticket := r.readTicket
		if x.write {
			ticket = r.writeTicket
		}
		p := r.connect(ticket(), "nbd")
		p.session(65536)
		p.askOpen(x.path, x.flags)
		if x.code != 0 {
			p.fails(x.code)
		} else {
			p.succeed(4)
		}
		_ = p.conn.Close()
	}
	r.violated()
}

func TestNFCHostsWithout(t *testing.T) {
	r := newRig(t, "v")
	last := func(service string) string {
		t.Helper()
		ticket := r.readTicket()
		conn, answer, err := r.authdLines(ticket, showTicket+ticket.SessionId+"\r\n", banner, plainText, "PROXY "+service+"\r\n")
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		return answer[:3]
	}
	r.set(map[string]any{"no_ssl": true})
	if last("vpxa-nfcssl") != "501" || last("vpxa-nfc") != "200" {
		t.Fatal("no_ssl")
	}
	r.set(map[string]any{"no_ssl": false, "no_nbd": true})
	if last("vpxa-nfcssl") != "200" || last("vpxa-nfc") != "501" {
		t.Fatal("no_nbd")
	}
	r.set(map[string]any{"reset": true, "host": "esx.invalid", "thumbprint": "AA:BB"})
	if ticket := r.readTicket(); ticket.Host != "esx.invalid" || ticket.SslThumbprint != "AA:BB" {
		t.Fatal(ticket)
	}
	r.set(map[string]any{"reset": true, "certificate_authd": true})
	if _, _, err := r.authdLines(r.readTicket()); err == nil {
		t.Fatal("the right certificate")
	}
	r.set(map[string]any{"reset": true, "port_closed": true})
	if _, _, err := r.authdLines(r.readTicket()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatal(err)
	}
	r.set(map[string]any{"port_closed": false})
	p := r.connect(r.readTicket(), "nbdssl")
	p.session(65536)
	p.open(r.path, 0x1e)
	p.close()
	r.violated()
}

func TestNFCFaults(t *testing.T) {
	r := newRig(t, "v")
	for name, x := range map[string]struct {
		fault nfcFault
		see   func(p *peer) // after reads of 64 KiB at 0, 1 MiB, 2 MiB were asked for
	}{
		"error": {nfcFault{Op: "read", Action: "error", Code: nfcNoMemory, Start: 1 << 20, Length: 512}, func(p *peer) {
			got := map[uint32]uint32{}
			for range 3 {
				kind, op, payload := p.answer()
				if got[op-p.op+3] = kind; kind == 7 {
					p.receive(int(binary.LittleEndian.Uint32(payload[36:])))
				} else if binary.LittleEndian.Uint32(payload) != nfcNoMemory {
					p.t.Fatalf("%x", payload)
				}
			}
			if got[0] != 7 || got[1] != 1 || got[2] != 7 {
				p.t.Fatal(got)
			}
			p.close()
		}},
		"drop": {nfcFault{Op: "read", Action: "drop", Skip: 2}, func(p *peer) {
			if _, err := io.Copy(io.Discard, p.conn); !errors.Is(err, syscall.ECONNRESET) {
				p.t.Fatal(err)
			}
		}},
		"close": {nfcFault{Op: "read", Action: "close", Start: 2 << 20, Length: 512}, func(p *peer) {
			if rest, err := io.ReadAll(p.conn); len(rest) > 2*(16+44+65536) || err != nil {
				p.t.Fatal(len(rest), err)
			}
		}},
		"torn": {nfcFault{Op: "read", Action: "torn", Start: 2 << 20, Length: 512}, func(p *peer) {
			if n, _ := io.Copy(io.Discard, p.conn); n > (16+44+65536)*5/2 {
				p.t.Fatal(n)
			}
		}},
		"hang": {nfcFault{Op: "read", Action: "hang"}, func(p *peer) {
			r.harmed()
			_ = p.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if n, err := io.Copy(io.Discard, p.conn); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				p.t.Fatal(n, err)
			}
			_ = p.conn.Close()
		}},
		"garbage": {nfcFault{Op: "read", Action: "garbage"}, func(p *peer) {
			if got := p.receive(16); binary.LittleEndian.Uint32(got) == aioMagic {
				p.t.Fatalf("%x", got)
			}
			_ = p.conn.Close()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			x.fault.Count = 1
			r.set(map[string]any{"reset": true, "faults": []nfcFault{x.fault}})
			p := r.connect(r.readTicket(), "nbd")
			p.session(65536)
			p.open(r.path, 0x1e)
			for i := range uint64(3) {
				p.askRead(i<<20, 65536)
			}
			x.see(p)
			r.violated()
			if left := r.set(map[string]any{}).Knobs.Faults[0].Count; left != 0 {
				t.Fatal(left)
			}
			again := r.connect(r.readTicket(), "nbdssl") // once
			again.session(65536)
			again.open(r.path, 0x1e)
			if !bytes.Equal(again.read(0, 1<<20), r.data[:1<<20]) {
				t.Fatal("other data")
			}
			again.close()
		})
	}
}

func TestNFCFaultsBeforeReads(t *testing.T) {
	r := newRig(t, "v")
	r.set(map[string]any{"faults": []nfcFault{
		{Op: "authd", Action: "close", Count: 1}, {Op: "session", Action: "error", Code: 5, Count: 1}, {Op: "open", Action: "error", Code: 20, Count: 1},
		{Op: "write", Action: "error", Code: 5, Count: 1}, {Op: "close", Action: "error", Code: 1, Count: 1},
	}})
	if _, _, err := r.authdLines(r.readTicket(), "BANNER \r\n"); err == nil {
		t.Fatal("no fault in authd")
	}
	p := r.connect(r.writeTicket(), "nbd")
	p.ask(2, nil, 0, 65536, 1, 0)
	p.fails(5)
	p.session(65536)
	p.askOpen(r.path, 0x1a)
	p.fails(20)
	p.open(r.path, 0x1a)
	for range 2 { // a write fails as a whole, after its last fragment
		p.fragment(0, 1024, 0, make([]byte, 512))
		p.fragment(0, 1024, 512, make([]byte, 512))
		if kind, _, _ := p.answer(); kind != 1 {
			break
		}
		if now, _ := os.ReadFile(r.nfcFile()); !bytes.Equal(now, r.data) {
			t.Fatal("a failed write was written")
		}
	}
	p.ask(5, nil, uint32(p.file), uint32(p.file>>32))
	p.fails(1)
	p.close()
	r.violated()
}

func TestNFCFaultsOfWrites(t *testing.T) {
	r := newRig(t, "v")
	for _, action := range []string{"drop", "close", "torn", "garbage", "hang"} {
		r.set(map[string]any{"reset": true, "faults": []nfcFault{{Op: "write", Action: action, Count: 1}}})
		p := r.connect(r.writeTicket(), "nbd")
		p.session(65536)
		p.open(r.path, 0x1a)
		p.fragment(0, 512, 0, r.data[:512])
		r.harmed()
		stays := action == "hang" || action == "garbage"
		if stays {
			_ = p.conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		}
		rest, err := io.ReadAll(p.conn)
		if late := errors.Is(err, os.ErrDeadlineExceeded); late != stays || action == "torn" && len(rest) != 30 {
			t.Fatal(action, len(rest), err)
		}
		_ = p.conn.Close()
		r.violated()
	}
}

func TestNFCMemory(t *testing.T) {
	r := newRig(t, "v")
	r.set(map[string]any{"memory": 2 << 20, "latency_ms": 1000})
	p := r.connect(r.readTicket(), "nbd")
	p.session(1 << 20)
	p.open(r.path, 0x1e)
	for range 4 {
		p.askRead(0, 1<<20)
	}
	var kinds []uint32
	for range 4 {
		kind, _, payload := p.answer()
		if kind == 7 {
			p.receive(int(binary.LittleEndian.Uint32(payload[36:])))
		}
		kinds = append(kinds, kind)
	}
	if slices.Sort(kinds); !slices.Equal(kinds, []uint32{1, 1, 7, 7}) {
		t.Fatal(kinds)
	}
	p.close()
	r.violated()
}

func TestNFCLatencyIsOfEachRequest(t *testing.T) {
	r := newRig(t, "v")
	const latency = time.Second
	r.set(map[string]any{"latency_ms": latency.Milliseconds()})
	p := r.connect(r.readTicket(), "nbd")
	p.session(65536)
	p.open(r.path, 0x1e)
	begin := time.Now()
	into := make([][]byte, 8)
	for i := range into {
		into[i] = make([]byte, 65536)
		p.askRead(0, 65536)
	}
	p.gather(p.op-8, into...)
	if took := time.Since(begin); took < latency || took >= 8*latency {
		t.Fatal(took)
	}
	p.close()
	report := r.set(map[string]any{})
	r.violated()
	if report.MaxInFlight != 8 {
		t.Fatal(report)
	}
}

func TestNFCTellsAllocatedBlocks(t *testing.T) {
	r := newRig(t, "v")
	p := r.connect(r.readTicket(), "nbd")
	p.session(65536)
	p.open(r.path, 0x1e)
	ask := func(start, count uint32) []byte {
		p.ask(13, nil, uint32(p.file), uint32(p.file>>32), 0, 0, 1<<20, 0, start, 0, count, 0, 0, 0)
		if reply := p.succeed(13); binary.LittleEndian.Uint32(reply[32:]) != count {
			t.Fatal(reply)
		}
		return p.receive(4)
	}
	if got := ask(0, 5); got[0] != 0b01111 {
		t.Fatalf("%b", got)
	}
	if got := ask(3<<20, 2); got[0] != 0b01 {
		t.Fatalf("%b", got)
	}
	p.ask(13, nil, uint32(p.file), uint32(p.file>>32), 0, 0, 1<<20, 0, 512, 0, 1, 0, 0, 0)
	p.fails(1)
	_ = p.conn.Close()
	r.violated("blocks")
}

func TestNFCDropsAllConnections(t *testing.T) {
	r := newRig(t, "v")
	p := r.connect(r.readTicket(), "nbdssl")
	p.session(65536)
	p.open(r.path, 0x1e)
	if report := r.set(map[string]any{"drop": true}); len(report.Open) != 1 {
		t.Fatal(report)
	}
	if _, err := p.conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	r.violated()
	if _, err := net.DialTimeout("tcp", r.nfc.address, time.Second); err != nil {
		t.Fatal(err)
	}
}
