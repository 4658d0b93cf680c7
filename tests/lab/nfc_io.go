// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// Operations of an IO message; the upper half says how the data is packed.
const (
	ioWrite = 0
	ioRead  = 1
	fastLZ  = 2
)

// nfcIO is the payload of an IO message.
type nfcIO struct {
	handle    uint64
	operation uint32
	packing   uint32
	offset    uint64 // on the disk, of the whole request
	total     uint32
	at        uint32 // of this fragment in the request
	length    uint32 // of this fragment
	extra     uint32 // bytes that follow the payload
	zero      uint32
}

func parseIO(p []byte) nfcIO {
	return nfcIO{little.Uint64(p), little.Uint32(p[8:]), little.Uint32(p[12:]), little.Uint64(p[16:]), little.Uint32(p[24:]),
		little.Uint32(p[28:]), little.Uint32(p[32:]), little.Uint32(p[36:]), little.Uint32(p[40:])}
}

func (q nfcIO) put(p []byte) {
	little.PutUint64(p, q.handle)
	little.PutUint32(p[8:], q.operation)
	little.PutUint32(p[12:], q.packing)
	little.PutUint64(p[16:], q.offset)
	little.PutUint32(p[24:], q.total)
	little.PutUint32(p[28:], q.at)
	little.PutUint32(p[32:], q.length)
	little.PutUint32(p[36:], q.extra)
	little.PutUint32(p[40:], q.zero)
}

// request is a read or a write that is not wholly answered.
type request struct {
	message
	nfcIO
	left int // fragments to come
	torn bool
}

// piece is something to send: a whole message, or a fragment of a read.
type piece struct {
	frame   []byte
	request *request
	at      uint32
	length  uint32
	due     time.Time
	end     bool // of the connection, after it
}

// nfcWrite is a write of which not all fragments are here.
type nfcWrite struct {
	op    uint32
	first nfcIO
	got   uint32
	code  uint64 // error that is answered after the last
}

// io takes a read, or a fragment of a write.
func (c *nfcSession) io(m message) error {
	q := parseIO(m.payload)
	if q.zero != 0 || q.operation > ioRead || q.packing != 0 && q.packing != fastLZ {
		return broken("IO: %x", m.payload)
	}
	if q.operation == ioWrite {
		return c.takeWrite(m, q)
	}
	if q.at != 0 || q.length != q.total || q.extra != q.total {
		return broken("IO: a read of %d with %d, %d, %d", q.total, q.at, q.length, q.extra)
	}
	c.mu.Lock()
	c.report.Reads++
	c.mu.Unlock()
	if done, err := c.mayIO(m, q, "read"); done {
		return err
	}
	r := &request{message: m, nfcIO: q}
	f := c.n.fault("read", int64(q.offset), int64(q.total))
	if f != nil && f.Action == "torn" {
		r.torn = true
	} else if done, err := c.inject(m, f); done {
		return err
	}
	knobs := c.n.settings()
	if knobs.Memory > 0 && !c.fits(q.total, knobs.Memory) {
		return c.fail(m, uint64(knobs.MemoryCode))
	}
	most := uint32(c.snapshot().Buffer)
	if knobs.Fragment > 0 {
		most = min(most, uint32(knobs.Fragment))
	}
	due := time.Time{}
	if knobs.LatencyMS > 0 {
		due = time.Now().Add(time.Duration(knobs.LatencyMS * float64(time.Millisecond)))
	}
	var pieces []*piece
	for at := uint32(0); at < q.total; at += most {
		pieces = append(pieces, &piece{request: r, at: at, length: min(most, q.total-at), due: due})
		if at > q.total-most {
			break // before it overflows
		}
	}
	if knobs.Order == "reversed" {
		for i, j := 0, len(pieces)-1; i < j; i, j = i+1, j-1 {
			pieces[i], pieces[j] = pieces[j], pieces[i]
		}
	}
	r.left = len(pieces)
	c.begun(int64(q.total))
	c.queue(pieces...)
	return nil
}

