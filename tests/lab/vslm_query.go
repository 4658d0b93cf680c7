// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	vim "github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vslm/methods"
	"github.com/vmware/govmomi/vslm/types"
)

// compared tells whether an operator of a query holds between values in the order of c.
func compared(operator string, c int) (holds, known bool) {
	switch types.VslmVsoVStorageObjectQuerySpecQueryOperatorEnum(operator) {
	case types.VslmVsoVStorageObjectQuerySpecQueryOperatorEnumEquals:
		return c == 0, true
	case types.VslmVsoVStorageObjectQuerySpecQueryOperatorEnumNotEquals:
		return c != 0, true
	case types.VslmVsoVStorageObjectQuerySpecQueryOperatorEnumLessThan:
		return c < 0, true
	case types.VslmVsoVStorageObjectQuerySpecQueryOperatorEnumGreaterThan:
		return c > 0, true
	case types.VslmVsoVStorageObjectQuerySpecQueryOperatorEnumLessThanOrEqual:
		return c <= 0, true
	case types.VslmVsoVStorageObjectQuerySpecQueryOperatorEnumGreaterThanOrEqual:
		return c >= 0, true
	}
	return false, false
}

// holds tells whether one of the texts fits an operator.
func holds(operator, value string, texts ...string) (bool, error) {
	for _, text := range texts {
		fits, known := compared(operator, cmp.Compare(text, value))
		switch types.VslmVsoVStorageObjectQuerySpecQueryOperatorEnum(operator) {
		case types.VslmVsoVStorageObjectQuerySpecQueryOperatorEnumContains:
			fits, known = strings.Contains(text, value), true
		case types.VslmVsoVStorageObjectQuerySpecQueryOperatorEnumStartsWith:
			fits, known = strings.HasPrefix(text, value), true
		case types.VslmVsoVStorageObjectQuerySpecQueryOperatorEnumEndsWith:
			fits, known = strings.HasSuffix(text, value), true
		}
		if !known {
			return false, fmt.Errorf("no operator %q", operator)
		}
		if fits {
			return true, nil
		}
	}
	return false, nil
}

// matches tells whether a first class disk fits one condition of a query.
func (f *fcd) matches(q types.VslmVsoVStorageObjectQuerySpec) (bool, error) {
	value := q.QueryValue[0]
	f.mu.Lock()
	defer f.mu.Unlock()
	ordered := func(c int, err error) (bool, error) {
		fits, known := compared(q.QueryOperator, c)
		if err == nil && !known {
			err = fmt.Errorf("no operator %q", q.QueryOperator)
		}
		return fits, err
	}
	var texts []string
	switch types.VslmVsoVStorageObjectQuerySpecQueryFieldEnum(q.QueryField) {
	case types.VslmVsoVStorageObjectQuerySpecQueryFieldEnumId:
		texts = []string{f.id.Id}
	case types.VslmVsoVStorageObjectQuerySpecQueryFieldEnumName:
		texts = []string{f.name}
	case types.VslmVsoVStorageObjectQuerySpecQueryFieldEnumDatastoreMoId:
		texts = []string{f.datastore.Value}
	case types.VslmVsoVStorageObjectQuerySpecQueryFieldEnumCapacity:
		megabytes, err := strconv.ParseInt(value, 10, 64)
		return ordered(cmp.Compare(f.disk.node(f.file).capacity/mebibyte, megabytes), err)
	case types.VslmVsoVStorageObjectQuerySpecQueryFieldEnumCreateTime:
		moment, err := time.Parse(time.RFC3339Nano, value)
		return ordered(f.created.Compare(moment), err)
	case types.VslmVsoVStorageObjectQuerySpecQueryFieldEnumMetadataKey:
		for _, entry := range f.metadata {
			texts = append(texts, entry.Key)
		}
	case types.VslmVsoVStorageObjectQuerySpecQueryFieldEnumMetadataValue:
		for _, entry := range f.metadata {
			texts = append(texts, entry.Value)
		}
	default: // backingObjectId is in the list of fields, but the service refuses it
		return false, fmt.Errorf("no field %q", q.QueryField)
	}
	return holds(q.QueryOperator, value, texts...)
}

