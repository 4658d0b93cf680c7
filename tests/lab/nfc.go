// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"
)

// nfcKnobs is how the hosts' NFC service behaves. Those of a session are read when it begins,
// latency, rate, order and faults at each message.
type nfcKnobs struct {
	LatencyMS        float64    `json:"latency_ms"`        // of each read and write
	Rate             int64      `json:"rate"`              // bytes of data per second and session; 0: no limit
	Order            string     `json:"order"`             // of fragments: straight, reversed (within a request), mixed (of all requests)
	Fragment         int        `json:"fragment"`          // most bytes in a fragment, in whole sectors; 0: the session's buffer size
	MaxBuffer        int        `json:"max_buffer"`        // largest buffer size that OPEN_SESSION may ask for
	Memory           int64      `json:"memory"`            // bytes of requests in flight in a session; more ends in an error; 0: no limit
	MemoryCode       uint32     `json:"memory_code"`       // of that error
	NoSSL            bool       `json:"no_ssl"`            // a host without nbdssl
	NoNBD            bool       `json:"no_nbd"`            // a host without nbd
	Maintenance      bool       `json:"maintenance"`       // all hosts: no tickets
	PortClosed       bool       `json:"port_closed"`       // connections are refused
	Mute             bool       `json:"mute"`              // connections are accepted, and nothing is said
	Host             string     `json:"host"`              // in tickets; "": the right one
	Thumbprint       string     `json:"thumbprint"`        // in tickets; "": the right one
	TicketPEM        bool       `json:"ticket_pem"`        // tickets with the host's certificate instead of its thumbprint
	CertificateAuthd bool       `json:"certificate_authd"` // another certificate than the host's in the first handshake
	CertificateNFC   bool       `json:"certificate_nfc"`   // and in the second, of nbdssl
	TicketSeconds    float64    `json:"ticket_seconds"`    // life of an unused ticket
	Capacity         int64      `json:"capacity"`          // told of every disk; 0: the truth
	ESXi             bool       `json:"esxi"`              // the service of a standalone host, not of a vCenter
	Faults           []nfcFault `json:"faults"`
}

// nfcFault makes messages fail. Op is authd, session (OPEN_SESSION), open, read, write, close; reads
// and writes are those that touch a range.
type nfcFault struct {
	Op     string `json:"op"`
	Action string `json:"action"` // error, drop (RST), close (FIN), hang, torn (part of the answer, then RST), garbage
	Code   uint32 `json:"code"`   // of an error
	Start  int64  `json:"start"`  // bytes
	Length int64  `json:"length"` // bytes; 0: all
	Skip   int    `json:"skip"`   // how many go unharmed first
	Count  int    `json:"count"`  // how often, in all sessions together
}

// nfcTicket allows one connection.
type nfcTicket struct {
	id      string
	vm      string
	key     int32 // of the disk; 0: any
	write   bool
	service string
	expires time.Time
	used    bool
}

// nfcSessionReport is what a session did.
type nfcSessionReport struct {
	VM          string `json:"vm"`
	Key         int32  `json:"key"`
	Path        string `json:"path"`
	Write       bool   `json:"write"`
	Transport   string `json:"transport"` // nbd, nbdssl
	Client      string `json:"client"`
	Buffer      int    `json:"buffer"`
	Buffers     int    `json:"buffers"`
	Reads       int    `json:"reads"`
	Writes      int    `json:"writes"`
	BytesRead   int64  `json:"bytes_read"`
	BytesPacked int64  `json:"bytes_packed"` // of them that were sent packed, as long as they were then
	Written     int64  `json:"bytes_written"`
	MaxInFlight int    `json:"max_in_flight"`
	Errors      int    `json:"errors"` // error replies
	Orderly     bool   `json:"orderly"`
}

// nfcReport is what tests look at.
type nfcReport struct {
	Tickets     int                `json:"tickets"` // given out
	Connections int                `json:"connections"`
	Open        []nfcSessionReport `json:"open"`
	Closed      []nfcSessionReport `json:"closed"`
	Reads       int                `json:"reads"`
	Writes      int                `json:"writes"`
	BytesRead   int64              `json:"bytes_read"`
	Written     int64              `json:"bytes_written"`
	MaxInFlight int                `json:"max_in_flight"` // requests of one session
	Violations  []string           `json:"violations"`    // rules of the protocol that a client broke
	Knobs       nfcKnobs           `json:"knobs"`
}

