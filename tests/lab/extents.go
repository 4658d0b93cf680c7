// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"errors"
	"io"
	"os"
	"sort"
	"syscall"
)

// block is the granularity of change tracking, in bytes.
const block = 64 << 10

// extent is a range of bytes.
type extent struct{ start, length int64 }

func (e extent) end() int64 { return e.start + e.length }

// extents are sorted, do not touch each other and are not empty.
type extents []extent

// add joins a range to the set.
func (x *extents) add(e extent) {
	if e.length <= 0 {
		return
	}
	old := *x
	first := sort.Search(len(old), func(i int) bool { return old[i].end() >= e.start })
	last := first
	for last < len(old) && old[last].start <= e.end() {
		start := min(e.start, old[last].start)
		e = extent{start, max(e.end(), old[last].end()) - start}
		last++
	}
	if first == last {
		old = append(old, extent{})
		copy(old[first+1:], old[first:])
		old[first] = e
		*x = old
		return
	}
	old[first] = e
	*x = append(old[:first+1], old[last:]...)
}

// union adds all of another set.
func (x *extents) union(other extents) {
	for _, e := range other {
		x.add(e)
	}
}

// total is the number of bytes in the set.
func (x extents) total() (n int64) {
	for _, e := range x {
		n += e.length
	}
	return n
}

// widen rounds outwards to multiples of grain, within a disk of the given size.
func (x extents) widen(grain, size int64) extents {
	var out extents
	for _, e := range x {
		start := e.start / grain * grain
		end := min((e.end()+grain-1)/grain*grain, size)
		out.add(extent{start, end - start})
	}
	return out
}

const seekData, seekHole = 3, 4

// allocated lists where a file has data, in the granularity of its file system.
func allocated(f *os.File, size int64) (extents, error) {
	var out extents
	for off := int64(0); off < size; {
		data, err := f.Seek(off, seekData)
		if errors.Is(err, syscall.ENXIO) {
			break // nothing but a hole up to the end
		}
		if err != nil {
			return nil, err
		}
		hole, err := f.Seek(data, seekHole)
		if err != nil {
			return nil, err
		}
		out.add(extent{data, min(hole, size) - data})
		off = hole
	}
	return out, nil
}

// sparseCopy makes dst a copy of src; its cost follows the allocated bytes.
func sparseCopy(src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	data, err := allocated(in, info.Size())
	if err != nil {
		return err
	}
	for _, e := range data {
		if _, err := in.Seek(e.start, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(e.start, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(out, in, e.length); err != nil { // by copy_file_range
			return err
		}
	}
	return out.Truncate(info.Size())
}

const punchHole, keepSize = 2, 1

// discard makes a range of a file read as zeros and gives its space back.
func discard(f *os.File, e extent) error {
	return syscall.Fallocate(int(f.Fd()), punchHole|keepSize, e.start, e.length)
}

// covers tells whether a byte is in the set.
func (x extents) covers(at int64) bool {
	i := sort.Search(len(x), func(i int) bool { return x[i].end() > at })
	return i < len(x) && x[i].start <= at
}
