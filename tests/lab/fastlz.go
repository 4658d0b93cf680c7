// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

// FastLZ, as hosts pack what they send: level 2 from 64 KiB on, level 1 below. Written after the public
// description of the format; of level 2 only the marker and the length's last byte differ in what is used of it.
//
//	000LLLLL                    L+1 literals follow
//	LLLOOOOO OOOOOOOO           copy L+2 bytes (L from 1 to 6) from O+1 back
//	111OOOOO LLLLLLLL OOOOOOOO  copy L+9 bytes from O+1 back; at level 2 more follows an L of 255
const (
	fastLZLiterals = 32
	fastLZNearest  = 3         // bytes that are worth a copy
	fastLZLongest  = 9 + 254   // below where the levels differ
	fastLZFarthest = 1<<13 - 1 // below where level 2 goes on
	fastLZLevel2   = 1 << 5    // in the first byte, which is of literals
	fastLZHash     = 1 << 13
)

// packFastLZ packs data, or returns nil if that makes them no smaller.
func packFastLZ(data []byte) []byte {
	out := make([]byte, 0, len(data))
	var seen [fastLZHash]int // where three such bytes were last, plus one
	start, at := 0, 0        // of the literals that are not written yet, and where it looks
	literals := func(end int) {
		for start < end {
			count := min(end-start, fastLZLiterals)
			out = append(append(out, byte(count-1)), data[start:start+count]...)
			start += count
		}
	}
	for at+fastLZNearest <= len(data) && len(out) < len(data) {
		slot := &seen[(uint32(data[at])<<16|uint32(data[at+1])<<8|uint32(data[at+2]))*2654435761>>19]
		from := *slot - 1
		*slot = at + 1
		length := 0
		if from >= 0 && at-from <= fastLZFarthest {
			for at+length < len(data) && length < fastLZLongest && data[from+length] == data[at+length] {
				length++
			}
		}
		if length < fastLZNearest {
			at++
			continue
		}
		literals(at)
		back := at - from - 1
		if length < 9 {
			out = append(out, byte(length-2)<<5|byte(back>>8), byte(back))
		} else {
			out = append(out, 7<<5|byte(back>>8), byte(length-9), byte(back))
		}
		at += length
		start = at
	}
	literals(len(data))
	if len(out) >= len(data) {
		return nil
	}
	if len(data) >= bufferUnit {
		out[0] |= fastLZLevel2
	}
	return out
}
