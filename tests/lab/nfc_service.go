// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"cmp"
	"encoding/pem"
	"reflect"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// The managed object that gives out tickets. It is not in the published API, so neither govmomi's
// simulator nor its types have it; requests come in the namespaces urn:vim25 and urn:nfc.

var (
	nfcOfVCenter = types.ManagedObjectReference{Type: "NfcService", Value: "nfcService"}
	nfcOfESXi    = types.ManagedObjectReference{Type: "NfcService", Value: "ha-nfc-service"}
)

// nfcLibVersion is that of ESXi 8.
const nfcLibVersion = 11

type nfcGetVMFiles struct {
	This types.ManagedObjectReference  `xml:"_this"`
	VM   *types.ManagedObjectReference `xml:"vm"`
}

type nfcRandomAccess struct {
	This          types.ManagedObjectReference  `xml:"_this"`
	VM            *types.ManagedObjectReference `xml:"vm"`
	DiskDeviceKey *int32                        `xml:"diskDeviceKey"`
	HostForAccess *types.ManagedObjectReference `xml:"hostForAccess"`
}

type nfcOfHost struct {
	This          types.ManagedObjectReference  `xml:"_this"`
	HostForAccess *types.ManagedObjectReference `xml:"hostForAccess"`
}

type nfcTicketResponse struct {
	Returnval types.HostServiceTicket `xml:"returnval"`
}

type nfcVersionResponse struct {
	Returnval int32 `xml:"returnval"`
}

