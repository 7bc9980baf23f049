package wrenn

import (
	"strings"
	"time"
)

// BuildID names a build of a template: "t" and 20 characters of [a-z0-9].
type BuildID string

const buildIDPrefix = "t"

// NewBuildID returns a fresh random id (about 103 bits).
func NewBuildID() BuildID { return BuildID(newID(buildIDPrefix)) }

// ParseBuildID returns s as an id, or an Invalid error.
func ParseBuildID(s string) (BuildID, error) {
	if !isID(s, buildIDPrefix) {
		return "", Errorf(Invalid, "%.64q is not the id of a template's build: that is %q and 20 characters of a-z and 0-9", s, buildIDPrefix)
	}
	return BuildID(s), nil
}

// TemplateName names a template of a team.
type TemplateName struct{ Name, Tag string }

// BaseTemplate is the name of the built-in template of every team: the guest image
// of each host.
const BaseTemplate = "base"

// DefaultTag is the tag of a name without one.
const DefaultTag = "latest"

// ParseTemplateName reads name or name:tag, or returns an Invalid error.
func ParseTemplateName(s string) (TemplateName, error) {
	name, tag, tagged := strings.Cut(s, ":")
	if !tagged {
		tag = DefaultTag
	}
	if !isTemplateWord(name) || !isTemplateWord(tag) {
		return TemplateName{}, Errorf(Invalid, "%.80q is not a template's name: up to 63 letters, digits, dots, dashes and underscores, and a :tag of these if wanted", s)
	}
	return TemplateName{Name: name, Tag: tag}, nil
}

func isTemplateWord(s string) bool {
	const most = 63
	for i, c := range []byte(s) {
		plain := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !plain && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return s != "" && len(s) <= most
}

// String returns the name, without the default tag.
func (n TemplateName) String() string {
	if n.Tag == DefaultTag {
		return n.Name
	}
	return n.Name + ":" + n.Tag
}

// Base reports whether n names the built-in template.
func (n TemplateName) Base() bool { return n == TemplateName{BaseTemplate, DefaultTag} }

// BuildState is where a build is in its life.
type BuildState string

// The states.
const (
	BuildRequested BuildState = "requested" // its client has not started it; such a build is in no list
	BuildBuilding  BuildState = "building"
	BuildReady     BuildState = "ready"
	BuildFailed    BuildState = "failed"  // with a reason
	BuildDeleted   BuildState = "deleted" // its host removes it, or has removed it
)

// TemplateSource is what a template is built from: the one field that is set, or
// the base guest.
type TemplateSource struct {
	Image   string    // the name of an image of the host
	OCI     string    // a container image in a registry
	Sandbox SandboxID // a running sandbox of the team
	// DiskOnly leaves out the memory of Sandbox: sandboxes boot.
	DiskOnly bool
	// Template is a template of the team, as it was built. Of the machine only the
	// disk is used.
	Template BuildID
}

// TemplateSpec is how a template is built. Size is that of its sandboxes.
type TemplateSpec struct {
	From TemplateSource
	Size
	// DiskMiB is the size of the disk; 0 is that of the source, which it is at least.
	DiskMiB int
	// MinFreeDiskMiB is how much of the disk is free for the sandboxes at least: the
	// disk grows for it, to MaxDiskMiB at most, where 0 is no limit.
	MinFreeDiskMiB, MaxDiskMiB int
	Env                        map[string]string // of every command in its sandboxes, beside their own
	StartCmd                   string            // a shell command that keeps running in every sandbox
	ReadyCmd                   string            // a shell command that succeeds when the sandbox is ready
	ReadyTimeout               time.Duration     // for ReadyCmd; 0 is DefaultReadyTimeout
	// Steps change the source's disk before the commands above run. Each one's result
	// is cached, unless NoCache is set.
	Steps   []BuildStep
	NoCache bool
	// User and Workdir are of the steps and the commands until a step changes them,
	// and at the end of the sandboxes' commands. "" is that of the source.
	User, Workdir string
}

// Build is one build of a template and its result. Only its state changes.
type Build struct {
	ID       BuildID
	Team     TeamID
	Template TemplateName
	// MoreTags also refer to it when it is ready.
	MoreTags []string
	State    BuildState
	Reason   string // why it failed or was deleted, for the user
	// FailedStep is the step at which it failed: its number from 1, StepBase or
	// StepFinalize; "" before the first.
	FailedStep string
	Host       HostID // that builds or has it; "" before that
	Spec       TemplateSpec
	// SizeBytes and Digest are set when it is ready. Spec.Env then includes the
	// variables of the source.
	SizeBytes int64
	Digest    string // of the container image
	// Stored is where it is in the snapshot store; zero while it is on Host alone.
	Stored Stored
	// Platform is that of the host that built it.
	Platform Platform

	CreatedAt time.Time
	UpdatedAt time.Time // of the last change of state
}

// RegistryLogin is for a container image that is not public. It is used for the
// pull and never stored.
type RegistryLogin struct{ Username, Password string }

// BuildRequest is what a host needs to know to build a template.
type BuildRequest struct {
	ID    BuildID // of the result
	Spec  TemplateSpec
	Login RegistryLogin // for Spec.From.OCI
	Team  TeamID        // whose files and cached layers the steps use, and who owns what is stored of the result; needed with steps
	// BaseKey is where Spec.From.Template is stored, for a host that does not have it;
	// "" is nowhere.
	BaseKey string
	// Network is what the steps and commands may reach. Images come from registries
	// whatever it says.
	Network NetworkPolicy
}

// HostBuilds are the builds that a host has.
type HostBuilds struct {
	IDs    []BuildID
	Stored map[BuildID]Stored // those that are in the snapshot store
}

// What a build does besides its numbered steps.
const (
	StepBase     = "base"     // it prepares the source
	StepFinalize = "finalize" // it runs the commands and makes the snapshot
)

// BuildEvent is one event of a build; exactly one field is set.
type BuildEvent struct {
	Line      string       // of its log; "" is an empty line
	Step      string       // it begins with a step: its number from 1, StepBase or StepFinalize
	Built     *BuildResult // the last event
	Keepalive bool         // nothing happened for a while
}

// BuildResult is the result of a build, as its host reports it.
type BuildResult struct {
	Size
	DiskMiB   int   // the size of its disk; 0 of an agent that does not report it
	SizeBytes int64 // on the host's disk, including what it shares with others
	Env       map[string]string
	Digest    string // of the container image; "" if it was built from none
	DiskOnly  bool   // there is no memory: sandboxes boot
	// PolicyFollowed reports that the Network of the request held; older agents do not know it.
	PolicyFollowed bool
}

// Template is a name and what it means.
type Template struct {
	Name    TemplateName
	Current *Build // what sandboxes are created from; nil before the first is ready, and for the base
	Latest  *Build // the newest build, in any state; nil for the base
}
