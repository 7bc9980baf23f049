package wrenn

import "time"

// Defaults that both sides apply, as the API documents them.
const (
	DefaultVCPUs        = 1
	DefaultMemoryMiB    = 512
	DefaultExecTimeout  = 30 * time.Second // of a command that is run to its end
	DefaultReadyTimeout = 2 * time.Minute  // of a template's ready command
)

// Limits that both sides enforce. A host checks what it is sent again: the
// control plane may be another version.
const (
	MaxForks               = 100 // copies in one call
	MaxCheckpointNameBytes = 200
)
