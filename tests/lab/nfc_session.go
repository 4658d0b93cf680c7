// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// The NFC service of a host: the classic handshake in messages of 264 bytes, then the asynchronous
// protocol. All numbers are little-endian, all lengths bytes.

const (
	sector        = 512
	bufferUnit    = 64 << 10
	classicSize   = 264
	headerSize    = 16
	aioMagic      = 0xA100DA7A
	sessionMemory = 16 << 20 // buffer size times buffers
	diskType      = 2
	readFlags     = 0x1e
	writeFlags    = 0x1a
	maxPath       = 4096
	maxKey        = 255
)

// Classic messages.
const (
	classicComplete   = 4
	classicParams     = 33
	classicParamsDone = 36
	classicHandshake  = 43
	classicVersion    = 51
	classicAIO        = 52
	classicNames      = 54
	classicFeatures   = 55
)

// Asynchronous messages.
const (
	aioError        = 1
	aioOpenSession  = 2
	aioCloseSession = 3
	aioOpenFile     = 4
	aioCloseFile    = 5
	aioIO           = 7
	aioSockOpts     = 9
	aioDDBGet       = 11
	aioAllocated    = 13
	aioResPool      = 22
)

// nfcNoMemory is the error of a host whose memory for NFC is used up.
const nfcNoMemory = 5

// payloads are the sizes of requests, and of replies.
var payloads = map[uint32]int{aioOpenSession: 16, aioCloseSession: 4, aioOpenFile: 60, aioCloseFile: 8, aioIO: 44,
	aioSockOpts: 12, aioDDBGet: 16, aioAllocated: 48, aioResPool: 4}

// errOver ends a session whose client did nothing wrong.
var errOver = errors.New("over")

var little = binary.LittleEndian

// nfcSession is one connection after its login.
type nfcSession struct {
	n      *nfc
	tcp    *net.TCPConn
	conn   net.Conn // tcp itself or TLS over it
	in     *bufio.Reader
	tls    *gather // below TLS
	ticket *nfcTicket

	// of the thread that reads
	next    uint32 // operation that is due
	opening bool   // OPEN_SESSION is done
	write   *nfcWrite

	mu      sync.Mutex
	report  nfcSessionReport
	handle  uint64
	file    *nfcFile
	gone    *vixError // why the disk is not there any more
	pieces  []*piece
	flying  int   // requests not wholly answered
	memory  int64 // their bytes
	hanging bool
	ended   bool
	wake    chan struct{}
}

// nfcFile is an open disk.
type nfcFile struct {
	opened
	opening
	file *os.File
}

// run talks with a client until the end of the connection.
func (c *nfcSession) run() {
	c.wake = make(chan struct{}, 1)
	c.in = bufio.NewReaderSize(c.conn, bufferUnit)
	_ = c.tcp.SetNoDelay(true)
	c.n.mu.Lock()
	c.n.sessions[c] = struct{}{}
	c.n.mu.Unlock()
	sent := make(chan struct{})
	go func() { defer close(sent); c.send() }()
	err := c.talk()
	var rule *brokenRule
	if errors.As(err, &rule) {
		c.n.violation("%s", rule.text)
		_ = c.tcp.Close()
	}
	_ = c.tcp.SetWriteDeadline(time.Now().Add(time.Second)) // for those who do not listen any more
	c.end()
	<-sent
	if c.file != nil {
		_ = c.file.file.Close()
	}
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	delete(c.n.sessions, c)
	now := c.snapshot()
	c.n.report.Closed = append(c.n.report.Closed, now)
	c.n.report.count(now)
}

// end lets the sender finish.
func (c *nfcSession) end() {
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	c.poke()
}

func (c *nfcSession) snapshot() nfcSessionReport {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.report
}

// brokenRule is an error of the client's that ends the connection.
type brokenRule struct{ text string }

func (b *brokenRule) Error() string { return b.text }

func broken(format string, a ...any) error { return &brokenRule{fmt.Sprintf(format, a...)} }

// The classic handshake

func (c *nfcSession) read(size int) ([]byte, error) {
	data := make([]byte, size)
	_, err := io.ReadFull(c.in, data)
	return data, err
}

// put sends at once.
func (c *nfcSession) put(data []byte) error {
	if c.tls == nil {
		_, err := c.conn.Write(data)
		return err
	}
	c.tls.hold()
	_, err := c.conn.Write(data)
	if sent := c.tls.flush(); err == nil {
		err = sent
	}
	return err
}

// classic makes a message: its type, then what stands where.
func classic(kind uint32, fields map[int]uint32) []byte {
	out := make([]byte, classicSize)
	little.PutUint32(out, kind)
	for at, value := range fields {
		little.PutUint32(out[at:], value)
	}
	return out
}

