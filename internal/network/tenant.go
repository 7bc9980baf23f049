package network

import (
	"maps"
	"slices"

	"wrenn/internal/netns"
)

// Tenant is a slot of an earlier pool that nobody has adopted and in which
// something lives: a machine that its agent lost sight of, or a person's shell.
type Tenant struct {
	Slot string // the name of its namespace and link
	PIDs []int
}

// Tenants returns them in the order of their slots. What is outside of the
// slots does not count, whatever it calls itself.
func (p *Pool) Tenants() ([]Tenant, error) {
	lived, err := p.inhabited()
	if err != nil {
		return nil, err
	}
	var tenants []Tenant
	for _, index := range slices.Sorted(maps.Keys(lived)) {
		tenants = append(tenants, Tenant{Slot: p.cfg.name(index), PIDs: lived[index]})
	}
	return tenants, nil
}

// inhabited returns the processes in leftover slots, by index.
func (p *Pool) inhabited() (map[int][]int, error) {
	leftovers := p.leftovers()
	found, err := netns.Processes(slices.Collect(maps.Keys(leftovers)))
	if err != nil {
		return nil, err
	}
	lived := map[int][]int{}
	for path, pids := range found {
		lived[leftovers[path]] = pids
	}
	return lived, nil
}

// leftovers are the leftover slots' indexes by the paths of their namespaces.
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
