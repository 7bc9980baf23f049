package rootfs

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"wrenn.dev"
)

// keyring signs Debian's archives, on Ubuntu too (package debian-archive-keyring).
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// fallbackSuite is for hosts that are not a released Debian.
const fallbackSuite = "bookworm"

// Debian configures a Debian.
type Debian struct {
	Suite     string   // like bookworm
	Packages  []string // beyond the minimal base
	Customize []byte   // a script that gets the tree's path, and $WRENN_KERNEL_DIR for a kernel package
	// Lock, if any, is a file with a flock(2), which mmdebstrap gets too: it may
	// write for a while after the calling process was killed.
	Lock *os.File
}

// HostSuite returns the host's suite if it is a released Debian, else one that is
// known to work.
func HostSuite() string {
	release := osRelease("/etc/os-release")
	suite := release["VERSION_CODENAME"]
	if release["ID"] != "debian" || suite == "" || release["VERSION_ID"] == "" { // testing has no number
		return fallbackSuite
	}
	return suite
}

func osRelease(path string) map[string]string {
	values := map[string]string{}
	data, _ := os.ReadFile(path) // an unknown system is not Debian
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[key] = strings.Trim(value, `"'`)
		}
	}
	return values
}

// HostSources returns the apt sources of the host for the suite, as lines of sources.list
// for any architecture; none if it has not all of the suite. It reads them in any of the
// formats that apt does. apt reports them only after an apt-get update; without sources
// mmdebstrap uses Debian's mirrors.
func HostSources(ctx context.Context, suite string) []string {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format",
		"$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)", "Created-By: Packages", "Architecture: amd64").Output()
	if err != nil {
		return nil
	}
	return parseTargets(string(out), suite)
}

// parseTargets makes lines for sources.list from apt's answer; none if the suite
// itself is not in it.
func parseTargets(targets, suite string) []string {
	lines := map[string]bool{}
	complete := false
	for line := range strings.Lines(targets) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 5 || f[0] != "Debian" || f[4] != "main" {
			continue
		}
		switch f[1] {
		case suite:
			complete = true
		case suite + "-updates", suite + "-security":
		default:
			continue
		}
		lines[fmt.Sprintf("deb [signed-by=%s] %s %s %s", keyring, f[2], f[3], f[4])] = true
	}
	if !complete {
		return nil
	}
	return slices.Sorted(maps.Keys(lines))
}

// Bootstrap makes dir/tree, a Debian whose files have their real owners, and
// dir/kernel, where the customize script puts files as $WRENN_KERNEL_DIR. dir must
// exist and be empty; if Bootstrap fails the caller must remove it. It needs root
// and the network, and writes its progress to out.
func (d Debian) Bootstrap(ctx context.Context, out io.Writer, dir string) error {
	if os.Geteuid() != 0 {
		return wrenn.Errorf(wrenn.PermissionDenied, "making an image needs root: its files belong to many users")
	}
	if _, err := os.Stat(keyring); err != nil {
		return wrenn.Errorf(wrenn.FailedPrecondition, "Debian's archive keys are missing (apt-get install debian-archive-keyring)")
	}
	script, kernel := filepath.Join(dir, "customize"), filepath.Join(dir, "kernel")
	if err := os.WriteFile(script, d.Customize, 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(kernel, 0o755); err != nil {
		return err
	}
	cmd, err := command(ctx, dir, "mmdebstrap", d.arguments(filepath.Join(dir, "tree"), HostSources(ctx, d.Suite))...)
	if err != nil {
		return err
	}
	cmd.Env = append(cmd.Env, "WRENN_KERNEL_DIR="+kernel)
	// It mounts /proc, /sys and more in the tree. In a new mount namespace these end
	// with the process; on the host a removal of the tree would walk into them.
	cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	if d.Lock != nil {
		cmd.ExtraFiles = []*os.File{d.Lock}
	}
	return progress(ctx, cmd, out)
}

func (d Debian) arguments(tree string, sources []string) []string {
	args := []string{
		"--mode=root", "--variant=minbase", "--architectures=amd64", "--format=directory",
		"--include=" + strings.Join(d.Packages, ","),
		"--keyring=" + keyring,
		`--aptopt=Acquire::Retries "3"`,
		"--aptopt=Acquire::Languages none",
		"--customize-hook=./customize",
	}
	for _, dir := range []string{"doc", "man", "info", "locale", "lintian", "bug"} {
		args = append(args, "--dpkgopt=path-exclude=/usr/share/"+dir+"/*")
	}
	args = append(args, "--dpkgopt=path-include=/usr/share/doc/*/copyright", d.Suite, tree)
	return append(args, sources...)
}

// progress runs mmdebstrap and writes its steps to out, indented.
func progress(ctx context.Context, cmd *exec.Cmd, out io.Writer) error {
	pipe, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var output []byte
	lines := bufio.NewScanner(pipe)
	for lines.Scan() {
		output = append(append(output, lines.Bytes()...), '\n')
		if step, ok := strings.CutPrefix(lines.Text(), "I: "); ok && isStep(step) {
			fmt.Fprintln(out, "  "+step)
		}
	}
	_, _ = io.Copy(io.Discard, pipe) // a line that is too long stops the scanner, and must not stop the program
	err = cmd.Wait()
	endGroup(ctx, cmd)
	if err != nil {
		return explain(ctx, "mmdebstrap", err, output)
	}
	return nil
}

// isStep reports whether a line is worth showing.
func isStep(line string) bool {
	for _, prefix := range []string{"running apt-get update", "downloading", "extracting", "installing", "cleaning"} {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return false
}
