// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// disk is what one backing UUID stands for: a tree of files and their change tracking.
type disk struct {
	uuid   string
	mu     sync.Mutex
	track  tracker
	nodes  map[string]*node // by datastore path
	fcd    atomic.Pointer[fcd]
	policy string // ID of the storage policy, unless it is a first class disk
}

// node is one file of a disk: the complete content seen under one datastore path.
//
// A redo file begins as a hard link to its parent's file and becomes a copy by its first write,
// so a snapshot costs nothing until then.
type node struct {
	path     string
	flat     string // the raw file on this machine
	capacity int64
	size     int64 // of its own, when it was measured last
	parent   *node
}

// disks finds disks by the datastore path of any of their files.
type disks struct {
	mu    sync.Mutex
	files map[string]*disk
	roots map[string]string // directory of each datastore
}

// host turns "[ds] dir/a.vmdk" into the path of its raw file on this machine, or "".
func (d *disks) host(name string) string {
	var p object.DatastorePath
	if !p.FromString(name) || d.roots[p.Datastore] == "" {
		return ""
	}
	return path.Join(d.roots[p.Datastore], simulator.VirtualDiskBackingFileName(p.Path))
}

// find returns the disk that has a file of that path, or nil.
func (d *disks) find(name string) *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.files[name]
}

// open returns the disk of a path; at first sight its file is made, empty and sparse.
func (d *disks) open(name, uuid string, capacity int64) (*disk, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if known := d.files[name]; known != nil {
		return known, nil
	}
	flat := d.host(name)
	if flat == "" {
		return nil, fmt.Errorf("%s: no such datastore", name)
	}
	if err := os.MkdirAll(path.Dir(flat), 0o700); err != nil {
		return nil, err
	}
	if err := extend(flat, capacity); err != nil {
		return nil, err
	}
	made := &disk{uuid: uuid, nodes: map[string]*node{name: {path: name, flat: flat, capacity: capacity}}}
	d.files[name] = made
	return made, nil
}

// owner is the disk behind a VM's device; nil if its datastore is not there.
func (s *sim) owner(d *types.VirtualDisk, b *backing) *disk {
	owner, err := s.disks.open(b.file.FileName, *b.uuid, d.CapacityInBytes)
	if err != nil {
		return nil
	}
	return owner
}

// extend makes a raw file of at least that size.
func extend(flat string, capacity int64) error {
	f, err := os.OpenFile(flat, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() >= capacity {
		return err
	}
	return f.Truncate(capacity)
}

// put makes a path known as one of the disk's, or unknown with a nil disk.
func (d *disks) put(name string, owner *disk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if owner == nil {
		delete(d.files, name)
	} else {
		d.files[name] = owner
	}
}

// child freezes a file and returns the redo file in which its user goes on.
func (d *disks) child(owner *disk, parent *node) (*node, error) {
	name := d.nextName(parent.path)
	n := &node{path: name, flat: d.host(name), capacity: parent.capacity, parent: parent}
	if err := os.Link(parent.flat, n.flat); err != nil {
		return nil, err
	}
	descriptor := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nparentFileNameHint=%q\n", path.Base(parent.path))
	if err := os.WriteFile(d.descriptor(n), []byte(descriptor), 0o600); err != nil {
		return nil, err
	}
	owner.nodes[name] = n
	d.put(name, owner)
	return n, nil
}

func (d *disks) descriptor(n *node) string {
	return strings.TrimSuffix(n.flat, "-flat.vmdk") + ".vmdk"
}

// nextName is the first free "a-000001.vmdk" for a disk "a.vmdk".
func (d *disks) nextName(name string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	stem := strings.TrimSuffix(name, ".vmdk")
	if i := len(stem) - 7; i > 0 && stem[i] == '-' && strings.Trim(stem[i+1:], "0123456789") == "" {
		stem = stem[:i]
	}
	for n := 1; ; n++ {
		candidate := fmt.Sprintf("%s-%06d.vmdk", stem, n)
		if d.files[candidate] == nil {
			return candidate
		}
	}
}

// remove deletes a file of the disk.
func (d *disks) remove(owner *disk, n *node) {
	_ = os.Remove(n.flat)
	_ = os.Remove(d.descriptor(n))
	delete(owner.nodes, n.path)
	d.put(n.path, nil)
}

// removeAll deletes a disk.
func (d *disks) removeAll(owner *disk) {
	owner.mu.Lock()
	defer owner.mu.Unlock()
	for _, n := range owner.nodes {
		d.remove(owner, n)
	}
}

// grow makes a disk of a single file larger.
func (k *disk) grow(name string, capacity int64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.nodes[name]
	if n.capacity == capacity {
		return nil
	}
	n.capacity = capacity
	return os.Truncate(n.flat, capacity)
}

// collapse deletes the files that nobody needs and folds those with one follower, as removing
// a snapshot does. Held are the paths in use; the answer maps old paths to new ones.
func (d *disks) collapse(owner *disk, held map[string]bool) (map[string]string, error) {
	renamed := map[string]string{}
	for again := true; again; {
		again = false
		for _, n := range owner.nodes {
			if held[n.path] {
				continue
			}
			kids := owner.children(n)
			if len(kids) > 1 {
				continue // a fork: both branches need it
			}
			if len(kids) == 1 {
				if err := d.fold(owner, n, kids[0]); err != nil {
					return renamed, err
				}
				renamed[kids[0].path] = n.path
				for old, now := range renamed {
					if now == kids[0].path {
						renamed[old] = n.path
					}
				}
				if held[kids[0].path] {
					held[n.path] = true
				}
			} else {
				d.remove(owner, n)
			}
			again = true
			break
		}
	}
	return renamed, nil
}

func (k *disk) node(name string) *node {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.nodes[name]
}

// parents are the paths of the files below, nearest first.
func (n *node) parents() (out []string) {
	for p := n.parent; p != nil; p = p.parent {
		out = append(out, p.path)
	}
	return out
}

// files is the number of files that the disk has: more than one under snapshots.
func (k *disk) files() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.nodes)
}