// VslmListVStorageObjectForSpec lists by ID what fits all conditions. A client pages by asking for
// IDs greater than the last.
func (m *vslmStore) VslmListVStorageObjectForSpec(_ *simulator.Context, req *types.VslmListVStorageObjectForSpec) soap.HasFault {
	body := new(methods.VslmListVStorageObjectForSpecBody)
	if req.MaxResult < 1 {
		body.Fault_ = refuse(&vim.InvalidArgument{InvalidProperty: "maxResult"}, "")
		return body
	}
	for _, q := range req.Query {
		if len(q.QueryValue) != 1 { // the service takes one value only
			body.Fault_ = refuse(&vim.InvalidArgument{InvalidProperty: "values"}, "")
			return body
		}
	}
	result := &types.VslmVsoVStorageObjectQueryResult{AllRecordsReturned: true}
	most := min(int(req.MaxResult), m.s.knobs().VSLMPage)
	for _, f := range m.s.fcds.all(nil) {
		fits := true
		for _, q := range req.Query {
			matches, err := f.matches(q)
			if err != nil {
				body.Fault_ = refuse(&vim.SystemError{Reason: "Undeclared fault"}, err.Error())
				return body
			}
			fits = fits && matches
		}
		if fits && len(result.Id) == most {
			result.AllRecordsReturned = false
			break
		}
		if fits {
			result.Id = append(result.Id, f.id)
			result.QueryResults = append(result.QueryResults, m.result(f))
		}
	}
	body.Res = &types.VslmListVStorageObjectForSpecResponse{Returnval: result}
	return body
}

// result is what the catalog tells of a first class disk.
func (m *vslmStore) result(f *fcd) types.VslmVsoVStorageObjectResult {
	datastore, _ := m.s.datastore(f.datastore)
	f.mu.Lock()
	defer f.mu.Unlock()
	capacity := f.disk.node(f.file).capacity / mebibyte
	out := types.VslmVsoVStorageObjectResult{Id: f.id, Name: f.name, CapacityInMB: capacity, CreateTime: &f.created,
		DatastoreUrl: datastore.Summary.Url, DiskPath: f.file, UsedCapacityInMB: capacity,
		BackingObjectId: &vim.ID{Id: f.backingID}, Metadata: slices.Clone(f.metadata)}
	for _, n := range f.snapshots {
		out.SnapshotInfo = append(out.SnapshotInfo, types.VslmVsoVStorageObjectSnapshotResult{
			BackingObjectId: vim.ID{Id: n.backingID}, Description: n.description, SnapshotId: &n.id, DiskPath: n.file})
	}
	return out
}

// VslmRetrieveVStorageObjects answers for many at once; what is wrong with one is told in its place.
func (m *vslmStore) VslmRetrieveVStorageObjects(_ *simulator.Context, req *types.VslmRetrieveVStorageObjects) soap.HasFault {
	res := new(types.VslmRetrieveVStorageObjectsResponse)
	for _, id := range req.Ids {
		if f, fault := m.find(id); fault != nil {
			res.Returnval = append(res.Returnval, types.VslmVsoVStorageObjectResult{Id: id, Error: localized(fault)})
		} else {
			res.Returnval = append(res.Returnval, m.result(f))
		}
	}
	return &methods.VslmRetrieveVStorageObjectsBody{Res: res}
}

func localized(fault vim.BaseMethodFault) *vim.LocalizedMethodFault {
	return &vim.LocalizedMethodFault{Fault: fault, LocalizedMessage: faultName(fault)}
}

func (m *vslmStore) VslmRetrieveVStorageObjectAssociations(_ *simulator.Context, req *types.VslmRetrieveVStorageObjectAssociations) soap.HasFault {
	res := new(types.VslmRetrieveVStorageObjectAssociationsResponse)
	for _, id := range req.Ids {
		answer := types.VslmVsoVStorageObjectAssociations{Id: id}
		if f, fault := m.find(id); fault != nil {
			answer.Fault = localized(fault)
		} else if vm, key := m.s.consumer(f); vm != "" {
			answer.VmDiskAssociation = []types.VslmVsoVStorageObjectAssociationsVmDiskAssociation{{VmId: vm, DiskKey: key}}
		}
		res.Returnval = append(res.Returnval, answer)
	}
	return &methods.VslmRetrieveVStorageObjectAssociationsBody{Res: res}
}

func (m *vslmStore) VslmRetrieveVStorageObject(_ *simulator.Context, req *types.VslmRetrieveVStorageObject) soap.HasFault {
	body := new(methods.VslmRetrieveVStorageObjectBody)
	if f, fault := m.find(req.Id); fault != nil {
		body.Fault_ = refuse(fault, "")
	} else {
		body.Res = &types.VslmRetrieveVStorageObjectResponse{Returnval: m.s.tell(f)}
	}
	return body
}