// Bodies: the simulator names the answer's element by the tag of Res.
type nfcGetVMFilesBody struct {
	Res    *nfcTicketResponse `xml:"NfcGetVmFilesResponse,omitempty"`
	Fault_ *soap.Fault        `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

type nfcOpenReadonlyBody struct {
	Res    *nfcTicketResponse `xml:"NfcRandomAccessOpenReadonlyResponse,omitempty"`
	Fault_ *soap.Fault        `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

type nfcOpenDiskBody struct {
	Res    *nfcTicketResponse `xml:"NfcRandomAccessOpenDiskResponse,omitempty"`
	Fault_ *soap.Fault        `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

type nfcVersionBody struct {
	Res    *nfcVersionResponse `xml:"NfcGetServerNfcLibVersionResponse,omitempty"`
	Fault_ *soap.Fault         `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

func (b *nfcGetVMFilesBody) Fault() *soap.Fault   { return b.Fault_ }
func (b *nfcOpenReadonlyBody) Fault() *soap.Fault { return b.Fault_ }
func (b *nfcOpenDiskBody) Fault() *soap.Fault     { return b.Fault_ }
func (b *nfcVersionBody) Fault() *soap.Fault      { return b.Fault_ }

func init() {
	types.Add("NfcGetVmFiles", reflect.TypeOf(nfcGetVMFiles{}))
	types.Add("NfcRandomAccessOpenReadonly", reflect.TypeOf(nfcRandomAccess{}))
	types.Add("NfcRandomAccessOpenDisk", reflect.TypeOf(nfcRandomAccess{}))
	types.Add("NfcGetServerNfcLibVersion", reflect.TypeOf(nfcOfHost{}))
}

// nfcService answers the calls; it locks what it needs.
type nfcService struct {
	mo.LocalizationManager // of no matter which type: the simulator's searches look at the first field of every object
	n                      *nfc
}

func (*nfcService) Lock()   {}
func (*nfcService) Unlock() {}

// register makes the service known.
func (n *nfc) register() { n.serviceObject(false) }

// serviceObject shows the vCenter's service or that of a standalone host.
func (n *nfc) serviceObject(esxi bool) {
	shown, hidden := nfcOfVCenter, nfcOfESXi
	if esxi {
		shown, hidden = hidden, shown
	}
	if n.s.reg.Get(hidden) != nil {
		n.s.reg.Remove(n.s.context(), hidden)
	}
	if n.s.reg.Get(shown) == nil {
		n.s.reg.Put(&nfcService{mo.LocalizationManager{Self: shown}, n})
	}
	kind := map[bool]string{false: "VirtualCenter", true: "HostAgent"}[esxi]
	ctx := n.s.context()
	instance := n.s.reg.Get(vim25.ServiceInstance).(*simulator.ServiceInstance)
	ctx.WithLock(instance, func() { instance.Content.About.ApiType = kind })
}

// internals answers RetrieveInternalContent of the service instance, for which the simulator names a
// service that it does not have.
type internals struct {
	types.ManagedObjectReference
	n *nfc
}

type internalContent struct {
	types.DynamicData
	NfcService types.ManagedObjectReference `xml:"nfcService"`
}

type internalResponse struct {
	Returnval internalContent `xml:"returnval"`
}

type internalBody struct {
	Res    *internalResponse `xml:"RetrieveInternalContentResponse,omitempty"`
	Fault_ *soap.Fault       `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

func (b *internalBody) Fault() *soap.Fault { return b.Fault_ }

func (i *internals) RetrieveInternalContent(any) soap.HasFault {
	shown := nfcOfVCenter
	if i.n.settings().ESXi {
		shown = nfcOfESXi
	}
	return &internalBody{Res: &internalResponse{internalContent{NfcService: shown}}}
}

// NfcGetVmFiles gives a ticket to read any disk file of a VM.
func (v *nfcService) NfcGetVmFiles(ctx *simulator.Context, req *nfcGetVMFiles) soap.HasFault {
	ticket, fault := v.ticket(ctx, req.VM, nil, nil, false)
	if fault != nil {
		return &nfcGetVMFilesBody{Fault_: refuse(fault, "")}
	}
	return &nfcGetVMFilesBody{Res: &nfcTicketResponse{ticket}}
}

// NfcRandomAccessOpenReadonly gives a ticket to read one disk.
func (v *nfcService) NfcRandomAccessOpenReadonly(ctx *simulator.Context, req *nfcRandomAccess) soap.HasFault {
	ticket, fault := v.ofDisk(ctx, req, false)
	if fault != nil {
		return &nfcOpenReadonlyBody{Fault_: refuse(fault, "")}
	}
	return &nfcOpenReadonlyBody{Res: &nfcTicketResponse{ticket}}
}

// NfcRandomAccessOpenDisk gives a ticket to read and write one disk.
func (v *nfcService) NfcRandomAccessOpenDisk(ctx *simulator.Context, req *nfcRandomAccess) soap.HasFault {
	ticket, fault := v.ofDisk(ctx, req, true)
	if fault != nil {
		return &nfcOpenDiskBody{Fault_: refuse(fault, "")}
	}
	return &nfcOpenDiskBody{Res: &nfcTicketResponse{ticket}}
}

// NfcGetServerNfcLibVersion tells the version of the service's protocol.
func (v *nfcService) NfcGetServerNfcLibVersion(_ *simulator.Context, req *nfcOfHost) soap.HasFault {
	if _, fault := v.host(req.HostForAccess); fault != nil {
		return &nfcVersionBody{Fault_: refuse(fault, "")}
	}
	return &nfcVersionBody{Res: &nfcVersionResponse{nfcLibVersion}}
}

func (v *nfcService) ofDisk(ctx *simulator.Context, req *nfcRandomAccess, write bool) (types.HostServiceTicket, types.BaseMethodFault) {
	if req.DiskDeviceKey == nil {
		return types.HostServiceTicket{}, &types.InvalidArgument{InvalidProperty: "diskDeviceKey"}
	}
	host, fault := v.host(req.HostForAccess)
	if fault != nil {
		return types.HostServiceTicket{}, fault
	}
	return v.ticket(ctx, req.VM, req.DiskDeviceKey, host, write)
}

// host finds the host that a client names.
func (v *nfcService) host(ref *types.ManagedObjectReference) (*simulator.HostSystem, types.BaseMethodFault) {
	if ref == nil {
		return nil, &types.InvalidArgument{InvalidProperty: "hostForAccess"}
	}
	host, ok := v.n.s.reg.Get(*ref).(*simulator.HostSystem)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: *ref}
	}
	return host, nil
}

// ticket gives out a ticket for a VM's disk of that key, or for any of its disks.
func (v *nfcService) ticket(ctx *simulator.Context, ref *types.ManagedObjectReference, key *int32, host *simulator.HostSystem, write bool) (types.HostServiceTicket, types.BaseMethodFault) {
	var none types.HostServiceTicket
	if ref == nil {
		return none, &types.InvalidArgument{InvalidProperty: "vm"}
	}
	n := v.n
	vm := n.s.vm(*ref)
	if vm == nil {
		return none, &types.ManagedObjectNotFound{Obj: *ref}
	}
	made := &nfcTicket{id: "52" + uuid.NewString()[2:], vm: vm.Self.Value, write: write, service: "vpxa-nfc"}
	known := key == nil
	ctx.WithLock(vm, func() {
		if key != nil {
			d, _ := findDisk(vm.Config.Hardware.Device, *key)
			made.key, known = *key, d != nil
		}
		if host == nil {
			host = n.s.reg.Get(*vm.Runtime.Host).(*simulator.HostSystem)
		}
	})
	if !known {
		return none, &types.InvalidArgument{InvalidProperty: "diskDeviceKey"}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.knobs.Maintenance || host.Runtime.InMaintenanceMode {
		return none, &types.InvalidHostState{Host: &host.Self}
	}
	answer := types.HostServiceTicket{Host: cmp.Or(n.knobs.Host, n.s.host), Port: int32(n.port()),
		SslThumbprint: cmp.Or(n.knobs.Thumbprint, n.thumbprint), ServiceVersion: "1.1"}
	if n.knobs.TicketPEM { // as vSphere 9 may: the one or the other
		answer.SslThumbprint = ""
		answer.SslCertificate = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: n.certificate.Certificate[0]}))
	}
	if v.Self == nfcOfESXi {
		made.service, answer.Host = "ha-nfc", n.knobs.Host
	}
	answer.Service, answer.SessionId = made.service, made.id
	made.expires = time.Now().Add(time.Duration(n.knobs.TicketSeconds * float64(time.Second)))
	n.tickets[made.id] = made
	n.report.Tickets++
	return answer, nil
}

// take uses up a ticket: nil if it is not good for a connection.
func (n *nfc) take(id string) *nfcTicket {
	n.mu.Lock()
	ticket := n.tickets[id]
	expired := ticket != nil && time.Now().After(ticket.expires)
	used := ticket != nil && ticket.used
	if ticket != nil {
		ticket.used = true
	}
	n.mu.Unlock()
	switch {
	case ticket == nil:
		n.violation("a ticket that was never given out")
	case used:
		n.violation("a ticket used twice")
	case !expired:
		return ticket
	}
	return nil
}