func (k *disk) children(n *node) (out []*node) {
	for _, other := range k.nodes {
		if other.parent == n {
			out = append(out, other)
		}
	}
	return out
}

// fold gives a file the content of its only follower, whose own file goes.
func (d *disks) fold(owner *disk, n, kid *node) error {
	if err := os.Remove(n.flat); err != nil { // rename does nothing between two links to one file
		return err
	}
	if err := os.Rename(kid.flat, n.flat); err != nil {
		return err
	}
	for _, grandchild := range owner.children(kid) {
		grandchild.parent = n
	}
	d.remove(owner, kid)
	return nil
}

// writable opens a file for writing, after giving it content of its own.
func (n *node) writable() (*os.File, error) {
	info, err := os.Stat(n.flat)
	if err != nil {
		return nil, err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Nlink > 1 {
		if err := sparseCopy(n.flat, n.flat+"~"); err != nil {
			return nil, err
		}
		if err := os.Rename(n.flat+"~", n.flat); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(n.flat, os.O_RDWR, 0)
}

// change lets f write into a file of the disk and notes the ranges that f reports.
func (k *disk) change(n *node, note func(extent), f func(file *os.File, mark func(extent)) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	file, err := n.writable()
	if err != nil {
		return err
	}
	defer file.Close()
	return f(file, note)
}

// within refuses ranges that are not wholly on the disk.
func (n *node) within(offset, length int64) error {
	if offset < 0 || length < 0 || offset > n.capacity || length > n.capacity-offset {
		return fmt.Errorf("%s has %d bytes, no %d at %d", n.path, n.capacity, length, offset)
	}
	return nil
}

// load makes the content that of a raw file, touching only blocks that differ.
func load(source, target *os.File, size int64, mark func(extent)) (written int64, err error) {
	had, err := allocated(target, size)
	if err != nil {
		return 0, err
	}
	has, err := allocated(source, size)
	if err != nil {
		return 0, err
	}
	both := had.widen(block, size)
	both.union(has.widen(block, size))
	filled := has.widen(block, size)
	old, now := make([]byte, block), make([]byte, block)
	for _, e := range both {
		for at := e.start; at < e.end(); at += block {
			length := min(block, e.end()-at)
			if err := readFull(target, old[:length], at); err != nil {
				return written, err
			}
			if err := readFull(source, now[:length], at); err != nil {
				return written, err
			}
			if bytes.Equal(old[:length], now[:length]) {
				continue
			}
			if filled.covers(at) {
				_, err = target.WriteAt(now[:length], at)
			} else {
				err = discard(target, extent{at, length})
			}
			if err != nil {
				return written, err
			}
			mark(extent{at, length})
			written += length
		}
	}
	return written, nil
}

// readFull reads a whole range; what lies past the end of the file is zeros.
func readFull(f *os.File, into []byte, at int64) error {
	n, err := f.ReadAt(into, at)
	clear(into[n:])
	if err == io.EOF {
		return nil
	}
	return err
}
