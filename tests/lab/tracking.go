// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

// knobs are the ways in which change tracking differs between real servers, or in which the
// facts are unverified. The zero value of none is meaningful: see defaultKnobs.
type knobs struct {
	Page                int    `json:"page"`                  // most areas in one answer
	Granularity         int64  `json:"granularity"`           // bytes, a multiple of 64 KiB
	Inflate             int64  `json:"inflate"`               // widen answers to this many bytes: more than changed
	Untidy              bool   `json:"untidy"`                // answer unsorted, one area twice
	Star                string `json:"star"`                  // "*" gives "allocated", "whole" (one area) or "fault"
	BadChangeID         string `json:"bad_change_id"`         // fault for an unknown ID: InvalidArgument or FileFault
	OnRevert            string `json:"on_revert"`             // "reset" the UUID, or go on "silent"ly and wrong
	OnCrash             string `json:"on_crash"`              // "reset" or "keep" when a host dies
	OnMove              string `json:"on_move"`               // open disks "follow" files to another datastore, or "break"
	FirstSnapshot       string `json:"first_snapshot"`        // the one that activates tracking is "untracked" or "tracked"
	LiveChangeID        string `json:"live_change_id"`        // the VM's own configuration shows the "current" ID or "none"
	QuiesceWithoutTools string `json:"quiesce_without_tools"` // "fault" or "ignored"
	Forget              bool   `json:"forget"`                // tracking takes no notice of what is written meanwhile
	FailConsolidation   int    `json:"fail_consolidation"`    // so many removals leave their files behind
	Cancelable          string `json:"cancelable"`            // tasks: "creations" of VMs, disks and snapshots, "all" or "none"
	Suppressed          string `json:"suppressed"`            // what a VM is after a revert that must not power it on: suspended or poweredOff
	EscapeNames         bool   `json:"escape_names"`          // snapshots' names are stored like those of VMs: %2f, %5c, %25
	ObjectPage          int32  `json:"object_page"`           // most objects in one answer of the property collector; 0: as many as asked for
	ConsumerID          string `json:"consumer_id"`           // of a VM in first class disks: its "instance_uuid" or "uuid"
	VSLM                bool   `json:"vslm"`                  // the vCenter has /vslm/sdk
	VSLMUnknown         string `json:"vslm_unknown"`          // VSLM's fault for an unknown ID: NotFound or InvalidArgument
	VSLMPage            int    `json:"vslm_page"`             // most first class disks in one list of VSLM's
}

func defaultKnobs() knobs {
	return knobs{
		Page: 2000, Granularity: block, Star: "allocated", BadChangeID: "InvalidArgument", OnRevert: "reset", OnCrash: "reset", OnMove: "follow",
		Cancelable: "creations", Suppressed: "suspended", FirstSnapshot: "untracked", LiveChangeID: "current", QuiesceWithoutTools: "fault",
		ConsumerID: "instance_uuid", VSLM: true, VSLMUnknown: "NotFound", VSLMPage: 1000,
	}
}

// check refuses values that mean nothing.
func (k *knobs) check() error {
	allowed := []struct {
		name, value string
		values      []string
	}{
		{"star", k.Star, []string{"allocated", "whole", "fault"}},
		{"bad_change_id", k.BadChangeID, []string{"InvalidArgument", "FileFault"}},
		{"on_revert", k.OnRevert, []string{"reset", "silent"}},
		{"on_crash", k.OnCrash, []string{"reset", "keep"}},
		{"on_move", k.OnMove, []string{"follow", "break"}},
		{"first_snapshot", k.FirstSnapshot, []string{"untracked", "tracked"}},
		{"live_change_id", k.LiveChangeID, []string{"current", "none"}},
		{"quiesce_without_tools", k.QuiesceWithoutTools, []string{"fault", "ignored"}},
		{"cancelable", k.Cancelable, []string{"creations", "all", "none"}},
		{"suppressed", k.Suppressed, []string{"suspended", "poweredOff"}},
		{"vslm_unknown", k.VSLMUnknown, []string{"NotFound", "InvalidArgument"}},
		{"consumer_id", k.ConsumerID, []string{"instance_uuid", "uuid"}},
	}
	for _, a := range allowed {
		if !slices.Contains(a.values, a.value) {
			return fmt.Errorf("%s is %q, must be one of %s", a.name, a.value, strings.Join(a.values, ", "))
		}
	}
	if k.Page < 1 || k.VSLMPage < 1 || k.Granularity < block || k.Granularity%block != 0 {
		return fmt.Errorf("pages must be positive, granularity a multiple of %d", block)
	}
	return nil
}

// epoch is the time between two points that have change IDs: it begins at its own.
type epoch struct {
	uuid   string
	number int
	parent *epoch
	dirty  extents
}

func (e *epoch) id() string { return fmt.Sprintf("%s/%d", e.uuid, e.number) }

