package network

import (
	"maps"
	"slices"

	"wrenn.dev/internal/netns"
)

// Tenant is a leftover slot in which processes run: a machine that its agent
// lost track of, or a person's shell.
type Tenant struct {
	Slot string // the name of its namespace and link
	PIDs []int
}

// Tenants returns the leftover slots with processes, by their index. Processes
// are found by their namespace, not by their name.
func (p *Pool) Tenants() ([]Tenant, error) {
	inUse, err := p.processes()
	if err != nil {
		return nil, err
	}
	var tenants []Tenant
	for _, index := range slices.Sorted(maps.Keys(inUse)) {
		tenants = append(tenants, Tenant{Slot: p.cfg.name(index), PIDs: inUse[index]})
	}
	return tenants, nil
}

// processes returns the processes in leftover slots, by index.
func (p *Pool) processes() (map[int][]int, error) {
	leftovers := p.leftovers()
	found, err := netns.Processes(slices.Collect(maps.Keys(leftovers)))
	if err != nil {
		return nil, err
	}
	inUse := map[int][]int{}
	for path, pids := range found {
		inUse[leftovers[path]] = pids
	}
	return inUse, nil
}

// leftovers returns the indexes of leftover slots, by the paths of their namespaces.
func (p *Pool) leftovers() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	paths := map[string]int{}
	for index, e := range p.slots {
		if e.state == stateLeftover {
			paths[p.cfg.namespace(index)] = index
		}
	}
	return paths
}
