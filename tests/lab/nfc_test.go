// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

// A small client of the NFC protocol of its own, and what the lab must refuse.

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// peer is the client's end.
type peer struct {
	t    testing.TB
	conn net.Conn
	op   uint32
	file uint64
	size uint64
}

// Requests carry their element's name and namespace by the tag of Req.
type getFilesCall struct {
	Req    *nfcGetVMFiles     `xml:"urn:vim25 NfcGetVmFiles,omitempty"`
	Res    *nfcTicketResponse `xml:"NfcGetVmFilesResponse,omitempty"`
	Fault_ *soap.Fault        `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

type openDiskCall struct {
	Req    *nfcRandomAccess   `xml:"urn:nfc NfcRandomAccessOpenDisk,omitempty"`
	Res    *nfcTicketResponse `xml:"NfcRandomAccessOpenDiskResponse,omitempty"`
	Fault_ *soap.Fault        `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

type libVersionCall struct {
	Req    *nfcOfHost          `xml:"urn:nfc NfcGetServerNfcLibVersion,omitempty"`
	Res    *nfcVersionResponse `xml:"NfcGetServerNfcLibVersionResponse,omitempty"`
	Fault_ *soap.Fault         `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

func (c *getFilesCall) Fault() *soap.Fault   { return c.Fault_ }
func (c *openDiskCall) Fault() *soap.Fault   { return c.Fault_ }
func (c *libVersionCall) Fault() *soap.Fault { return c.Fault_ }

// rig is a lab with a VM of one disk.
type rig struct {
	*lab
	t      testing.TB
	client *govmomi.Client
	vm     types.ManagedObjectReference
	host   types.ManagedObjectReference
	path   string
	data   []byte
}

const rigSize = 5<<20 + 3*512

func newRig(t testing.TB, name string) *rig {
	l, client := startLab(t)
	var made struct {
		Moid, Host string
		Disks      []struct{ Path string }
	}
	control(t, l, "create_vm", vmSpec{Name: name, Tracking: true, Disks: []diskSpec{{Size: rigSize}}}, &made)
	r := &rig{lab: l, t: t, client: client, vm: vmRef(made.Moid), path: made.Disks[0].Path, data: make([]byte, rigSize)}
	r.host = *l.vm(r.vm).Runtime.Host
	source := rand.NewChaCha8([32]byte{7})
	_, _ = source.Read(r.data[:3<<20+100])
	control(t, l, "write", diskParams{VM: made.Moid, Key: 2000, Data: r.data[:3<<20+100]}, nil)
	return r
}

// set changes knobs.
func (r *rig) set(knobs map[string]any) (report nfcReport) {
	r.t.Helper()
	control(r.t, r.lab, "nfc", knobs, &report)
	return report
}

// readTicket asks for a ticket for all files, writeTicket for one of the disk.
func (r *rig) readTicket() types.HostServiceTicket {
	r.t.Helper()
	call := getFilesCall{Req: &nfcGetVMFiles{nfcOfVCenter, &r.vm}}
	var res getFilesCall
	if err := r.client.RoundTrip(r.t.Context(), &call, &res); err != nil {
		r.t.Fatal(err)
	}
	return res.Res.Returnval
}

func (r *rig) writeTicket() types.HostServiceTicket {
	r.t.Helper()
	key := int32(2000)
	call := openDiskCall{Req: &nfcRandomAccess{nfcOfVCenter, &r.vm, &key, &r.host}}
	var res openDiskCall
	if err := r.client.RoundTrip(r.t.Context(), &call, &res); err != nil {
		r.t.Fatal(err)
	}
	return res.Res.Returnval
}

// harmed waits until the only fault has come as often as it should.
func (r *rig) harmed() {
	r.t.Helper()
	await(r.t, "the fault", func() bool { return r.set(map[string]any{}).Knobs.Faults[0].Count == 0 })
}

// violated waits for the end of all sessions and asserts what the lab noted since the last time.
func (r *rig) violated(want ...string) {
	r.t.Helper()
	var got []string
	await(r.t, fmt.Sprintf("%q and the end of all sessions", want), func() bool {
		report := r.set(map[string]any{})
		got = report.Violations
		return len(got) >= len(want) && len(report.Open) == 0
	})
	for _, text := range want {
		if !slices.ContainsFunc(got, func(v string) bool { return strings.Contains(v, text) }) {
			r.t.Fatalf("%q is not among %q", text, got)
		}
	}
	if len(got) != len(want) {
		r.t.Fatalf("%q, not %q", got, want)
	}
}

// authdLines logs in line by line and returns the connection in TLS and the answer to the last line.
func (r *rig) authdLines(ticket types.HostServiceTicket, lines ...string) (*net.TCPConn, string, error) {
	r.t.Helper()
	conn, err := net.Dial("tcp", net.JoinHostPort(ticket.Host, fmt.Sprint(ticket.Port)))
	if err != nil {
		return nil, "", err
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	banner := make([]byte, 0, 300)
	for one := make([]byte, 1); !bytes.HasSuffix(banner, []byte("\r\n")); {
		if _, err := conn.Read(one); err != nil {
			return nil, "", err
		}
		banner = append(banner, one...)
	}
	if !bytes.HasPrefix(banner, []byte("220 VMware Authentication Daemon Version 1.10: SSL Required, ")) {
		r.t.Fatalf("%q", banner)
	}
	secure := tls.Client(&records{Conn: conn}, &tls.Config{InsecureSkipVerify: true})
	if err := secure.Handshake(); err != nil {
		return nil, "", err
	}
	if got := thumbprint(secure.ConnectionState().PeerCertificates[0].Raw); got != ticket.SslThumbprint {
		return nil, "", fmt.Errorf("thumbprint %s, not %s", got, ticket.SslThumbprint)
	}
	answers := bufio.NewReader(secure)
	answer := ""
	for _, line := range lines {
		if _, err := io.WriteString(secure, line); err != nil {
			return nil, "", err
		}
		if strings.HasPrefix(line, "SESSION ") {
			continue
		}
		if answer, err = answers.ReadString('\n'); err != nil {
			return nil, answer, err
		}
	}
	return conn.(*net.TCPConn), strings.TrimSpace(answer), nil
}

// connect logs in with a ticket and goes through the classic handshake.
func (r *rig) connect(ticket types.HostServiceTicket, transport string) *peer {
	r.t.Helper()
	service := ticket.Service
	if transport == "nbdssl" {
		service += "ssl"
	}
	tcp, answer, err := r.authdLines(ticket, "SESSION "+ticket.SessionId+"\r\n", "BANNER \r\n", "THUMBPRINT_SHA2 PlainText\r\n", "PROXY "+service+"\r\n")
	if err != nil || answer != "200 Connect ha-"+service[strings.Index(service, "nfc"):] {
		r.t.Fatal(answer, err)
	}
	p := &peer{t: r.t, conn: tcp}
	if transport == "nbdssl" {
		p.conn = tls.Client(tcp, &tls.Config{InsecureSkipVerify: true})
	}
	hello := make([]byte, 264)
	copy(hello, "\x2b\x00\x00\x00PlainText")
	p.send(hello)
	p.send(word264(33))
	p.want(word264(36, 16, 1))
	p.send(word264(51, 4, 11))
	p.want(word264(51, 4, 11))
	p.send(word264(54, 4, 4, 8, 7))
	p.send([]byte("vddk"))
	p.send([]byte("nbdmode"))
	p.send(word264(55, 4, 3))
	p.send(word264(52))
	p.want(word264(52))
	return p
}

// word264 is a classic message: type, then offsets and numbers.
func word264(kind uint32, fields ...uint32) []byte {
	out := binary.LittleEndian.AppendUint32(nil, kind)
	out = append(out, make([]byte, 260)...)
	for i := 0; i < len(fields); i += 2 {
		binary.LittleEndian.PutUint32(out[fields[i]:], fields[i+1])
	}
	return out
}

func (p *peer) send(data []byte) {
	p.t.Helper()
	if _, err := p.conn.Write(data); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) receive(size int) []byte {
	p.t.Helper()
	out := make([]byte, size)
	if _, err := io.ReadFull(p.conn, out); err != nil {
		p.t.Fatal(err)
	}
	return out
}

func (p *peer) want(data []byte) {
	p.t.Helper()
	if got := p.receive(len(data)); !bytes.Equal(got, data) {
		p.t.Fatalf("%.60x, not %.60x", got, data)
	}
}

// closed asserts that nothing but the end is to come.
func (p *peer) closed() {
	p.t.Helper()
	_ = p.conn.SetReadDeadline(time.Now().Add(patience))
	rest, err := io.ReadAll(p.conn)
	var late net.Error
	if len(rest) > 0 || errors.As(err, &late) && late.Timeout() {
		p.t.Fatalf("%x, %v instead of the end", rest, err)
	}
}

// ask sends a request without waiting; numbers are u32 each.
func (p *peer) ask(kind uint32, extra []byte, payload ...uint32) {
	p.t.Helper()
	out := words(0xA100DA7A, kind, uint32(4*len(payload)), p.op)
	p.op++
	p.send(append(append(out, words(payload...)...), extra...))
}

func words(numbers ...uint32) (out []byte) {
	for _, n := range numbers {
		out = binary.LittleEndian.AppendUint32(out, n)
	}
	return out
}

// answer reads a reply without its extra bytes.
func (p *peer) answer() (kind, op uint32, payload []byte) {
	p.t.Helper()
	head := p.receive(16)
	if binary.LittleEndian.Uint32(head) != 0xA100DA7A {
		p.t.Fatalf("%x", head)
	}
	return binary.LittleEndian.Uint32(head[4:]), binary.LittleEndian.Uint32(head[12:]), p.receive(int(binary.LittleEndian.Uint32(head[8:])))
}

// succeed reads the reply to the last request.
func (p *peer) succeed(kind uint32) []byte {
	p.t.Helper()
	got, op, payload := p.answer()
	if got != kind || op != p.op-1 {
		p.t.Fatalf("type %d of operation %d: %x", got, op, payload)
	}
	return payload
}

// fails reads an error.
func (p *peer) fails(code uint32) {
	p.t.Helper()
	payload := p.succeed(1)
	if got := binary.LittleEndian.Uint32(payload); got != code {
		p.t.Fatalf("error %d, not %d", got, code)
	}
}

// session begins the asynchronous part.
func (p *peer) session(buffer uint32) {
	p.t.Helper()
	p.ask(2, nil, 0, buffer, 4, 0)
	p.succeed(2)
	p.ask(9, nil, 0, 0, 0)
	p.succeed(9)
	p.ask(22, nil, 1)
	p.succeed(22)
}

func (p *peer) askOpen(path string, flags uint32) {
	p.t.Helper()
	payload := make([]uint32, 15)
	payload[0], payload[4], payload[5] = uint32(len(path)), 2, flags
	p.ask(4, []byte(path), payload...)
}

func (p *peer) open(path string, flags uint32) {
	p.t.Helper()
	p.askOpen(path, flags)
	reply := p.succeed(4)
	p.file, p.size = binary.LittleEndian.Uint64(reply[8:]), binary.LittleEndian.Uint64(reply[28:])
	if p.file == 0 || binary.LittleEndian.Uint32(reply[16:]) != 2 || binary.LittleEndian.Uint32(reply[20:]) != flags || binary.LittleEndian.Uint32(reply[36:]) != 512 {
		p.t.Fatalf("%x", reply)
	}
}

func (p *peer) askRead(offset uint64, length uint32) {
	p.t.Helper()
	p.ask(7, nil, uint32(p.file), uint32(p.file>>32), 1, 0, uint32(offset), uint32(offset>>32), length, 0, length, length, 0)
}

// gather reads the fragments of so many reads that are in flight; from is the first's operation.
func (p *peer) gather(from uint32, into ...[]byte) (fragments []uint32) {
	p.t.Helper()
	left := 0
	for _, data := range into {
		left += len(data)
	}
	for left > 0 {
		kind, op, payload := p.answer()
		if kind != 7 || op < from || int(op-from) >= len(into) || len(payload) != 44 {
			p.t.Fatalf("type %d of operation %d: %x", kind, op, payload)
		}
		at, length := binary.LittleEndian.Uint32(payload[28:]), binary.LittleEndian.Uint32(payload[32:])
		total, extra := binary.LittleEndian.Uint32(payload[24:]), binary.LittleEndian.Uint32(payload[36:])
		data := into[op-from]
		if binary.LittleEndian.Uint64(payload) != 0 || int(total) != len(data) || extra != length || length == 0 {
			p.t.Fatalf("%x", payload)
		}
		if _, err := io.ReadFull(p.conn, data[at:at+length]); err != nil {
			p.t.Fatal(err)
		}
		left -= int(length)
		fragments = append(fragments, op-from, at, length)
	}
	return fragments
}

func (p *peer) read(offset uint64, length uint32) []byte {
	p.t.Helper()
	data := make([]byte, length)
	p.askRead(offset, length)
	p.gather(p.op-1, data)
	return data
}

// fragment sends a part of a write; the operation counts up with the last.
func (p *peer) fragment(offset uint64, total, at uint32, data []byte) {
	p.t.Helper()
	out := words(0xA100DA7A, 7, 44, p.op, uint32(p.file), uint32(p.file>>32), 0, 0, uint32(offset), uint32(offset>>32),
		total, at, uint32(len(data)), uint32(len(data)), 0)
	p.send(append(out, data...))
	if at+uint32(len(data)) == total {
		p.op++
	}
}

func (p *peer) close() {
	p.t.Helper()
	p.ask(5, nil, uint32(p.file), uint32(p.file>>32))
	p.succeed(5)
	p.ask(3, nil, 0)
	p.succeed(3)
	p.send(word264(4))
	p.closed()
}

func TestNFCReads(t *testing.T) {
	r := newRig(t, "Größe und 大小")
	for _, transport := range []string{"nbd", "nbdssl"} {
		for _, order := range []string{"straight", "reversed", "mixed"} {
			t.Run(transport+" "+order, func(t *testing.T) {
				r.t = t
				r.set(map[string]any{"reset": true, "order": order})
				p := r.connect(r.readTicket(), transport)
				p.session(65536)
				p.open(r.path, 0x1e)
				if p.size != rigSize {
					t.Fatal(p.size)
				}
				if got := p.read(0, 512); !bytes.Equal(got, r.data[:512]) {
					t.Fatalf("%x", got)
				}
				first, second := make([]byte, 3<<20), make([]byte, rigSize-(3<<20))
				p.askRead(0, uint32(len(first)))
				p.askRead(uint64(len(first)), uint32(len(second)))
				fragments := p.gather(p.op-2, first, second)
				if !bytes.Equal(append(first, second...), r.data) {
					t.Fatal("other data")
				}
				if len(fragments) != 3*(48+33) {
					t.Fatal(fragments)
				}
				sorted := slices.IsSortedFunc(slices.Collect(slices.Chunk(fragments, 3)), func(a, b []uint32) int { return slices.Compare(a, b) })
				if sorted != (order == "straight") {
					t.Fatal("the order of fragments: ", fragments)
				}
				p.ask(11, []byte("adapterType"), uint32(p.file), uint32(p.file>>32), 11, 0)
				if reply := p.succeed(11); binary.LittleEndian.Uint32(reply[12:]) != 8 {
					t.Fatal(reply)
				}
				p.want([]byte("lsilogic"))
				p.ask(11, []byte("isDigest"), uint32(p.file), uint32(p.file>>32), 8, 0)
				if reply := p.succeed(11); !bytes.Equal(reply, make([]byte, 16)) {
					t.Fatal(reply)
				}
				p.close()
				r.violated()
				report := r.set(map[string]any{})
				done := report.Closed[0]
				if !done.Orderly || done.Transport != transport || done.BytesRead != rigSize+512 || done.Reads != 3 || done.Path != r.path ||
					done.MaxInFlight < 1 || done.Client != "vddk nbdmode" || report.Tickets != 1 || report.BytesRead != done.BytesRead {
					t.Fatal(report)
				}
			})
		}
	}
}

// The service must not be what limits a client.
func BenchmarkNFC(b *testing.B) {
	for _, transport := range []string{"nbd", "nbdssl"} {
		b.Run(transport, func(b *testing.B) {
			r := newRig(b, "fast")
			p := r.connect(r.readTicket(), transport)
			p.session(2 << 20)
			p.open(r.path, 0x1e)
			const length, depth = 4 << 20, 8
			data := make([]byte, length)
			b.SetBytes(length)
			for range depth {
				p.askRead(0, length)
			}
			for b.Loop() {
				p.askRead(0, length)
				for left := length; left > 0; {
					_, _, payload := p.answer()
					part := int(binary.LittleEndian.Uint32(payload[32:]))
					if _, err := io.ReadFull(p.conn, data[:part]); err != nil {
						b.Fatal(err)
					}
					left -= part
				}
			}
		})
	}
}
