package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/pgserver"
	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/vm/firecracker/release"
	"wrenn.dev/internal/vm/probe"
)

const (
	minMemory   = 2 << 30 // the processes of Wrenn and one sandbox
	minDisk     = 5 << 30 // an image, and what sandboxes write
	ampleDisk   = 20 << 30
	portTimeout = 2 * time.Second
)

// The verdicts of findings.
const (
	fine    = "ok"
	advice  = "note"
	problem = "PROBLEM"
)

// finding is the result of one check.
type finding struct {
	Subject string `json:"subject"`
	Verdict string `json:"verdict"` // ok, note or PROBLEM
	Found   string `json:"found"`
	Do      string `json:"do,omitempty"`
}

type doctorCommand struct {
	State  string `default:"/var/lib/wrenn" type:"path" help:"The --state of wrenn up."`
	Listen string `default:"127.0.0.1:8080" help:"The --listen of wrenn up."`
	// Production adds checks.
	Production bool `help:"Check also what a host of tenants that are hostile to each other needs."`
}

// machineCheck is one check of a machine.
type machineCheck struct {
	subject string
	look    func(context.Context) finding
}

// look makes all checks.
func (c *doctorCommand) look(ctx context.Context) (found []finding) {
	checks := []machineCheck{
		{"system", c.system}, {"root", c.root}, {"kvm", c.kvm}, {"firecracker", c.firecracker}, {"qemu kvm", c.qemuKVM}, {"emulation", c.emulation},
		{"network", c.network}, {"postgresql", c.postgresql}, {"image tools", c.imageTools},
		{"disk", c.disk}, {"reflink", c.reflink}, {"memory", c.memory}, {"port", c.port},
	}
	if c.Production {
		p := &production{root: "/", state: c.State, kvm: c.kvm(ctx), synchronized: clockSynchronized}
		checks = append(checks, machineCheck{"jailer", c.jailer})
		checks = append(checks, p.checks()...)
	}
	for _, check := range checks {
		f := check.look(ctx)
		f.Subject = check.subject
		found = append(found, f)
	}
	return found
}

// Run fails when a finding prevents up from working.
func (c *doctorCommand) Run(ctx context.Context, s *session) error {
	found := c.look(ctx)
	err := s.print(found, func(w io.Writer) {
		for _, f := range found {
			color := map[string]string{fine: green, advice: yellow, problem: red}[f.Verdict]
			fmt.Fprintf(w, "%s  %-11s  %s\n", s.paint(w, color, fmt.Sprintf("%-7s", f.Verdict)), f.Subject, plain.Line(f.Found))
			if f.Do != "" {
				fmt.Fprintf(w, "%22s  -> %s\n", "", f.Do)
			}
		}
	})
	if slices.ContainsFunc(found, func(f finding) bool { return f.Verdict == problem }) {
		return errors.Join(err, exitCode(1))
	}
	return err
}

func (*doctorCommand) system(context.Context) finding {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return finding{Verdict: problem, Found: err.Error()}
	}
	found := "Linux " + unix.ByteSliceToString(name.Release[:]) + " on " + runtime.GOARCH
	if runtime.GOARCH != "amd64" {
		return finding{Verdict: problem, Found: found, Do: "use a machine with an x86-64 processor: guests are made for no other yet"}
	}
	return finding{Verdict: fine, Found: found}
}

func (*doctorCommand) root(context.Context) finding {
	if os.Geteuid() != 0 {
		return finding{Verdict: advice, Found: "this is not root", Do: "start up with sudo: it makes network namespaces and mounts"}
	}
	return finding{Verdict: fine, Found: "this is root"}
}

// kvm reports what the host agent found when it last booted a guest on KVM. That
// the device can be opened does not mean that guests boot on it.
func (c *doctorCommand) kvm(context.Context) finding {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return finding{
			Verdict: advice, Found: "/dev/kvm cannot be used: " + errors.Unwrap(err).Error(),
			Do: "sandboxes run without it, slower: enable virtualization in the firmware, or nested virtualization of this machine's own host",
		}
	}
	f.Close()
	stored := probe.Stored(filepath.Join(c.State, "probe.json"))
	for _, key := range slices.Sorted(maps.Keys(stored)) {
		if v := stored[key]; v.Works {
			return finding{Verdict: fine, Found: "a guest booted on it with " + probe.DriverOf(key)}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(stored)) {
		return finding{Verdict: advice, Found: "/dev/kvm exists, but no guest booted on it: " + stored[key].Reason, Do: "nothing: QEMU's emulation is used, which is slower"}
	}
	if _, err := os.Stat("/sys/module/kvm_pvm"); err == nil {
		return finding{Verdict: advice, Found: "/dev/kvm is PVM, which boots only kernels that were built for it", Do: "nothing: up tries, and uses QEMU's emulation when it fails"}
	}
	return finding{Verdict: fine, Found: "/dev/kvm opens; the first start finds out whether guests boot on it"}
}