func (m *vslmStore) VslmRetrieveVStorageObjectState(_ *simulator.Context, req *types.VslmRetrieveVStorageObjectState) soap.HasFault {
	body := new(methods.VslmRetrieveVStorageObjectStateBody)
	if _, fault := m.find(req.Id); fault != nil {
		body.Fault_ = refuse(fault, "")
	} else {
		body.Res = &types.VslmRetrieveVStorageObjectStateResponse{Returnval: vim.VStorageObjectStateInfo{Tentative: vim.NewBool(false)}}
	}
	return body
}

func (m *vslmStore) VslmRetrieveSnapshotInfo(_ *simulator.Context, req *types.VslmRetrieveSnapshotInfo) soap.HasFault {
	body := new(methods.VslmRetrieveSnapshotInfoBody)
	if f, fault := m.find(req.Id); fault != nil {
		body.Fault_ = refuse(fault, "")
	} else {
		body.Res = &types.VslmRetrieveSnapshotInfoResponse{Returnval: f.snapshotInfo()}
	}
	return body
}

func (m *vslmStore) VslmRetrieveSnapshotDetails(_ *simulator.Context, req *types.VslmRetrieveSnapshotDetails) soap.HasFault {
	body := new(methods.VslmRetrieveSnapshotDetailsBody)
	f, fault := m.find(req.Id)
	if fault == nil {
		var details vim.VStorageObjectSnapshotDetails
		if details, fault = f.details(req.SnapshotId); fault == nil {
			body.Res = &types.VslmRetrieveSnapshotDetailsResponse{Returnval: details}
			return body
		}
	}
	body.Fault_ = refuse(fault, "")
	return body
}

func (m *vslmStore) VslmQueryChangedDiskAreas(_ *simulator.Context, req *types.VslmQueryChangedDiskAreas) soap.HasFault {
	body := new(methods.VslmQueryChangedDiskAreasBody)
	f, fault := m.find(req.Id)
	if fault != nil {
		body.Fault_ = refuse(fault, "")
		return body
	}
	answer, fault, message := m.s.changesFCD(f, req.SnapshotId, req.StartOffset, req.ChangeId)
	if fault != nil {
		body.Fault_ = refuse(fault, message)
	} else {
		body.Res = &types.VslmQueryChangedDiskAreasResponse{Returnval: answer}
	}
	return body
}

// metadata is that of a first class disk, or what it was at a snapshot.
func (m *vslmStore) metadata(id vim.ID, snapshot *vim.ID) ([]vim.KeyValue, vim.BaseMethodFault) {
	f, fault := m.find(id)
	if fault != nil {
		return nil, fault
	}
	if snapshot != nil {
		n, fault := f.snapshot(*snapshot)
		if fault != nil {
			return nil, fault
		}
		return n.metadata, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.metadata), nil
}

func (m *vslmStore) VslmRetrieveVStorageObjectMetadata(_ *simulator.Context, req *types.VslmRetrieveVStorageObjectMetadata) soap.HasFault {
	body := new(methods.VslmRetrieveVStorageObjectMetadataBody)
	entries, fault := m.metadata(req.Id, req.SnapshotId)
	if fault != nil {
		body.Fault_ = refuse(fault, "")
		return body
	}
	body.Res = new(types.VslmRetrieveVStorageObjectMetadataResponse)
	for _, entry := range entries {
		if strings.HasPrefix(entry.Key, req.Prefix) {
			body.Res.Returnval = append(body.Res.Returnval, entry)
		}
	}
	return body
}

func (m *vslmStore) VslmRetrieveVStorageObjectMetadataValue(_ *simulator.Context, req *types.VslmRetrieveVStorageObjectMetadataValue) soap.HasFault {
	body := new(methods.VslmRetrieveVStorageObjectMetadataValueBody)
	entries, fault := m.metadata(req.Id, req.SnapshotId)
	if i := slices.IndexFunc(entries, func(entry vim.KeyValue) bool { return entry.Key == req.Key }); fault == nil && i >= 0 {
		body.Res = &types.VslmRetrieveVStorageObjectMetadataValueResponse{Returnval: entries[i].Value}
	} else if fault != nil {
		body.Fault_ = refuse(fault, "")
	} else {
		body.Fault_ = refuse(&vim.KeyNotFound{Key: req.Key}, "")
	}
	return body
}