// mayIO refuses what is not on the disk.
func (c *nfcSession) mayIO(m message, q nfcIO, what string) (done bool, err error) {
	if !c.known(m.payload) {
		return true, c.refuse(m, "IO: no such handle")
	}
	if q.total == 0 || q.offset%sector != 0 || q.total%sector != 0 {
		return true, c.refuse(m, "IO: a %s of %d at %d", what, q.total, q.offset)
	}
	if size := uint64(c.file.capacity); q.offset > size || uint64(q.total) > size-q.offset {
		return true, c.refuse(m, "IO: a %s of %d at %d past the end", what, q.total, q.offset)
	}
	c.mu.Lock()
	gone := c.gone
	c.mu.Unlock()
	if gone != nil {
		return true, c.fail(m, gone.Code)
	}
	return false, nil
}

// fits tells whether another request is within the host's memory.
func (c *nfcSession) fits(length uint32, memory int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flying == 0 || c.memory+int64(length) <= memory
}

func (c *nfcSession) begun(length int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flying++
	c.memory += length
	c.report.MaxInFlight = max(c.report.MaxInFlight, c.flying)
}

func (c *nfcSession) finished(length int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flying--
	c.memory -= length
}

// takeWrite writes a fragment; the answer follows the last.
func (c *nfcSession) takeWrite(m message, q nfcIO) error {
	if q.packing != 0 {
		return broken("IO: a packed write")
	}
	if q.extra != q.length || q.length == 0 || q.length > uint32(c.snapshot().Buffer) {
		return broken("IO: a fragment of %d with %d bytes", q.length, q.extra)
	}
	w := c.write
	if w == nil {
		if q.total > 0 && q.total < q.length {
			return broken("IO: a fragment of %d in %d", q.length, q.total)
		}
		w = &nfcWrite{op: m.op, first: q}
		c.write = w
	}
	if q.handle != w.first.handle || q.offset != w.first.offset || q.total != w.first.total || q.at != w.got || q.at%sector != 0 || q.length > q.total-w.got {
		return broken("IO: fragments that do not add up: %d at %d of %d, after %d", q.length, q.at, q.total, w.got)
	}
	data, err := c.read(int(q.length))
	if err != nil {
		return err
	}
	if w.got == 0 {
		c.begun(int64(q.total))
		if done, err := c.mayWrite(m, q, w); done || err != nil {
			return err
		}
	}
	if w.code == 0 {
		w.code = c.store(int64(q.offset)+int64(q.at), data)
	}
	w.got += q.length
	if w.got < q.total {
		return nil
	}
	c.write = nil
	r := &request{message: m, nfcIO: q, left: 1}
	if w.code != 0 {
		c.finished(int64(q.total))
		return c.fail(m, w.code)
	}
	answer := nfcIO{operation: ioWrite, offset: q.offset, total: q.total, length: q.total}
	payload := make([]byte, 44)
	answer.put(payload)
	p := &piece{frame: frame(aioIO, m.op, payload), request: r}
	if latency := c.n.settings().LatencyMS; latency > 0 {
		p.due = time.Now().Add(time.Duration(latency * float64(time.Millisecond)))
	}
	c.queue(p)
	return nil
}

// mayWrite judges a write at its first fragment; done means that the session goes another way.
func (c *nfcSession) mayWrite(m message, q nfcIO, w *nfcWrite) (done bool, err error) {
	c.mu.Lock()
	c.report.Writes++
	gone, file := c.gone, c.file
	c.mu.Unlock()
	switch size := uint64(0); {
	case !c.known(m.payload):
		c.n.violation("IO: no such handle")
		w.code = vixFail
	case !file.Write:
		c.n.violation("IO: a write to a file opened to read")
		w.code = vixFileReadOnly
	case q.offset%sector != 0 || q.total%sector != 0 || q.length%sector != 0:
		c.n.violation("IO: a write of %d at %d", q.total, q.offset)
		w.code = vixFail
	default:
		if size = uint64(file.capacity); q.offset > size || uint64(q.total) > size-q.offset {
			c.n.violation("IO: a write of %d at %d past the end", q.total, q.offset)
			w.code = vixFail
		} else if gone != nil {
			w.code = gone.Code
		}
	}
	if w.code != 0 {
		return false, nil
	}
	f := c.n.fault("write", int64(q.offset), int64(q.total))
	if f != nil && f.Action == "error" {
		w.code = uint64(f.Code)
		return false, nil
	}
	_, err = c.inject(m, f)
	return f != nil && f.Action == "hang", err
}