// probed returns what the host agent found when it last booted a guest with the driver;
// ok is false if it has not.
func (c *doctorCommand) probed(driver string) (v probe.Verdict, ok bool) {
	for key, v := range probe.Stored(filepath.Join(c.State, "probe.json")) {
		if probe.DriverOf(key) == driver {
			return v, true
		}
	}
	return v, false
}

// firecracker is the verdict on the first choice.
func (c *doctorCommand) firecracker(ctx context.Context) finding { return c.firstChoice(c.kvm(ctx)) }

func (c *doctorCommand) firstChoice(kvm finding) finding {
	found, installed := firecrackerIn(c.State)
	if kvm.Verdict != fine {
		return finding{Verdict: advice, Found: "not used, because " + kvm.Found + "; " + found, Do: kvm.Do}
	}
	if v, probed := c.probed("firecracker"); probed && !v.Works {
		return finding{Verdict: advice, Found: "not used, because no guest booted with it: " + v.Reason + "; " + found}
	}
	if !installed {
		return finding{Verdict: fine, Found: found, Do: "nothing: up downloads " + release.Version + " into " + release.Dir(c.State) + "; without a network put firecracker and jailer of that release there"}
	}
	path, jailer := release.Dir(c.State), true
	if installed, err := exec.LookPath("firecracker"); err == nil {
		_, err := exec.LookPath("jailer")
		path, jailer = installed, err == nil
	}
	if !jailer {
		return finding{Verdict: advice, Found: path + ", without jailer", Do: "put jailer into PATH, too: without it Firecracker is refused, unless wrenn up has --unjailed, which runs machines as root"}
	}
	return finding{Verdict: fine, Found: "the choice here: " + path + ", with jailer"}
}

// firecrackerIn reports whether Firecracker is installed, or in the state directory.
func firecrackerIn(state string) (found string, installed bool) {
	if path, err := exec.LookPath("firecracker"); err == nil {
		return path + " is installed", true
	}
	if _, _, err := release.Find(release.Dir(state)); err != nil {
		return "it is not installed", false
	}
	return release.Version + " is in " + release.Dir(state), true
}

// qemuKVM is the verdict on the second choice.
func (c *doctorCommand) qemuKVM(ctx context.Context) finding {
	return c.secondChoice(ctx, c.kvm(ctx))
}

func (c *doctorCommand) secondChoice(ctx context.Context, kvm finding) finding {
	if kvm.Verdict != fine {
		return finding{Verdict: advice, Found: "not used, because " + kvm.Found}
	}
	line, err := qemuVersion(ctx)
	if err != nil {
		return finding{Verdict: advice, Found: "not used, because " + err.Error(), Do: "nothing where Firecracker works; else " + installQEMU}
	}
	switch v, probed := c.probed("qemu-kvm"); {
	case probed && !v.Works:
		return finding{Verdict: advice, Found: "not used, because no guest booted with it: " + v.Reason}
	case probed:
		return finding{Verdict: fine, Found: "used if Firecracker is not, and a guest booted with it: " + line}
	}
	return finding{Verdict: fine, Found: "tried if Firecracker cannot be used: " + line}
}

// jailer is firecracker for a host of hostile tenants: without the jailer is a problem.
// Where a guest booted by QEMU with KVM, and Firecracker is not installed or does not
// work, it is advice.
func (c *doctorCommand) jailer(ctx context.Context) finding { return c.confined(c.kvm(ctx)) }

func (c *doctorCommand) confined(kvm finding) finding {
	f := c.firstChoice(kvm)
	_, installed := firecrackerIn(c.State)
	if f.Verdict == fine && installed {
		return f
	}
	f.Verdict, f.Do = problem, "install firecracker and jailer"
	firecracker, tried := c.probed("firecracker")
	if second, _ := c.probed("qemu-kvm"); second.Works && kvm.Verdict == fine && (!installed || tried && !firecracker.Works) {
		f.Verdict = advice
		f.Do = "machines run by QEMU with KVM, which is a boundary, and confined, but a larger program with more devices: install firecracker and jailer if they can work here"
	}
	return f
}

const installQEMU = "apt-get install qemu-system-x86"

// qemuVersion returns the first line that QEMU prints about itself.
func qemuVersion(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "--version").Output()
	if err != nil {
		return "", errors.New("qemu-system-x86_64 does not run")
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line, nil
}

