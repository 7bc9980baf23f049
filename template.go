package wrenn

import (
	"strings"
	"time"
)

// GenerationID names a generation of a template: "t" and 20 characters of [a-z0-9].
type GenerationID string

const generationIDPrefix = "t"

// NewGenerationID returns a fresh random id (about 103 bits).
func NewGenerationID() GenerationID { return GenerationID(newID(generationIDPrefix)) }

// ParseGenerationID returns s as an id, or an Invalid error.
func ParseGenerationID(s string) (GenerationID, error) {
	if !isID(s, generationIDPrefix) {
		return "", Errorf(Invalid, "%.64q is not the id of a template's generation: that is %q and 20 characters of a-z and 0-9", s, generationIDPrefix)
	}
	return GenerationID(s), nil
}

// TemplateName names a template of a team.
type TemplateName struct{ Name, Tag string }

// BaseTemplate is the name of the built-in template of every team: the guest image
// of each host.
const BaseTemplate = "base"

// defaultTag is the tag of a name without one.
const defaultTag = "latest"

// ParseTemplateName reads name or name:tag, or returns an Invalid error.
func ParseTemplateName(s string) (TemplateName, error) {
	name, tag, tagged := strings.Cut(s, ":")
	if !tagged {
		tag = defaultTag
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
	if n.Tag == defaultTag {
		return n.Name
	}
	return n.Name + ":" + n.Tag
}

// Base reports whether n names the built-in template.
func (n TemplateName) Base() bool { return n == TemplateName{BaseTemplate, defaultTag} }

// GenerationState is where a generation is in its life.
type GenerationState string

// The states.
const (
	GenerationBuilding GenerationState = "building"
	GenerationReady    GenerationState = "ready"
	GenerationFailed   GenerationState = "failed"  // with a reason
	GenerationDeleted  GenerationState = "deleted" // its host removes it, or has removed it
)

// TemplateSource is what a template is built from: the one field that is set, or
// the base guest.
type TemplateSource struct {
	Image   string    // the name of an image of the host
	OCI     string    // a container image in a registry
	Sandbox SandboxID // a running sandbox of the team
}

// TemplateSpec is how a template is built. Size is that of its sandboxes.
type TemplateSpec struct {
	From TemplateSource
	Size
	Env          map[string]string // of every command in its sandboxes, beside their own
	StartCmd     string            // a shell command that keeps running in every sandbox
	ReadyCmd     string            // a shell command that succeeds when the sandbox is ready
	ReadyTimeout time.Duration     // for ReadyCmd; 0 is DefaultReadyTimeout
}

// Generation is one build of a template and its result. Only its state changes.
type Generation struct {
	ID       GenerationID
	Team     TeamID
	Template TemplateName
	State    GenerationState
	Reason   string // why it failed or was deleted, for the user
	Host     HostID // that builds or has it; "" before that
	Spec     TemplateSpec
	// SizeBytes and Digest are set when it is ready. Spec.Env then includes the
	// variables of the source.
	SizeBytes int64
	Digest    string // of the container image

	CreatedAt time.Time
	UpdatedAt time.Time // of the last change of state
}

// RegistryLogin is for a container image that is not public. It is used for the
// pull and never stored.
type RegistryLogin struct{ Username, Password string }

// TemplateBuild is what a host needs to know to build a template.
type TemplateBuild struct {
	ID    GenerationID // of the result
	Spec  TemplateSpec
	Login RegistryLogin // for Spec.From.OCI
}

// BuildEvent is one event of a build; exactly one field is set.
type BuildEvent struct {
	Line      string           // of its log; "" is an empty line
	Built     *BuiltGeneration // the last event
	Keepalive bool             // nothing happened for a while
}

// BuiltGeneration is the result of a build, as its host reports it.
type BuiltGeneration struct {
	Size
	SizeBytes int64 // on the host's disk, including what it shares with others
	Env       map[string]string
	Digest    string // of the container image; "" if it was built from none
}

// Template is a name and what it means.
type Template struct {
	Name    TemplateName
	Current *Generation // what sandboxes are created from; nil before the first is ready, and for the base
	Latest  *Generation // the newest build, in any state; nil for the base
}