// tracker is the change tracking of one disk through all its snapshots.
type tracker struct {
	current *epoch            // nil: not tracking
	epochs  map[string]*epoch // by change ID
	partial bool              // switched on under a snapshot: what is allocated is not known
}

// changeUUID is random, in the form of VMware's disk UUIDs.
func changeUUID() string {
	parts := []string{"52"}
	for range 15 {
		parts = append(parts, fmt.Sprintf("%02x", rand.IntN(256)))
	}
	return strings.Join(parts[:8], " ") + "-" + strings.Join(parts[8:], " ")
}

// on begins tracking under a new UUID, whatever was before.
func (t *tracker) on(partial bool) {
	t.partial = partial
	t.enter(&epoch{uuid: changeUUID(), number: 1})
}

// off ends tracking and loses what was known: its file is gone.
func (t *tracker) off() { *t = tracker{} }

func (t *tracker) enter(e *epoch) {
	if t.epochs == nil {
		t.epochs = map[string]*epoch{}
	}
	t.epochs[e.id()] = e
	t.current = e
}

// point ends the current epoch and returns the change ID of this moment.
func (t *tracker) point() string {
	t.enter(&epoch{uuid: t.current.uuid, number: t.highest(t.current.uuid) + 1, parent: t.current})
	return t.current.id()
}

func (t *tracker) highest(uuid string) (n int) {
	for _, e := range t.epochs {
		if e.uuid == uuid {
			n = max(n, e.number)
		}
	}
	return n
}

// back follows a revert to the moment with the given change ID.
func (t *tracker) back(id string, silent bool) {
	if t.current == nil {
		return
	}
	if point := t.epochs[id]; silent && point != nil {
		t.enter(&epoch{uuid: point.uuid, number: t.highest(point.uuid) + 1, parent: point.parent})
		return
	}
	t.on(true)
}

// notice is what takes note of writes to a disk, or does not.
func (k *knobs) notice(t *tracker) func(extent) {
	if k.Forget {
		return func(extent) {}
	}
	return t.mark
}

// mark notes a write.
func (t *tracker) mark(e extent) {
	if t.current != nil {
		start := e.start / block * block
		t.current.dirty.add(extent{start, (e.end()+block-1)/block*block - start})
	}
}

// id is the change ID of the present, or "".
func (t *tracker) id() string {
	if t.current == nil {
		return ""
	}
	return t.current.id()
}

// shown is the change ID in the VM's own configuration.
func (k *knobs) shown(t *tracker) string {
	if k.LiveChangeID == "none" {
		return ""
	}
	return t.id()
}

// queryError says why the changed areas of a disk are not known.
type queryError int

const (
	noTracking  queryError = iota + 1 // no tracking file, or it does not reach back so far
	badChangeID                       // not an ID of this disk, or newer than the snapshot
)

// changed lists what was written between two change IDs. An empty "to" is the present.
func (t *tracker) changed(from, to string) (extents, queryError) {
	var e *epoch
	if to != "" {
		e = t.epochs[to]
	} else if t.current != nil {
		e = &epoch{uuid: t.current.uuid, number: t.current.number + 1, parent: t.current}
	}
	if e == nil {
		return nil, noTracking
	}
	uuid, text, _ := strings.Cut(from, "/")
	number, err := strconv.Atoi(text)
	switch {
	case err != nil || uuid != e.uuid || number > e.number:
		return nil, badChangeID
	case number < 1:
		return nil, noTracking
	}
	var out extents
	for ; e.number > number && e.parent != nil; e = e.parent {
		if e.parent.number >= number { // after a silent revert the numbers of a lost branch are jumped over
			out.union(e.parent.dirty)
		}
	}
	return out, 0
}

// answer cuts areas to one page from start on.
func (k *knobs) answer(areas extents, start, size int64) types.DiskChangeInfo {
	areas = areas.widen(max(k.Granularity, k.Inflate), size)
	out := types.DiskChangeInfo{StartOffset: start, Length: size - start}
	for _, e := range areas {
		if e.end() <= start {
			continue
		}
		if e.start < start {
			e = extent{start, e.end() - start}
		}
		if len(out.ChangedArea) == k.Page {
			last := out.ChangedArea[k.Page-1]
			out.Length = last.Start + last.Length - start
			break
		}
		out.ChangedArea = append(out.ChangedArea, types.DiskChangeExtent{Start: e.start, Length: e.length})
	}
	if k.Untidy && len(out.ChangedArea) > 0 {
		out.ChangedArea = append(out.ChangedArea, out.ChangedArea[0])
		rand.Shuffle(len(out.ChangedArea), func(i, j int) {
			out.ChangedArea[i], out.ChangedArea[j] = out.ChangedArea[j], out.ChangedArea[i]
		})
	}
	return out
}
