package wrenn

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// StepKind is what a step of a build does. The words are those of Dockerfiles.
type StepKind string

// The kinds, with the arguments that a step of each has.
const (
	StepCopy    StepKind = "COPY"    // source, destination, and if wanted owner and mode
	StepRun     StepKind = "RUN"     // command, and if wanted its user
	StepEnv     StepKind = "ENV"     // name, value, name, value, …
	StepArg     StepKind = "ARG"     // as ENV, but for the steps alone
	StepWorkdir StepKind = "WORKDIR" // directory
	StepUser    StepKind = "USER"    // name
)

// BuildStep is a step of a build, which changes the disk or what later steps see.
type BuildStep struct {
	Kind StepKind
	Args []string
	// Files is of StepCopy: the hash under which its archive was uploaded.
	Files string
	// Shell is of StepRun: the program and the arguments before the command. None is
	// a login shell, bash if there is one.
	Shell []string
	// Force runs this step and all later ones, even if their results are cached.
	Force bool
}

// Limits of builds with steps, which both sides enforce.
const (
	MaxBuildSteps   = 200
	MaxArchiveBytes = 1 << 30 // of the files of one step, as they are uploaded

	maxStepArgs      = 256
	maxStepsBytes    = 512 << 10 // of the arguments of all steps together
	maxStepArgBytes  = 64 << 10
	maxShellArgs     = 16
	maxAccountBytes  = 256
	maxDirectoryByte = 4 << 10
)

var (
	filesHashForm = regexp.MustCompile(`^[0-9a-f]{64}$`)
	variableForm  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	accountForm   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?$`)
)

// CheckFilesHash returns an Invalid error unless files can be uploaded under the hash.
func CheckFilesHash(hash string) error {
	if !filesHashForm.MatchString(hash) {
		return Errorf(Invalid, "%.80q is not a hash of files: that is a SHA-256 in 64 lower-case hexadecimal digits", hash)
	}
	return nil
}

// checkSteps returns an Invalid error unless a host can run the steps.
func checkSteps(steps []BuildStep) error {
	if len(steps) > MaxBuildSteps {
		return Errorf(Invalid, "a build has at most %d steps, not %d", MaxBuildSteps, len(steps))
	}
	bytes := 0
	for i, step := range steps {
		if err := step.check(); err != nil {
			return Errorf(Invalid, "step %d: %v", i+1, err)
		}
		for _, arg := range slices.Concat(step.Args, step.Shell) {
			bytes += len(arg)
		}
	}
	if bytes > maxStepsBytes {
		return Errorf(Invalid, "the steps of a build have at most %d KiB together", maxStepsBytes>>10)
	}
	return nil
}

func (s BuildStep) check() error {
	if len(s.Args) > maxStepArgs || len(s.Shell) > maxShellArgs || !isTextOf(maxStepArgBytes, s.Args...) || !isTextOf(maxStepArgBytes, s.Shell...) {
		return Errorf(Invalid, "%.20s has at most %d arguments, each text of at most %d KiB", s.Kind, maxStepArgs, maxStepArgBytes>>10)
	}
	switch {
	case s.Kind != StepCopy && s.Files != "":
		return Errorf(Invalid, "only COPY has files")
	case s.Kind != StepRun && len(s.Shell) > 0:
		return Errorf(Invalid, "only RUN has a shell")
	}
	switch s.Kind {
	case StepCopy:
		return s.checkCopy()
	case StepRun:
		if len(s.Args) < 1 || len(s.Args) > 2 || s.Args[0] == "" {
			return Errorf(Invalid, "RUN needs a command, and may have a user")
		}
		return checkAccount(s.Arg(1))
	case StepEnv, StepArg:
		return s.checkVariables()
	case StepWorkdir:
		if len(s.Args) != 1 || s.Args[0] == "" || len(s.Args[0]) > maxDirectoryByte {
			return Errorf(Invalid, "WORKDIR needs one directory")
		}
		return nil
	case StepUser:
		if len(s.Args) != 1 || s.Args[0] == "" {
			return Errorf(Invalid, "USER needs one name")
		}
		return checkAccount(s.Args[0])
	}
	return Errorf(Invalid, "%.20q is not a step: COPY, RUN, ENV, ARG, WORKDIR and USER are", s.Kind)
}

// Arg returns an argument, "" if the step does not have it.
func (s BuildStep) Arg(i int) string {
	if i >= len(s.Args) {
		return ""
	}
	return s.Args[i]
}

func (s BuildStep) checkCopy() error {
	if len(s.Args) < 2 || len(s.Args) > 4 || s.Args[0] == "" || s.Args[1] == "" {
		return Errorf(Invalid, "COPY needs a source and a destination, and may have an owner and a mode")
	}
	if len(s.Args[0]) > maxDirectoryByte || len(s.Args[1]) > maxDirectoryByte {
		return Errorf(Invalid, "a path of COPY has at most %d bytes", maxDirectoryByte)
	}
	if slices.Contains(strings.Split(s.Args[0], "/"), "..") {
		return Errorf(Invalid, "COPY cannot copy %.80q: the source must be in the context, without ..", s.Args[0])
	}
	if mode := s.Arg(3); mode != "" {
		if n, err := strconv.ParseUint(mode, 8, 32); err != nil || n > 0o7777 {
			return Errorf(Invalid, "%.20q is not a mode of files: that is an octal number like 0755", mode)
		}
	}
	if err := checkAccount(s.Arg(2)); err != nil {
		return err
	}
	return CheckFilesHash(s.Files)
}

func (s BuildStep) checkVariables() error {
	if len(s.Args) == 0 || len(s.Args)%2 != 0 {
		return Errorf(Invalid, "%s needs names and values", s.Kind)
	}
	for i := 0; i < len(s.Args); i += 2 {
		if !variableForm.MatchString(s.Args[i]) {
			return Errorf(Invalid, "%.40q is not the name of a variable", s.Args[i])
		}
	}
	return nil
}

// checkAccount checks a user, or user:group. It may have variables, which the host
// replaces before it checks again; "" is allowed.
func checkAccount(account string) error {
	if account == "" || strings.Contains(account, "$") && len(account) <= maxAccountBytes {
		return nil
	}
	return CheckAccount(account)
}

// CheckAccount returns an Invalid error unless text is a user, or user:group, by
// name or number.
func CheckAccount(account string) error {
	if len(account) > maxAccountBytes || !accountForm.MatchString(account) {
		return Errorf(Invalid, "%.80q is not a user, or user:group", account)
	}
	return nil
}