// store writes as the guest would: change tracking sees it.
func (c *nfcSession) store(at int64, data []byte) uint64 {
	owner := c.file.owner
	owner.mu.Lock()
	defer owner.mu.Unlock()
	owner.track.mark(extent{at, int64(len(data))})
	if _, err := c.file.file.WriteAt(data, at); err != nil {
		return vixFail
	}
	c.mu.Lock()
	c.report.Written += int64(len(data))
	c.mu.Unlock()
	return 0
}

// Sending

func (c *nfcSession) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *nfcSession) queue(pieces ...*piece) {
	c.mu.Lock()
	c.pieces = append(c.pieces, pieces...)
	c.mu.Unlock()
	c.poke()
}

// pick takes the piece to send now, or says how long to wait for one; a negative time: for ever.
func (c *nfcSession) pick(mixed bool) (*piece, time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil, 0, true
	}
	wait := time.Duration(-1)
	var ready []int
	now := time.Now()
	for i, p := range c.pieces {
		if late := p.due.Sub(now); late > 0 {
			if wait < 0 || late < wait {
				wait = late
			}
			continue
		}
		ready = append(ready, i)
		if !mixed {
			break
		}
	}
	if len(ready) == 0 {
		return nil, wait, false
	}
	i := ready[0]
	if mixed {
		i = ready[rand.IntN(len(ready))]
	}
	p := c.pieces[i]
	if i == 0 {
		c.pieces = c.pieces[1:]
	} else {
		c.pieces = append(c.pieces[:i:i], c.pieces[i+1:]...)
	}
	return p, 0, false
}

// send is the one thread that writes to the client after the handshake.
func (c *nfcSession) send() {
	defer c.end()
	buffer := []byte(nil)
	for {
		knobs := c.n.settings()
		p, wait, over := c.pick(knobs.Order == "mixed")
		if over {
			return
		}
		if p == nil {
			if wait < 0 {
				<-c.wake
			} else {
				timer := time.NewTimer(wait)
				select {
				case <-c.wake:
				case <-timer.C:
				}
				timer.Stop()
			}
			continue
		}
		out := p.frame
		if r := p.request; r != nil && out == nil {
			if need := headerSize + 44 + int(p.length); len(buffer) < need {
				buffer = make([]byte, need)
			}
			out = c.fragment(p, buffer)
		}
		if r := p.request; r != nil {
			if r.left--; r.left == 0 {
				c.finished(int64(r.total)) // before the client can know of it
			}
		}
		if p.request != nil && p.request.torn {
			out, p.end = out[:len(out)/2], true
		}
		if err := c.put(out); err != nil || p.end {
			reset(c.tcp)
			return
		}
		if knobs.Rate > 0 {
			time.Sleep(time.Duration(float64(len(out)) / float64(knobs.Rate) * float64(time.Second)))
		}
	}
}

