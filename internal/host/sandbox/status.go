package sandbox

import "slices"

// Status is where a sandbox on this host is in its life.
type Status string

// The statuses. A sandbox that ended without a Destroy is stopped or failed, and
// is listed until Destroy. While it is pausing or restoring it still runs, and
// while it is resuming it is still paused.
const (
	StatusStarting    Status = "starting"
	StatusRunning     Status = "running"
	StatusPausing     Status = "pausing"
	StatusPaused      Status = "paused"
	StatusResuming    Status = "resuming"
	StatusRestoring   Status = "restoring" // a checkpoint
	StatusStopping    Status = "stopping"
	StatusStopped     Status = "stopped"
	StatusFailed      Status = "failed"
	StatusQuarantined Status = "quarantined"

	statusPooled  Status = "pooled"  // a machine of the warm pool; in no inventory
	statusRemoved Status = "removed" // destroyed, or its launch failed; in no inventory
)

// transitions are the changes of status that are allowed. The diagram in
// docs/host-agent.md shows the same ones, which a test checks. A sandbox that an
// earlier agent left begins as starting, too.
var transitions = map[Status][]Status{
	StatusStarting:    {StatusRunning, StatusPaused, StatusStopping, StatusStopped, StatusFailed, StatusQuarantined, statusPooled, statusRemoved},
	StatusRunning:     {StatusPausing, StatusRestoring, StatusStopping},
	StatusPausing:     {StatusPaused, StatusRunning},
	StatusPaused:      {StatusResuming, StatusStopping},
	StatusResuming:    {StatusRunning, StatusPaused},
	StatusRestoring:   {StatusRunning},
	StatusStopping:    {StatusStopped, StatusFailed, statusRemoved},
	StatusStopped:     {StatusStopping},
	StatusFailed:      {StatusStopping},
	statusPooled:      {StatusStopping, statusRemoved},
	StatusQuarantined: nil,
	statusRemoved:     nil,
}

// statuses returns all statuses in the order in which a sandbox passes them.
func statuses() []Status {
	return []Status{
		StatusStarting, StatusRunning, StatusPausing, StatusPaused, StatusResuming, StatusRestoring, StatusStopping, StatusStopped, StatusFailed,
		StatusQuarantined, statusPooled, statusRemoved,
	}
}

// can reports whether a sandbox may change from s to next.
func (s Status) can(next Status) bool { return s == next || slices.Contains(transitions[s], next) }

// ended reports whether nothing of the sandbox runs any more, or no program may
// touch it.
func (s Status) ended() bool {
	switch s {
	case StatusStopped, StatusFailed, StatusQuarantined, statusRemoved:
		return true
	default:
		return false
	}
}

// resumable reports whether a Resume makes the sandbox run, perhaps after what is
// at work.
func (s Status) resumable() bool {
	switch s {
	case StatusPausing, StatusPaused, StatusResuming, StatusRestoring:
		return true
	default:
		return false
	}
}