// nfc is the NFC service of all hosts: one listener, as if each host had it.
type nfc struct {
	s           *sim
	certificate tls.Certificate // of the host
	other       tls.Certificate // of somebody else
	thumbprint  string
	thumbprint2 string // SHA-256
	address     string
	mu          sync.Mutex
	listener    net.Listener
	conns       map[net.Conn]struct{}
	knobs       nfcKnobs
	tickets     map[string]*nfcTicket
	sessions    map[*nfcSession]struct{}
	report      nfcReport
}

// startNFC opens the hosts' port.
func (s *sim) startNFC() error {
	n := &nfc{s: s, tickets: map[string]*nfcTicket{}, sessions: map[*nfcSession]struct{}{}, conns: map[net.Conn]struct{}{}}
	n.reset()
	var err error
	if n.certificate, err = hostCertificate(s.host); err != nil {
		return err
	}
	if n.other, err = hostCertificate(s.host); err != nil {
		return err
	}
	n.thumbprint = thumbprint(n.certificate.Certificate[0])
	n.thumbprint2 = thumbprint256(n.certificate.Certificate[0])
	n.address = net.JoinHostPort(s.host, "0")
	if err := n.listen(true); err != nil {
		return err
	}
	s.nfc = n
	n.register()
	go n.watch()
	return nil
}

// port is that of the listener, open or not.
func (n *nfc) port() int {
	_, port, _ := net.SplitHostPort(n.address)
	number, _ := strconv.Atoi(port)
	return number
}

// listen opens or closes the port, which stays the same; the caller holds the lock or is alone.
func (n *nfc) listen(open bool) error {
	if open == (n.listener != nil) {
		return nil
	}
	if !open {
		err := n.listener.Close()
		n.listener = nil
		return err
	}
	listener, err := net.Listen("tcp", n.address)
	if err != nil {
		return err
	}
	n.listener, n.address = listener, listener.Addr().String()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go n.serve(conn.(*net.TCPConn))
		}
	}()
	return nil
}

// stop closes the port for good and resets all connections.
func (n *nfc) stop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	_ = n.listen(false)
	n.drop()
}

// drop resets all connections and returns how many there were; the caller holds the lock.
func (n *nfc) drop() int {
	for conn := range n.conns {
		reset(conn)
	}
	return len(n.conns)
}

// reset forgets all but open sessions and unused tickets.
func (n *nfc) reset() {
	n.knobs = nfcKnobs{Order: "straight", MaxBuffer: 2 << 20, MemoryCode: nfcNoMemory, TicketSeconds: 300, Faults: []nfcFault{}}
	n.report = nfcReport{Open: []nfcSessionReport{}, Closed: []nfcSessionReport{}, Violations: []string{}}
}

// settings are the present knobs.
func (n *nfc) settings() nfcKnobs {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.knobs
}

// violation records that a client broke a rule.
func (n *nfc) violation(format string, a ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.report.Violations = append(n.report.Violations, fmt.Sprintf(format, a...))
}