// fragment reads a piece of a disk behind its header.
func (c *nfcSession) fragment(p *piece, buffer []byte) []byte {
	r := p.request
	out := buffer[:headerSize+44+int(p.length)]
	q := nfcIO{operation: ioRead, offset: r.offset, total: r.total, at: p.at, length: p.length, extra: p.length}
	copy(out, frame(aioIO, r.op, make([]byte, 44)))
	q.put(out[headerSize:])
	c.mu.Lock()
	gone, file := c.gone, c.file
	c.mu.Unlock()
	failed := gone != nil || file == nil
	if !failed {
		failed = readFull(file.file, out[headerSize+44:], int64(r.offset)+int64(p.at)) != nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if failed {
		code := uint64(vixFail)
		if gone != nil {
			code = gone.Code
		}
		payload := make([]byte, 8)
		little.PutUint32(payload, uint32(code))
		c.report.Errors++
		kept := c.pieces[:0:0]
		for _, other := range c.pieces { // one error for the whole request
			if other.request != r {
				kept = append(kept, other)
			}
		}
		c.pieces, r.left = kept, 1
		return frame(aioError, r.op, payload)
	}
	c.report.BytesRead += int64(p.length)
	if r.packing == fastLZ {
		if packed := packFastLZ(out[headerSize+44:]); packed != nil {
			c.report.BytesPacked += int64(len(packed))
			q.packing, q.extra = fastLZ, uint32(len(packed))
			q.put(out[headerSize:])
			return append(out[:headerSize+44], packed...)
		}
	}
	return out
}

// look ends the life of a disk that is not there any more.
func (c *nfcSession) look() {
	c.mu.Lock()
	file, gone := c.file, c.gone
	if file == nil || gone != nil {
		c.mu.Unlock()
		return
	}
	asked, flat := file.opening, file.flat
	c.mu.Unlock()
	now, refused := c.n.s.openForNFC(asked, c.ticket.key)
	if refused == nil && now.flat != flat {
		refused = &vixError{vixFileNotFound, "another file"}
	}
	if refused != nil {
		c.mu.Lock()
		if c.file == file && file.Path == asked.Path { // it has not moved meanwhile
			c.gone = refused
		}
		c.mu.Unlock()
	}
}

// gather holds back what TLS writes record by record until it is flushed.
type gather struct {
	net.Conn
	mu      sync.Mutex
	pending []byte
	holding bool
}

func (g *gather) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.holding {
		return g.Conn.Write(p)
	}
	g.pending = append(g.pending, p...)
	if len(g.pending) < 256<<10 {
		return len(p), nil
	}
	return len(p), g.empty()
}

func (g *gather) empty() error {
	_, err := g.Conn.Write(g.pending)
	g.pending = g.pending[:0]
	return err
}

// hold begins to hold back.
func (g *gather) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holding = true
}

// flush sends what was held back and holds back no more.
func (g *gather) flush() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holding = false
	return g.empty()
}

// openForNFC resolves what a session opens. NFC knows no snapshots: a path is a file, either the one
// that the VM has now or one that snapshots froze.
func (s *sim) openForNFC(o opening, key int32) (found opened, failure *vixError) {
	ctx := s.context()
	vm := s.vm(vmRef(o.VM))
	if vm == nil {
		return opened{}, &vixError{vixVMNotFound, "no virtual machine " + o.VM}
	}
	owner := s.disks.find(o.Path)
	live, named, wanted, raw := false, false, key == 0, false
	running := false
	see := func(devices []types.BaseVirtualDevice, now bool) {
		eachDisk(devices, func(d *types.VirtualDisk, b *backing) {
			mine := s.owner(d, b)
			if owner == nil && b.file.FileName == o.Path {
				owner = mine // its file was made just now
			}
			if mine == nil || mine != owner {
				return
			}
			named = true
			live = live || now && b.file.FileName == o.Path
			wanted = wanted || d.Key == key
			raw = raw || b.raw != nil && *b.raw == string(types.VirtualDiskCompatibilityModePhysicalMode)
		})
	}
	ctx.WithLock(vm, func() {
		running = vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
		see(vm.Config.Hardware.Device, true)
		for _, snapshot := range s.snapshotObjects(vm) {
			see(snapshotDevices(ctx, snapshot), false)
		}
	})
	switch {
	case owner == nil || !named || !wanted:
		return opened{}, &vixError{vixFileNotFound, o.Path + " is not a disk of the ticket"}
	case raw:
		return opened{}, &vixError{vixFail, o.Path + " is a raw device in physical mode"}
	case live && running:
		return opened{}, &vixError{vixFileLocked, o.Path + " is in use by its running virtual machine"}
	case !live && o.Write:
		return opened{}, &vixError{vixFileReadOnly, "what snapshots hold is read only"}
	}
	return owner.openNode(o.Path, o.Write)
}

func snapshotDevices(ctx *simulator.Context, snapshot *simulator.VirtualMachineSnapshot) (devices []types.BaseVirtualDevice) {
	ctx.WithLock(snapshot, func() { devices = snapshot.Config.Hardware.Device })
	return devices
}