// expect reads a message that must be exactly this one.
func (c *nfcSession) expect(want []byte) error {
	got, err := c.in.Peek(4) // what is of another kind may be shorter
	if err == nil && bytes.Equal(got, want[:4]) {
		got, err = c.read(classicSize)
	}
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return broken("classic: type %d was due, not %.40x", little.Uint32(want), got)
	}
	return nil
}

func (c *nfcSession) handshake() error {
	hello := classic(classicHandshake, nil)
	copy(hello[4:], "PlainText")
	version := classic(classicVersion, map[int]uint32{4: nfcLibVersion})
	if err := c.expect(hello); err != nil {
		return err
	}
	if err := c.expect(classic(classicParams, nil)); err != nil {
		return err
	}
	if err := c.put(classic(classicParamsDone, map[int]uint32{16: 1})); err != nil {
		return err
	}
	if err := c.expect(version); err != nil {
		return err
	}
	if err := c.put(version); err != nil {
		return err
	}
	names, err := c.read(classicSize)
	if err != nil {
		return err
	}
	name, op := little.Uint32(names[4:]), little.Uint32(names[8:])
	if !bytes.Equal(names, classic(classicNames, map[int]uint32{4: name, 8: op})) || name == 0 || name > maxKey || op == 0 || op > maxKey {
		return broken("classic: type %d was due, not %.40x", classicNames, names)
	}
	text, err := c.read(int(name + op))
	if err != nil {
		return err
	}
	if err := c.expect(classic(classicFeatures, map[int]uint32{4: 3})); err != nil {
		return err
	}
	if err := c.expect(classic(classicAIO, nil)); err != nil {
		return err
	}
	c.mu.Lock()
	c.report.Client = string(text[:name]) + " " + string(text[name:])
	c.mu.Unlock()
	return c.put(classic(classicAIO, nil))
}

// The asynchronous session

// message is one request.
type message struct {
	kind    uint32
	op      uint32
	payload []byte
}

// talk reads requests. It answers all but reads and writes at once.
func (c *nfcSession) talk() error {
	if err := c.handshake(); err != nil {
		return err
	}
	header := make([]byte, headerSize)
	for {
		if _, err := io.ReadFull(c.in, header); err != nil {
			if c.write != nil && !errors.Is(err, net.ErrClosed) {
				return errOver // a client that died in the middle
			}
			return err
		}
		m := message{kind: little.Uint32(header[4:]), op: little.Uint32(header[12:])}
		if magic := little.Uint32(header); magic != aioMagic {
			return broken("aio: magic %#x", magic)
		}
		size, known := payloads[m.kind]
		if told := little.Uint32(header[8:]); !known || int(told) != size {
			return broken("aio: type %d with a payload of %d", m.kind, told)
		}
		if c.write != nil {
			if m.kind != aioIO || m.op != c.write.op {
				return broken("aio: type %d, operation %d amid the fragments of %d", m.kind, m.op, c.write.op)
			}
		} else if m.op != c.next {
			return broken("aio: operation %d where %d was due", m.op, c.next)
		} else {
			c.next++
		}
		var err error
		if m.payload, err = c.read(size); err != nil {
			return err
		}
		if c.isHanging() {
			_, err := io.Copy(io.Discard, c.in)
			return err
		}
		if m.kind == aioCloseSession {
			return c.closeSession(m)
		}
		if err := c.answer(m); err != nil {
			return err
		}
	}
}

func (c *nfcSession) isHanging() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hanging
}

func (c *nfcSession) answer(m message) error {
	if !c.opening && m.kind != aioOpenSession {
		return broken("aio: type %d before OPEN_SESSION", m.kind)
	}
	switch m.kind {
	case aioOpenSession:
		return c.openSession(m)
	case aioSockOpts:
		if !zeros(m.payload) {
			return broken("SET_SOCK_OPTS: %x", m.payload)
		}
		reply := make([]byte, 12)
		little.PutUint32(reply, 262144)
		little.PutUint32(reply[4:], 262144)
		little.PutUint32(reply[8:], 1)
		return c.reply(m, reply, nil)
	case aioResPool:
		if little.Uint32(m.payload) != 1 {
			return broken("SET_RES_POOL: %x", m.payload)
		}
		return c.reply(m, make([]byte, 4), nil)
	case aioOpenFile:
		return c.openFile(m)
	case aioDDBGet:
		return c.ddb(m)
	case aioAllocated:
		return c.blocks(m)
	case aioIO:
		return c.io(m)
	}
	return c.closeFile(m)
}

func zeros(data []byte) bool { return len(bytes.Trim(data, "\x00")) == 0 }

