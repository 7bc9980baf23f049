package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"wrenn"
	"wrenn/internal/rollback"
	"wrenn/internal/vm"
)

// The files of a snapshot's directory. The manifest comes last.
const (
	stateFile    = "state"
	memoryFile   = "memory"
	manifestFile = "firecracker.json"
)

// While a snapshot is written, the VMM sees its files under these names; one
// that was restored still has nameState and nameMemory.
const (
	nameNewState  = "new-state"
	nameNewMemory = "new-memory"
)

// manifest says what a snapshot is, and what may load it.
type manifest struct {
	Format     int     `json:"format"` // manifestFormat
	Version    Version `json:"version"`
	CPU        string  `json:"cpu"` // of the host, see cpuModel
	Shape      shape   `json:"shape"`
	TAP        string  `json:"tap,omitempty"`
	StateSize  int64   `json:"state_size"`
	MemorySize int64   `json:"memory_size"`
}

const manifestFormat = 1

// shape is what a machine and its snapshot must have in common.
type shape struct {
	VCPUs     int         `json:"vcpus"`
	MemoryMiB int         `json:"memory_mib"`
	Disks     []diskShape `json:"disks"`
	MAC       string      `json:"mac,omitempty"`
	Network   bool        `json:"network"`
	TAP       string      `json:"tap,omitempty"`
}

type diskShape struct {
	ReadOnly bool `json:"read_only"`
}
