// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"reflect"
	"testing"
)

// flags is the simplest model of a set of bytes: one flag for each.
func flags(x extents, size int64) []bool {
	out := make([]bool, size)
	for _, e := range x {
		for i := e.start; i < e.end(); i++ {
			out[i] = true
		}
	}
	return out
}

func TestExtentsAgreeWithFlags(t *testing.T) {
	const size = 200
	chance := seeded(t)
	for range 2000 {
		var x extents
		model := make([]bool, size)
		for range chance.IntN(12) {
			e := extent{chance.Int64N(size), chance.Int64N(30)}
			e.length = min(e.length, size-e.start)
			x.add(e)
			for i := e.start; i < e.end(); i++ {
				model[i] = true
			}
		}
		if !reflect.DeepEqual(flags(x, size), model) {
			t.Fatalf("%v is not %v", x, model)
		}
		for i, e := range x {
			if e.length <= 0 || i > 0 && x[i-1].end() >= e.start {
				t.Fatalf("%v touch or are empty", x)
			}
		}
		for i := range int64(size) {
			if x.covers(i) != model[i] {
				t.Fatalf("%v covers %d: %v", x, i, !model[i])
			}
		}
	}
}

func TestWidenRoundsOutwardsWithinTheDisk(t *testing.T) {
	got := extents{{5, 1}, {14, 2}, {38, 1}}.widen(10, 39)
	if want := (extents{{0, 20}, {30, 9}}); !reflect.DeepEqual(got, want) {
		t.Fatalf("%v, not %v", got, want)
	}
}

// writes marks blocks by number and returns the change ID after them.
func writes(t *tracker, numbers ...int64) string {
	for _, n := range numbers {
		t.mark(extent{n*block + 17, 1})
	}
	return t.point()
}

func numbers(x extents) []int64 {
	out := []int64{}
	for _, e := range x {
		for at := e.start; at < e.end(); at += block {
			out = append(out, at/block)
		}
	}
	return out
}

func expectChanged(t *testing.T, k *tracker, from, to string, want ...int64) {
	t.Helper()
	got, problem := k.changed(from, to)
	if problem != 0 || !reflect.DeepEqual(numbers(got), append([]int64{}, want...)) {
		t.Fatalf("from %s to %s: %v (%d), not %v", from, to, numbers(got), problem, want)
	}
}

func TestChangedAreasBetweenPoints(t *testing.T) {
	var k tracker
	k.mark(extent{0, block}) // before it is on: lost
	k.on(false)
	first := k.id()
	second := writes(&k, 1, 2)
	third := writes(&k, 2, 7)
	k.mark(extent{9 * block, 1})
	expectChanged(t, &k, first, second, 1, 2)
	expectChanged(t, &k, second, third, 2, 7)
	expectChanged(t, &k, first, third, 1, 2, 7)
	expectChanged(t, &k, third, third)
	expectChanged(t, &k, third, "", 9)
}

func TestForgottenWritesAreNeverTold(t *testing.T) {
	var k tracker
	settings := defaultKnobs()
	k.on(false)
	first := k.id()
	settings.notice(&k)(extent{1 * block, 1})
	settings.Forget = true
	settings.notice(&k)(extent{2 * block, 1})
	second := k.point()
	settings.notice(&k)(extent{3 * block, 1})
	settings.Forget = false
	settings.notice(&k)(extent{4 * block, 1})
	third := k.point()
	expectChanged(t, &k, first, second, 1)
	expectChanged(t, &k, first, third, 1, 4)
}

func TestIDsThatDoNotHold(t *testing.T) {
	var k tracker
	k.on(false)
	old := k.id()
	point := writes(&k, 1)
	newer := writes(&k, 2)
	uuid := old[:len(old)-2]
	for id, want := range map[string]queryError{
		newer: badChangeID, "": badChangeID, "nonsense": badChangeID, uuid: badChangeID, uuid + "/x": badChangeID,
		changeUUID() + "/1": badChangeID, uuid + "/0": noTracking,
	} {
		if _, got := k.changed(id, point); got != want {
			t.Errorf("%q: %d, not %d", id, got, want)
		}
	}
	k.on(false)
	if _, got := k.changed(old, writes(&k, 3)); got != badChangeID {
		t.Errorf("an ID from before the reset: %d", got)
	}
	k.off()
	if _, got := k.changed(old, newer); got != noTracking {
		t.Errorf("without tracking: %d", got)
	}
}

func TestRevertResetsOrLies(t *testing.T) {
	for _, silent := range []bool{false, true} {
		var k tracker
		k.on(false)
		snapshot := writes(&k, 1)
		lost := writes(&k, 2)
		k.mark(extent{3 * block, 1})
		k.back(snapshot, silent)
		after := writes(&k, 4)
		if !silent {
			if _, got := k.changed(lost, after); got != badChangeID {
				t.Fatalf("an ID from before the revert: %d", got)
			}
			continue
		}
		// 2 was rolled back since the lost point; a wrong answer is what the knob orders.
		expectChanged(t, &k, lost, after, 4)
		expectChanged(t, &k, snapshot, after, 4)
	}
}

func TestAnswersInPages(t *testing.T) {
	k := defaultKnobs()
	k.Page = 3
	var areas extents
	for n := range int64(10) {
		areas.add(extent{n * 2 * block, block})
	}
	const size = 20 * block
	var got extents
	calls := 0
	for start := int64(0); start < size; calls++ {
		page := k.answer(areas, start, size)
		if page.StartOffset != start || page.Length <= 0 || len(page.ChangedArea) > 3 {
			t.Fatalf("%+v", page)
		}
		for _, a := range page.ChangedArea {
			got.add(extent{a.Start, a.Length})
		}
		start += page.Length
	}
	if calls != 4 || !reflect.DeepEqual(got, areas) {
		t.Fatalf("%d calls gave %v", calls, got)
	}
	// An area that is cut by startOffset is answered from there on.
	if page := k.answer(extents{{0, 4 * block}}, 2*block, size); page.ChangedArea[0].Start != 2*block || page.ChangedArea[0].Length != 2*block {
		t.Fatalf("%+v", page)
	}
}

func TestKnobsThatGiveMoreThanChanged(t *testing.T) {
	k := defaultKnobs()
	k.Inflate = 4 * block
	page := k.answer(extents{{5 * block, block}}, 0, 7*block)
	if page.ChangedArea[0].Start != 4*block || page.ChangedArea[0].Length != 3*block {
		t.Fatalf("%+v", page)
	}
	k.Inflate, k.Untidy = 0, true
	if page := k.answer(extents{{0, block}, {2 * block, block}}, 0, 9*block); len(page.ChangedArea) != 3 {
		t.Fatalf("%+v", page)
	}
	k.Star = "some"
	if k.check() == nil {
		t.Fatal("a knob took a value that means nothing")
	}
}
