package wrenn

import (
	"strings"
	"time"
	"unicode/utf8"
)

// Defaults that both sides apply, as the API documents them.
const (
	DefaultVCPUs        = 1
	DefaultMemoryMiB    = 512
	DefaultDiskMiB      = 10 << 10         // of the base guest and of container images
	DefaultExecTimeout  = 30 * time.Second // of a command that is run to its end
	DefaultReadyTimeout = 2 * time.Minute  // of a template's ready command
)

// Limits that both sides enforce. A host checks what it is sent again: the
// control plane may be another version.
const (
	MaxForks               = 100 // copies in one call
	MaxCheckpointNameBytes = 200
	MaxVolumes             = 8        // in one sandbox
	MaxEnvBytes            = 64 << 10 // of all variables of a sandbox, or of a command, together
)

const (
	maxVariables      = 256
	maxMountPathBytes = 1 << 10
	maxVariableBytes  = 32 << 10  // of one name and value; Linux takes 128 KiB, see execve(2)
	maxShellBytes     = 16 << 10  // of a start or ready command
	maxReferenceBytes = 512       // of the name of an image
	maxLoginBytes     = 8 << 10   // of a password, which may be a token
	maxReadyTimeout   = time.Hour // of a ready command
)

// IsText reports whether a database and the arguments of a program can hold s.
func IsText(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

// CheckEnv returns an Invalid error unless a sandbox or a command can have the
// variables.
func CheckEnv(env map[string]string) error {
	if len(env) > maxVariables {
		return Errorf(Invalid, "there can be at most %d variables, not %d", maxVariables, len(env))
	}
	if n := EnvBytes(env); n > MaxEnvBytes {
		return Errorf(Invalid, "the variables, with those of the template, have %d bytes together, of at most %d: write large values to a file", n, MaxEnvBytes)
	}
	for k, v := range env {
		if k == "" || strings.Contains(k, "=") || len(k)+len(v) > maxVariableBytes || !IsText(k) || !IsText(v) {
			return Errorf(Invalid, "variable %.40q: a name is text without = in it, and with its value it has at most %d bytes", k, maxVariableBytes)
		}
	}
	return nil
}

// Check returns an Invalid error unless a template can be built by the spec.
// Whether a host has the source and allows the size is not checked.
func (s TemplateSpec) Check() error {
	switch from := s.From; {
	case from.count() > 1:
		return Errorf(Invalid, "a template is made from an image, a container image, a template or a sandbox: give one of them")
	case from.Sandbox != "" && !s.nothingBut():
		return Errorf(Invalid, "a template made from a sandbox is that sandbox as it is: run commands in it before, and leave out size, variables, commands and steps")
	case !isTextOf(maxReferenceBytes, from.Image, from.OCI):
		return Errorf(Invalid, "an image's name has at most %d bytes", maxReferenceBytes)
	case !isTextOf(maxShellBytes, s.StartCmd, s.ReadyCmd):
		return Errorf(Invalid, "a command has at most %d bytes", maxShellBytes)
	case s.ReadyTimeout < 0 || s.ReadyTimeout > maxReadyTimeout:
		return Errorf(Invalid, "a template has up to %v to become ready", maxReadyTimeout)
	}
	if !isTextOf(maxDirectoryByte, s.Workdir) {
		return Errorf(Invalid, "a directory has at most %d bytes", maxDirectoryByte)
	}
	if err := checkAccount(s.User); err != nil {
		return err
	}
	if err := checkSteps(s.Steps); err != nil {
		return err
	}
	return CheckEnv(s.Env)
}

// nothingBut reports whether the spec has nothing but a source.
func (s TemplateSpec) nothingBut() bool {
	return s.Size == Size{} && len(s.Env) == 0 && s.StartCmd == "" && s.ReadyCmd == "" && s.ReadyTimeout == 0 &&
		len(s.Steps) == 0 && !s.NoCache && s.User == "" && s.Workdir == ""
}

// Check is TemplateSpec.Check, and checks the login.
func (b BuildRequest) Check() error {
	switch {
	case b.Spec.From.OCI == "" && b.Login != RegistryLogin{}:
		return Errorf(Invalid, "a login is for a container image in a registry")
	case !isTextOf(maxLoginBytes, b.Login.Username, b.Login.Password):
		return Errorf(Invalid, "a registry's user name and password have at most %d bytes", maxLoginBytes)
	}
	if b.Spec.From.DiskOnly && b.Spec.From.Sandbox == "" {
		return Errorf(Invalid, "only of a sandbox the memory can be left out")
	}
	return b.Spec.Check()
}

// count returns how many sources are given.
func (f TemplateSource) count() int {
	n := 0
	for _, source := range []string{f.Image, f.OCI, string(f.Sandbox), string(f.Template)} {
		if source != "" {
			n++
		}
	}
	return n
}

// EnvBytes returns the size of all names and values together.
func EnvBytes(env map[string]string) int {
	n := 0
	for name, value := range env {
		n += len(name) + len(value)
	}
	return n
}

// isTextOf reports whether each of the texts has at most that many bytes.
func isTextOf(most int, texts ...string) bool {
	for _, s := range texts {
		if len(s) > most || !IsText(s) {
			return false
		}
	}
	return true
}