// emulation is the verdict on the last choice, which works on every machine.
func (*doctorCommand) emulation(ctx context.Context) finding {
	line, err := qemuVersion(ctx)
	if err != nil {
		return finding{Verdict: problem, Found: err.Error(), Do: installQEMU + "; needed wherever Firecracker does not work"}
	}
	return finding{Verdict: fine, Found: "used where KVM does not work: " + line}
}

func (*doctorCommand) network(context.Context) finding {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return finding{Verdict: problem, Found: "/dev/net/tun is missing", Do: "modprobe tun; in a container, hand the device in"}
	}
	return finding{Verdict: fine, Found: "/dev/net/tun exists"}
}

func (*doctorCommand) postgresql(ctx context.Context) finding {
	all, err := pgserver.Find(ctx)
	if err != nil {
		return finding{Verdict: problem, Found: err.Error(), Do: "or give wrenn up a server of yours by --database-url"}
	}
	return finding{Verdict: fine, Found: fmt.Sprintf("PostgreSQL %d in %s", all[0].Major, all[0].Bin)}
}

func (*doctorCommand) imageTools(context.Context) finding {
	packages := map[string]string{"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs"}
	var missing []string
	for program, pkg := range packages {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		list := strings.Join(missing, " ")
		return finding{Verdict: problem, Found: list + " missing", Do: "apt-get install " + list + "; needed to make the guest image"}
	}
	return finding{Verdict: fine, Found: "mmdebstrap and mke2fs are installed"}
}

// existing returns path, or the nearest directory above it that exists.
func existing(path string) string {
	for {
		if _, err := os.Stat(path); err == nil || path == filepath.Dir(path) {
			return path
		}
		path = filepath.Dir(path)
	}
}

func gib(n uint64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }

func (c *doctorCommand) disk(context.Context) finding {
	dir := existing(c.State)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return finding{Verdict: problem, Found: dir + ": " + err.Error()}
	}
	free := fs.Bavail * uint64(fs.Bsize)
	found := gib(free) + " free in " + dir
	switch {
	case free < minDisk:
		return finding{Verdict: problem, Found: found, Do: "make room, or put --state on a larger disk: " + gib(minDisk) + " is the least"}
	case free < ampleDisk:
		return finding{Verdict: advice, Found: found, Do: "enough for some sandboxes; " + gib(ampleDisk) + " is comfortable"}
	}
	return finding{Verdict: fine, Found: found}
}

// reflink tries a reflink in the directory where disks will be.
func (c *doctorCommand) reflink(ctx context.Context) finding {
	dir, err := os.MkdirTemp(existing(c.State), ".wrenn-doctor-")
	if err != nil {
		return finding{Verdict: advice, Found: "not tried: " + err.Error(), Do: "run doctor as root"}
	}
	defer func() { _ = os.RemoveAll(dir) }() // a few bytes
	source := filepath.Join(dir, "a")
	err = os.WriteFile(source, make([]byte, os.Getpagesize()), 0o600)
	var method storage.Method
	if err == nil {
		method, err = storage.Clone(ctx, filepath.Join(dir, "b"), source, 0o600)
	}
	if err != nil {
		return finding{Verdict: problem, Found: err.Error()}
	}
	if method == storage.Reflink {
		return finding{Verdict: fine, Found: "disks share blocks until they differ"}
	}
	if _, err := exec.LookPath("mkfs.xfs"); err != nil {
		return finding{Verdict: advice, Found: "this file system has none", Do: "apt-get install xfsprogs: disks go to an XFS image then, else each is a full copy"}
	}
	return finding{Verdict: fine, Found: "this file system has none; disks go to an XFS image in " + c.State}
}

func (*doctorCommand) memory(context.Context) finding {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return finding{Verdict: problem, Found: err.Error()}
	}
	total := info.Totalram * uint64(info.Unit)
	if total < minMemory {
		return finding{Verdict: advice, Found: gib(total), Do: "little: create sandboxes with --memory 256"}
	}
	return finding{Verdict: fine, Found: gib(total)}
}

// port reports whether up could serve on the address, or does so already.
func (c *doctorCommand) port(ctx context.Context) finding {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", c.Listen)
	if err == nil {
		_ = l.Close() // it was only tried
		return finding{Verdict: fine, Found: c.Listen + " is free"}
	}
	ctx, cancel := context.WithTimeout(ctx, portTimeout)
	defer cancel()
	req, reqErr := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.Listen+"/health", nil)
	if reqErr == nil {
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK && resp.Header.Get("X-Request-Id") != "" {
				return finding{Verdict: fine, Found: "a Wrenn serves on " + c.Listen + " already"}
			}
		}
	}
	return finding{Verdict: problem, Found: cmp.Or(err.Error(), c.Listen), Do: "another program uses it: give wrenn up another address by --listen"}
}