// frame makes a message without its extra bytes.
func frame(kind, op uint32, payload []byte) []byte {
	out := make([]byte, headerSize, headerSize+len(payload))
	little.PutUint32(out, aioMagic)
	little.PutUint32(out[4:], kind)
	little.PutUint32(out[8:], uint32(len(payload)))
	little.PutUint32(out[12:], op)
	return append(out, payload...)
}

// reply queues an answer.
func (c *nfcSession) reply(m message, payload, extra []byte) error {
	c.queue(&piece{frame: append(frame(m.kind, m.op, payload), extra...)})
	return nil
}

// fail queues an error.
func (c *nfcSession) fail(m message, code uint64) error {
	payload := make([]byte, 8)
	little.PutUint32(payload, uint32(code))
	c.mu.Lock()
	c.report.Errors++
	c.mu.Unlock()
	c.queue(&piece{frame: frame(aioError, m.op, payload)})
	return nil
}

// refuse is fail for what no client should ask.
func (c *nfcSession) refuse(m message, format string, a ...any) error {
	c.n.violation(format, a...)
	return c.fail(m, vixFail)
}

// last lets the queue run empty and ends the session.
func (c *nfcSession) last() error {
	for {
		c.mu.Lock()
		left := len(c.pieces)
		dead := c.ended
		c.mu.Unlock()
		if left == 0 || dead {
			return errOver
		}
		time.Sleep(time.Millisecond)
	}
}

// inject does what a fault says; done means that the message needs no other answer.
func (c *nfcSession) inject(m message, f *nfcFault) (done bool, err error) {
	if f == nil {
		return false, nil
	}
	switch f.Action {
	case "error":
		return true, c.fail(m, uint64(f.Code))
	case "drop":
		reset(c.tcp)
		return true, errOver
	case "close":
		return true, errOver
	case "hang":
		c.mu.Lock()
		c.hanging, c.pieces = true, nil
		c.mu.Unlock()
		return true, nil
	case "torn":
		whole := frame(m.kind, m.op, make([]byte, payloads[m.kind]))
		c.queue(&piece{frame: whole[:len(whole)/2], end: true})
		return true, nil
	}
	c.queue(&piece{frame: bytes.Repeat([]byte("garbage "), 8)})
	return true, nil
}

func (c *nfcSession) openSession(m message) error {
	size, count := int64(little.Uint32(m.payload[4:])), int64(little.Uint32(m.payload[8:]))
	if little.Uint32(m.payload) != 0 || little.Uint32(m.payload[12:]) != 0 || c.opening {
		return broken("OPEN_SESSION: %x", m.payload)
	}
	if size == 0 {
		size = bufferUnit
	}
	count = max(count, 1)
	if size%bufferUnit != 0 {
		return broken("OPEN_SESSION: a buffer of %d", size)
	}
	if done, err := c.inject(m, c.n.fault("session", 0, 1)); done {
		return err
	}
	if size > int64(c.n.settings().MaxBuffer) || size*count > sessionMemory {
		_ = c.fail(m, nfcNoMemory)
		return c.last()
	}
	c.opening = true
	c.mu.Lock()
	c.report.Buffer, c.report.Buffers = int(size), int(count)
	c.mu.Unlock()
	return c.reply(m, make([]byte, 16), nil)
}

// openFile opens a disk; only one at a time is known to work.
func (c *nfcSession) openFile(m message) error {
	length, flags := little.Uint32(m.payload), little.Uint32(m.payload[20:])
	right := make([]byte, 60)
	little.PutUint32(right, length)
	little.PutUint32(right[16:], diskType)
	little.PutUint32(right[20:], flags)
	if !bytes.Equal(right, m.payload) || flags != readFlags && flags != writeFlags || length == 0 || length > maxPath {
		return broken("OPEN_FILE: %x", m.payload)
	}
	name, err := c.read(int(length))
	if err != nil {
		return err
	}
	if !utf8.Valid(name) || bytes.IndexByte(name, 0) >= 0 {
		return broken("OPEN_FILE: %q", name)
	}
	if c.file != nil {
		return broken("OPEN_FILE: a second file")
	}
	if done, err := c.inject(m, c.n.fault("open", 0, 1)); done {
		return err
	}
	write := flags == writeFlags
	if write && !c.ticket.write {
		return c.fail(m, vixFileReadOnly)
	}
	f := &nfcFile{opening: opening{VM: c.ticket.vm, Path: string(name), Write: write}}
	found, refused := c.n.s.openForNFC(f.opening, c.ticket.key)
	if refused != nil {
		if refused.Code == vixFileLocked { // a host says no more than that it failed
			return c.fail(m, vixFail)
		}
		return c.fail(m, refused.Code)
	}
	f.opened = found
	mode := os.O_RDONLY
	if write {
		mode = os.O_RDWR
	}
	if f.file, err = os.OpenFile(f.flat, mode, 0); err != nil {
		return c.fail(m, vixFail)
	}
	c.mu.Lock()
	c.file, c.handle, c.gone = f, rand.Uint64()|1, nil
	c.report.Path, c.report.Write = f.Path, write
	c.mu.Unlock()
	capacity := f.capacity
	if told := c.n.settings().Capacity; told != 0 {
		capacity = told
	}
	reply := make([]byte, 60)
	little.PutUint64(reply[8:], c.handle)
	little.PutUint32(reply[16:], diskType)
	little.PutUint32(reply[20:], flags)
	little.PutUint64(reply[28:], uint64(capacity))
	little.PutUint32(reply[36:], sector)
	little.PutUint32(reply[40:], uint32(capacity/sector/(255*63)))
	little.PutUint32(reply[44:], 255)
	little.PutUint32(reply[48:], 63)
	return c.reply(m, reply, nil)
}

