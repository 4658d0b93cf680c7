// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"encoding/json"
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// rule is one injected misbehaviour: of a call (Method) or of a task (Task). Both are
// patterns: "CreateSnapshot*_Task", "*.createSnapshot*"; a task may leave out its type.
type rule struct {
	Method  string          `json:"method"`
	Task    string          `json:"task"`
	Object  string          `json:"object"` // moref value of the object called, or ID of the first class disk, or any
	Fault   string          `json:"fault"`  // type name of a fault, or none: only delay
	Fields  json.RawMessage `json:"fields"` // JSON of the fault's own fields
	Message string          `json:"message"`
	Count   int             `json:"count"` // how often; 0 for ever
	Skip    int             `json:"skip"`  // how many matches go unharmed first
	DelayMS int             `json:"delay_ms"`
	Partly  int             `json:"partly"` // of a removal of several snapshots: how many are gone when it fails
	Do      string          `json:"do"`     // a control verb that is done first: the world changes under the client
	With    json.RawMessage `json:"with"`   // its parameters
	Drop    bool            `json:"drop"`   // reset the connection instead of answering
	Status  int             `json:"status"` // answer with this HTTP status
	fault   types.BaseMethodFault
	first   verb
	used    int
}

// rules is the list of injected misbehaviours.
type rules struct {
	mu   sync.Mutex
	list []*rule
}

// add checks the rule and appends it.
func (r *rules) add(x *rule) error {
	if (x.Method == "") == (x.Task == "") {
		return fmt.Errorf("a rule names either a method or a task")
	}
	if x.first != nil && x.Method == "" {
		return fmt.Errorf("only before a method something can be done")
	}
	if x.Fault != "" {
		fault, err := makeFault(x.Fault, x.Fields)
		if err != nil {
			return err
		}
		x.fault = fault
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, x)
	return nil
}

func (r *rules) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = nil
}

// call takes the rule for a call of a method on objects, or nil.
func (r *rules) call(method string, objects ...string) *rule {
	return r.take(objects, func(x *rule) bool { return x.Method != "" && like(x.Method, method) })
}

// task takes the rule for a task ("VirtualMachine.createSnapshot") on objects, or nil.
func (r *rules) task(description string, objects ...string) *rule {
	_, short, _ := strings.Cut(description, ".")
	return r.take(objects, func(x *rule) bool { return x.Task != "" && (like(x.Task, description) || like(x.Task, short)) })
}

func (r *rules) take(objects []string, match func(*rule) bool) *rule {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range r.list {
		if !match(x) || (x.Object != "" && !slices.Contains(objects, x.Object)) || (x.Count > 0 && x.used >= x.Skip+x.Count) {
			continue
		}
		x.used++
		if x.used > x.Skip {
			return x
		}
	}
	return nil
}

func (x *rule) delay() {
	if x != nil {
		time.Sleep(time.Duration(x.DelayMS) * time.Millisecond)
	}
}

func like(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return err == nil && ok
}

// makeFault builds a fault by its type name and fills it from JSON.
func makeFault(name string, fields json.RawMessage) (types.BaseMethodFault, error) {
	kind, ok := types.TypeFunc()(name)
	if !ok {
		return nil, fmt.Errorf("no type %q", name)
	}
	value := reflect.New(kind)
	if len(fields) > 0 {
		if err := json.Unmarshal(fields, value.Interface()); err != nil {
			return nil, err
		}
	}
	fault, ok := value.Interface().(types.BaseMethodFault)
	if !ok {
		return nil, fmt.Errorf("%q is no fault", name)
	}
	fillReferences(value.Elem())
	return fault, nil
}

// fillReferences names something in each required reference: clients refuse a fault without it.
func fillReferences(v reflect.Value) {
	for i := range v.NumField() {
		field := v.Field(i)
		if ref, ok := field.Interface().(types.ManagedObjectReference); ok && ref.Value == "" {
			field.Set(reflect.ValueOf(types.ManagedObjectReference{Type: "Task", Value: "task-0"}))
		} else if field.Kind() == reflect.Struct && v.Type().Field(i).Anonymous {
			fillReferences(field)
		}
	}
}

// faultName is the type name of a fault, as messages show it.
func faultName(f types.BaseMethodFault) string {
	return reflect.TypeOf(f).Elem().Name()
}
