// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// The authentication daemon of a host: a banner in plain text, TLS, then lines that end in CRLF. It
// hands the connection over to the NFC service: bare for nbd, to a second TLS session for nbdssl.

const (
	loginTime = 30 * time.Second
	maxLine   = 512
	authdName = "VMware Authentication Daemon Version 1.10: SSL Required, ServerDaemonProtocol:SOAP, MKSDisplayProtocol:VNC , VMXARGS supported"
)

// records gives a TLS session no more than the record that it reads, so that what follows the last
// record stays on the connection.
type records struct {
	net.Conn
	head []byte // of the record, as far as it is read
	left int    // bytes of the record that are still to come
}

func (r *records) Read(p []byte) (int, error) {
	const header = 5
	want := r.left
	if want == 0 {
		want = header - len(r.head)
	}
	got, err := r.Conn.Read(p[:min(len(p), want)])
	if r.left > 0 {
		r.left -= got
		return got, err
	}
	r.head = append(r.head, p[:got]...)
	if len(r.head) == header {
		r.left = int(r.head[3])<<8 | int(r.head[4])
		r.head = nil
	}
	return got, err
}

// serve is one connection from its begin to its end.
func (n *nfc) serve(conn *net.TCPConn) {
	n.mu.Lock()
	n.conns[conn] = struct{}{}
	n.report.Connections++
	knobs := n.knobs
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.conns, conn)
		n.mu.Unlock()
		_ = conn.Close()
	}()
	if knobs.Mute {
		_, _ = io.Copy(io.Discard, conn)
		return
	}
	ticket, service := n.login(conn, knobs)
	if ticket == nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	session := &nfcSession{n: n, tcp: conn, conn: conn, ticket: ticket}
	session.report = nfcSessionReport{VM: ticket.vm, Key: ticket.key, Transport: "nbd"}
	if strings.HasSuffix(service, "ssl") {
		certificate := n.certificate
		if knobs.CertificateNFC {
			certificate = n.other
		}
		secure := tls.Server(&gather{Conn: conn}, &tls.Config{Certificates: []tls.Certificate{certificate}})
		_ = conn.SetDeadline(time.Now().Add(loginTime))
		if err := secure.Handshake(); err != nil {
			if _, plain := err.(tls.RecordHeaderError); plain {
				n.violation("nbdssl: not the second TLS handshake")
			}
			return // else a client that does not like the certificate
		}
		_ = conn.SetDeadline(time.Time{})
		session.conn, session.report.Transport = secure, "nbdssl"
		session.tls = secure.NetConn().(*gather)
	}
	session.run()
}

// login reads lines until one asks for the NFC service with a good ticket; nil ends the connection.
func (n *nfc) login(conn net.Conn, knobs nfcKnobs) (*nfcTicket, string) {
	_ = conn.SetDeadline(time.Now().Add(loginTime))
	name := authdName
	if !knobs.NoSSL {
		name += ", NFCSSL supported/t"
	}
	name += ", SHA256 supported"
	if _, err := fmt.Fprintf(conn, "220 %s\r\n", name); err != nil {
		return nil, ""
	}
	certificate := n.certificate
	if knobs.CertificateAuthd {
		certificate = n.other
	}
	secure := tls.Server(&records{Conn: conn}, &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err := secure.Handshake(); err != nil {
		if _, plain := err.(tls.RecordHeaderError); plain {
			n.violation("authd: a command before TLS")
		}
		return nil, ""
	}
	if f := n.fault("authd", 0, 1); f != nil {
		switch f.Action {
		case "error":
			_, _ = fmt.Fprintf(secure, "%d Injected by the lab\r\n", f.Code)
		case "hang":
			_ = conn.SetDeadline(time.Time{})
			_, _ = io.Copy(io.Discard, secure)
		case "drop":
			reset(conn)
		}
		return nil, ""
	}
	a := &authd{n: n, knobs: knobs, name: name}
	lines := bufio.NewReaderSize(secure, maxLine)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			if len(line) > 0 { // who does not like the certificate just goes
				n.violation("authd: no whole line: %.40q", line)
			}
			return nil, ""
		}
		text, whole := strings.CutSuffix(string(line), "\r\n")
		if !whole {
			n.violation("authd: a line without CRLF: %.40q", line)
			return nil, ""
		}
		answer, service := a.command(text)
		if answer != "" {
			if _, err := fmt.Fprintf(secure, "%s\r\n", answer); err != nil {
				return nil, ""
			}
		}
		if service != "" {
			if lines.Buffered() > 0 {
				n.violation("authd: something before the answer to PROXY")
				return nil, ""
			}
			return a.ticket, service
		}
		if a.over {
			return nil, ""
		}
	}
}

// authd is the state of a login.
type authd struct {
	n      *nfc
	knobs  nfcKnobs
	name   string
	step   int // commands so far
	ticket *nfcTicket
	over   bool
}

// The one order of commands that is known to work.
var authdOrder = []string{"SESSION", "BANNER", "THUMBPRINT_SHA2", "PROXY"}

// command answers a line; a service means that the connection is its own now.
func (a *authd) command(line string) (answer, service string) {
	word, argument, spaced := strings.Cut(line, " ")
	if word == "USER" || word == "PASS" {
		a.n.violation("authd: %s, where only a ticket should go", word)
		a.over = true
		return "530 Login incorrect.", ""
	}
	if word != authdOrder[a.step] {
		a.n.violation("authd: %.40q where %s was due", line, authdOrder[a.step])
		a.over = true
		return "530 Please login with USER and PASS.", ""
	}
	bad := func() (string, string) {
		a.n.violation("authd: %.80q", line)
		a.over = true
		return "501 Invalid arguments", ""
	}
	a.step++
	switch word {
	case "SESSION":
		if argument == "" || strings.Contains(argument, " ") {
			return bad()
		}
		a.ticket = a.n.take(argument)
		return "", ""
	case "BANNER":
		if !spaced || argument != "" {
			return bad()
		}
		return "220 " + a.name, ""
	case "THUMBPRINT_SHA2":
		if argument != "PlainText" {
			return bad()
		}
		return "200 " + a.n.thumbprint2, ""
	}
	a.over = true
	if a.ticket == nil {
		return "530 Please login with USER and PASS.", ""
	}
	plain, ssl := a.ticket.service, a.ticket.service+"ssl"
	if argument != plain && argument != ssl {
		return bad()
	}
	if argument == ssl && a.knobs.NoSSL || argument == plain && a.knobs.NoNBD {
		return "501 Invalid arguments", ""
	}
	a.over = false
	return "200 Connect " + map[bool]string{true: "ha-nfcssl", false: "ha-nfc"}[argument == ssl], argument
}