// fault takes the fault for a message, or nil.
func (n *nfc) fault(op string, start, length int64) *nfcFault {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.knobs.Faults {
		f := &n.knobs.Faults[i]
		within := f.Length == 0 || start < f.Start+f.Length && start+length > f.Start
		if f.Op != op || f.Count <= 0 || !within {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		f.Count--
		taken := *f
		return &taken
	}
	return nil
}

// nfcChange is nfcKnobs with each knob optional.
type nfcChange struct {
	LatencyMS        *float64    `json:"latency_ms"`
	Rate             *int64      `json:"rate"`
	Order            *string     `json:"order"`
	Fragment         *int        `json:"fragment"`
	MaxBuffer        *int        `json:"max_buffer"`
	Memory           *int64      `json:"memory"`
	MemoryCode       *uint32     `json:"memory_code"`
	NoSSL            *bool       `json:"no_ssl"`
	NoNBD            *bool       `json:"no_nbd"`
	Maintenance      *bool       `json:"maintenance"`
	PortClosed       *bool       `json:"port_closed"`
	Mute             *bool       `json:"mute"`
	Host             *string     `json:"host"`
	Thumbprint       *string     `json:"thumbprint"`
	TicketPEM        *bool       `json:"ticket_pem"`
	CertificateAuthd *bool       `json:"certificate_authd"`
	CertificateNFC   *bool       `json:"certificate_nfc"`
	TicketSeconds    *float64    `json:"ticket_seconds"`
	Capacity         *int64      `json:"capacity"`
	ESXi             *bool       `json:"esxi"`
	Faults           *[]nfcFault `json:"faults"`
}

func (c nfcChange) apply(k *nfcKnobs) {
	set(&k.LatencyMS, c.LatencyMS)
	set(&k.Rate, c.Rate)
	set(&k.Order, c.Order)
	set(&k.Fragment, c.Fragment)
	set(&k.MaxBuffer, c.MaxBuffer)
	set(&k.Memory, c.Memory)
	set(&k.MemoryCode, c.MemoryCode)
	set(&k.NoSSL, c.NoSSL)
	set(&k.NoNBD, c.NoNBD)
	set(&k.Maintenance, c.Maintenance)
	set(&k.PortClosed, c.PortClosed)
	set(&k.Mute, c.Mute)
	set(&k.Host, c.Host)
	set(&k.Thumbprint, c.Thumbprint)
	set(&k.TicketPEM, c.TicketPEM)
	set(&k.CertificateAuthd, c.CertificateAuthd)
	set(&k.CertificateNFC, c.CertificateNFC)
	set(&k.TicketSeconds, c.TicketSeconds)
	set(&k.Capacity, c.Capacity)
	set(&k.ESXi, c.ESXi)
	set(&k.Faults, c.Faults)
}

var (
	nfcOps     = []string{"authd", "session", "open", "read", "write", "close"}
	nfcActions = []string{"error", "drop", "close", "hang", "torn", "garbage"}
	nfcOrders  = []string{"straight", "reversed", "mixed"}
)

// check refuses values that mean nothing.
func (k *nfcKnobs) check() error {
	if !slices.Contains(nfcOrders, k.Order) {
		return fmt.Errorf("order is %q, must be one of %v", k.Order, nfcOrders)
	}
	if k.Fragment < 0 || k.Fragment%sector != 0 || k.MaxBuffer < bufferUnit || k.MaxBuffer%bufferUnit != 0 {
		return fmt.Errorf("fragment must be whole sectors, max_buffer a multiple of %d", bufferUnit)
	}
	for _, f := range k.Faults {
		if !slices.Contains(nfcOps, f.Op) || !slices.Contains(nfcActions, f.Action) {
			return fmt.Errorf("fault %v: op must be one of %v, action one of %v", f, nfcOps, nfcActions)
		}
	}
	return nil
}

// control sets the given knobs, the others stay; and returns the report.
func (n *nfc) control(p struct {
	nfcChange
	Reset  bool `json:"reset"`          // all knobs to their defaults and the report emptied, first
	Expire bool `json:"expire_tickets"` // all that are out
	Drop   bool `json:"drop"`           // reset all connections
}) (any, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	next := n.knobs
	if p.Reset {
		report := n.report
		n.reset()
		next, n.report = n.knobs, report
	}
	p.apply(&next)
	next.Faults = slices.Clone(next.Faults)
	if err := next.check(); err != nil {
		return nil, err
	}
	if p.Reset {
		n.reset()
	}
	n.knobs = next
	if err := n.listen(!next.PortClosed); err != nil {
		return nil, err
	}
	n.serviceObject(next.ESXi)
	if p.Expire {
		for _, ticket := range n.tickets {
			ticket.expires = time.Time{}
		}
	}
	report := n.report
	for session := range n.sessions {
		now := session.snapshot()
		report.Open = append(report.Open, now)
		report.count(now)
	}
	if p.Drop {
		n.drop()
	}
	slices.SortFunc(report.Open, func(a, b nfcSessionReport) int { return cmp.Compare(a.Path, b.Path) })
	report.Knobs = n.knobs
	report.Knobs.Faults = slices.Clone(n.knobs.Faults)
	return report, nil
}

// count adds a session to the sums.
func (r *nfcReport) count(session nfcSessionReport) {
	r.Reads += session.Reads
	r.Writes += session.Writes
	r.BytesRead += session.BytesRead
	r.Written += session.Written
	r.MaxInFlight = max(r.MaxInFlight, session.MaxInFlight)
}

// watch fails the sessions whose disk is not there any more.
func (n *nfc) watch() {
	for range time.Tick(50 * time.Millisecond) {
		n.mu.Lock()
		sessions := make([]*nfcSession, 0, len(n.sessions))
		for session := range n.sessions {
			sessions = append(sessions, session)
		}
		n.mu.Unlock()
		for _, session := range sessions {
			session.look()
		}
	}
}