// known tells whether a payload begins with the open file's handle.
func (c *nfcSession) known(payload []byte) bool {
	return c.file != nil && little.Uint64(payload) == c.handle
}

// ddb answers a key of the disk's descriptor: its length, or zeros, and the text.
func (c *nfcSession) ddb(m message) error {
	length := little.Uint32(m.payload[8:])
	if length == 0 || length > maxKey || little.Uint32(m.payload[12:]) != 0 {
		return broken("DDB_GET: %x", m.payload)
	}
	key, err := c.read(int(length))
	if err != nil {
		return err
	}
	if !c.known(m.payload) {
		return c.refuse(m, "DDB_GET: no such handle")
	}
	value := map[string]string{
		"adapterType": "lsilogic", "uuid": c.file.owner.uuid, "virtualHWVersion": "21", "geometry.heads": "255", "geometry.sectors": "63",
		"geometry.cylinders": strconv.FormatInt(c.file.capacity/sector/(255*63), 10),
	}[string(key)]
	reply := make([]byte, 16)
	little.PutUint32(reply[12:], uint32(len(value)))
	return c.reply(m, reply, []byte(value))
}

// blocks answers a bitmap of the chunks that have data.
func (c *nfcSession) blocks(m message) error {
	chunk, start, count := little.Uint64(m.payload[16:]), little.Uint64(m.payload[24:]), little.Uint64(m.payload[32:])
	if little.Uint64(m.payload[8:]) != 0 || little.Uint64(m.payload[40:]) != 0 {
		return broken("blocks: %x", m.payload)
	}
	if !c.known(m.payload) {
		return c.refuse(m, "blocks: no such handle")
	}
	size := uint64(c.file.capacity)
	if chunk == 0 || chunk%sector != 0 || chunk > size || start%chunk != 0 || start > size || count == 0 || count > size/chunk || start+count*chunk > size {
		return c.refuse(m, "blocks: %d of %d from %d", count, chunk, start)
	}
	has, err := allocated(c.file.file, c.file.capacity)
	if err != nil {
		return c.fail(m, vixFail)
	}
	bitmap := make([]byte, (count+31)/32*4)
	for _, e := range has {
		for i := max(uint64(e.start), start) / chunk; i*chunk < min(uint64(e.end()), start+count*chunk); i++ {
			if bit := i - start/chunk; bit < count {
				bitmap[bit/8] |= 1 << (bit % 8)
			}
		}
	}
	reply := make([]byte, 48)
	little.PutUint64(reply[32:], count)
	return c.reply(m, reply, bitmap)
}

func (c *nfcSession) closeFile(m message) error {
	if !c.known(m.payload) {
		return c.refuse(m, "CLOSE_FILE: no such handle")
	}
	c.mu.Lock()
	flying := c.flying
	c.mu.Unlock()
	if flying > 0 {
		return broken("CLOSE_FILE with %d requests in flight", flying)
	}
	if done, err := c.inject(m, c.n.fault("close", 0, 1)); done {
		return err
	}
	c.mu.Lock()
	_ = c.file.file.Close()
	c.file, c.handle = nil, 0
	c.mu.Unlock()
	return c.reply(m, make([]byte, 8), nil)
}

// closeSession answers, then only the classic end may follow.
func (c *nfcSession) closeSession(m message) error {
	if !c.opening || !zeros(m.payload) {
		return broken("CLOSE_SESSION: %x", m.payload)
	}
	if c.file != nil {
		return broken("CLOSE_SESSION with an open file")
	}
	_ = c.reply(m, make([]byte, 4), nil)
	if err := c.expect(classic(classicComplete, nil)); err != nil {
		return err
	}
	_ = c.tcp.SetReadDeadline(time.Now().Add(time.Millisecond))
	if extra, err := c.read(1); err == nil {
		return broken("classic: %x after the end", extra)
	}
	c.mu.Lock()
	c.report.Orderly = true
	c.mu.Unlock()
	return errOver
}
