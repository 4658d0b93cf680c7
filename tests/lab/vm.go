package main

import "github.com/vmware/govmomi/simulator"

type labVM struct {
	*simulator.VirtualMachine
	s *sim
}

type labSnapshot struct {
	*simulator.VirtualMachineSnapshot
	s *sim
}

type labFolder struct {
	*simulator.Folder
	s *sim
}

func (s *sim) populate(n int) error { return nil }
