package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"wrenn.dev"
	configfile "wrenn.dev/internal/config"
	"wrenn.dev/internal/host"
	"wrenn.dev/internal/host/member"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/host/server"
	"wrenn.dev/internal/host/template"
	"wrenn.dev/internal/image"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/telemetry"
	"wrenn.dev/internal/tracing"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/qemu"
)

// config is the file of --config. Every key may be left out.
type config struct {
	State   string `toml:"state"`          // images, disks, snapshots, journals; default: --state
	Run     string `toml:"run"`            // sockets and consoles; short; default /run/wrenn
	Images  string `toml:"images"`         // guest images; default: below state
	Listen  string `toml:"listen"`         // default unix:<run>/agent.sock
	Group   string `toml:"socket_group"`   // may use that socket besides root; default none
	AnyUser bool   `toml:"any_local_user"` // allows a listen of 127.0.0.1:PORT without TLS, where every user and program of this machine controls all sandboxes
	Metrics string `toml:"metrics"`        // GET /metrics, without TLS; default 127.0.0.1:49981; "off" for none

	// MemoryLimitMB is what the agent itself should use at most, see budget.SetLimit; default a 32nd of the machine's memory, at least 512.
	MemoryLimitMB int `toml:"memory_limit_mb"`

	// Zone and Labels are for placement, besides those with which the host joined: a label of the token wins.
	Zone   string            `toml:"zone"`   // hosts of one zone may fail together
	Labels map[string]string `toml:"labels"` // what sandboxes may require: [labels] gpu = "a10"

	TLS     server.TLS     `toml:"tls"` // needed when listen is not a socket or loopback
	Log     logConfig      `toml:"log"`
	Traces  tracing.Export `toml:"traces"` // where spans of traced requests are sent to; default none
	Driver  driverConfig   `toml:"driver"`
	Network networkConfig  `toml:"network"`
	Limits  limitsConfig   `toml:"limits"`
	Warm    warmConfig     `toml:"warm"`
	Ready   readyConfig    `toml:"ready"`

	Templates templatesConfig `toml:"templates"`
	Store     storeConfig     `toml:"store"`
}

// storeConfig is where paused sandboxes are stored for other hosts.
type storeConfig struct {
	URL         string `toml:"url"`             // file:///DIRECTORY or s3://BUCKET/PREFIX?endpoint=HOST&region=REGION; default none
	Credentials string `toml:"credentials"`     // file like ~/.aws/credentials for s3; default: the environment (AWS_ACCESS_KEY_ID, …), then the machine's role
	Mbit        int    `toml:"mbit_per_second"` // that uploads and downloads take, each; default 0, no bound
}

// open returns nil without a URL.
func (c storeConfig) open() (objects.Store, error) {
	if c.URL == "" {
		return nil, nil //nolint:nilnil // none is no error
	}
	return objects.Open(c.URL, c.Credentials, objects.Policy{BytesPerSecond: c.Mbit * 1_000_000 / 8})
}

type templatesConfig struct {
	// Registries that container images may come from, as docker.io or registry.example:5000. "*" is every
	// one at a public address; one at another address, such as 10.0.0.5:5000, must be named. Default ["*"]; [] is none.
	Registries []string `toml:"registries"`
	// Images of this host from which teams may build: NAME for all teams, NAME=TEAM for the team with that id. Default ["*"], all; [] is none.
	Images template.Images `toml:"images"`
}

type logConfig struct {
	Level  slog.Level `toml:"level"`  // DEBUG, INFO, WARN, ERROR; default INFO
	Format string     `toml:"format"` // text or json; default text
}

type driverConfig struct {
	Name        string `toml:"name"`         // auto, firecracker, qemu-kvm or qemu; default auto
	QEMU        string `toml:"qemu"`         // path or name; default qemu-system-x86_64
	QEMUCodeMB  int    `toml:"qemu_code_mb"` // of translated code that an emulated machine keeps; default 96
	Firecracker string `toml:"firecracker"`  // path or name; default firecracker
	Jailer      string `toml:"jailer"`       // path or name; default jailer
	NoDownload  bool   `toml:"no_download"`  // of Firecracker, when it is not installed and this machine has KVM
	Unjailed    bool   `toml:"unjailed"`     // allows Firecracker without its jailer, as root
	Kernel      string `toml:"kernel"`       // of the guest, an uncompressed ELF; default: the distribution's
	Initrd      string `toml:"initrd"`       // of that kernel
}

type networkConfig struct {
	Range  netip.Prefix `toml:"range"`  // private addresses for the slots; default 10.191.0.0/16
	Prefix string       `toml:"prefix"` // of the names of namespaces and links; default wrenn
	Ready  int          `toml:"ready"`  // slots made ahead; default 4
	Max    int          `toml:"max"`    // slots at a time; default: 64, and one for each 64 MB of limits.memory_mb

	// Closed are networks that no sandbox may reach, besides those that never are; no registry leads there either.
	Closed []netip.Prefix `toml:"closed"`
	// Resolvers are DNS servers, at port 53, that answer for sandboxes whose policy has names; default: those of /etc/resolv.conf.
	Resolvers []netip.Addr `toml:"resolvers"`
	// Connections that one sandbox may have open. Default: an equal share of the host's connection table for each of max, 682 to 4096.
	Connections int `toml:"connections"`
	// MbitPerSecond that one sandbox may send and receive, each. Default 0, no bound.
	MbitPerSecond int `toml:"mbit_per_second"`
	// PacketsPerSecond that one sandbox may send and receive, each. Default 0, no bound.
	PacketsPerSecond int `toml:"packets_per_second"`
}

// defaultSlots returns how many network slots a host with that limit of memory can
// need. The fewer there are, the larger is the share of each in the host's connection table.
func (n networkConfig) defaultSlots(memoryMB int) int {
	if memoryMB <= 0 {
		return 0 // what range holds
	}
	const least, memoryMBPerSlot = 64, 64
	return min(least+memoryMB/memoryMBPerSlot, 1<<max(0, 31-n.Range.Bits()))
}

type limitsConfig struct {
	Sandboxes  int `toml:"sandboxes"`    // at a time; default 0, no limit
	MemoryMB   int `toml:"memory_mb"`    // of all machines and their VMMs; default what this machine has, less its own part; -1 is no limit
	DiskFreeMB int `toml:"disk_free_mb"` // must be free for a new sandbox; default 1024; -1 is no limit
	DisksMB    int `toml:"disks_mb"`     // of the disks of all sandboxes, full or not; default 0, no limit: disks take what is written on them

	DiskMBPerSecond         int `toml:"disk_mb_per_second"`         // that one sandbox may read and write of its disk, together; default 0, no bound
	DiskOperationsPerSecond int `toml:"disk_operations_per_second"` // the same of reads and writes; default 0, no bound
}

// warmConfig is the size of sandboxes that are restored instead of booted.
type warmConfig struct {
	Off      bool `toml:"off"`
	VCPUs    int  `toml:"vcpus"`     // default 1
	MemoryMB int  `toml:"memory_mb"` // default 512
}

// maxReadyMachines bounds the cost of a typing error.
const maxReadyMachines = 100

// readyConfig is what is made ahead of demand, besides network.ready.
type readyConfig struct {
	// Machines restored from the base snapshot and paused; 0 is none. Default: the driver's, see host.Config.Pool.
	Machines *int `toml:"machines"`
}

// readConfig reads the file at path, or returns the defaults when that is "".
func readConfig(path, state string) (config, error) {
	return configfile.Load[config](path, config{State: state}, os.Getenv)
}

// Complete implements configfile.Configuration.
func (c *config) Complete(func(string) string) error {
	c.Run = cmp.Or(c.Run, "/run/wrenn")
	if err := c.completeByMembership(); err != nil {
		return err
	}
	c.Listen = cmp.Or(c.Listen, "unix:"+filepath.Join(c.Run, "agent.sock"))
	c.Metrics = cmp.Or(c.Metrics, "127.0.0.1:49981")
	c.TLS.ClientName = cmp.Or(c.TLS.ClientName, "control-plane")
	c.Log.Format = cmp.Or(c.Log.Format, "text")
	d := &c.Driver
	d.Name, d.QEMU = cmp.Or(d.Name, host.Auto), cmp.Or(d.QEMU, "qemu-system-x86_64")
	d.QEMUCodeMB = cmp.Or(d.QEMUCodeMB, qemu.DefaultCodeMiB)
	d.Firecracker, d.Jailer = cmp.Or(d.Firecracker, "firecracker"), cmp.Or(d.Jailer, "jailer")
	c.Network.Range = cmp.Or(c.Network.Range, netip.MustParsePrefix("10.191.0.0/16"))
	c.Network.Prefix, c.Network.Ready = cmp.Or(c.Network.Prefix, "wrenn"), cmp.Or(c.Network.Ready, 4)
	c.Warm.VCPUs, c.Warm.MemoryMB = cmp.Or(c.Warm.VCPUs, 1), cmp.Or(c.Warm.MemoryMB, 512)
	if c.Network.Closed == nil {
		c.Network.Closed = []netip.Prefix{}
	}
	if c.Network.Resolvers == nil {
		c.Network.Resolvers = []netip.Addr{}
	}
	if c.Templates.Images == nil {
		c.Templates.Images = template.Images{template.AnyImage}
	}
	if c.Templates.Registries == nil {
		c.Templates.Registries = []string{template.AnyRegistry}
	}
	c.Limits.DiskFreeMB = cmp.Or(c.Limits.DiskFreeMB, 1024)
	if c.Limits.MemoryMB == 0 {
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return fmt.Errorf("memory of this machine: %w", err)
		}
		c.Limits.MemoryMB = memoryForMachines(int(info.Totalram * uint64(info.Unit) >> 20))
	}
	c.Network.Max = cmp.Or(c.Network.Max, c.Network.defaultSlots(c.Limits.MemoryMB))
	return nil
}

// completeByMembership has an agent whose host joined a fleet listen as that needs,
// unless the file says otherwise.
func (c *config) completeByMembership() error {
	m, err := member.Open(c.State)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("membership of a fleet: %w", err)
	}
	c.Listen = cmp.Or(c.Listen, m.Listen())
	if c.TLS.Certificate == "" && c.TLS.Key == "" && c.TLS.ClientCA == "" && !strings.HasPrefix(c.Listen, "unix:") {
		files := m.Files()
		c.TLS.Certificate, c.TLS.Key, c.TLS.ClientCA = files.Certificate, files.Key, files.CA
	}
	return nil
}

// member returns the membership of a fleet whose certificate the agent uses; nil if it
// uses other files, or none.
func (c *config) member() (*member.Member, error) {
	m, err := member.Open(c.State)
	if errors.Is(err, fs.ErrNotExist) || err == nil && c.TLS.Certificate != m.Files().Certificate {
		return nil, nil //nolint:nilnil // none is no error
	}
	return m, err
}

// memoryForMachines returns the default of limits.memory_mb on a machine that has total:
// what a 16th and 512 leave to the kernel, the agent and what else runs there, and at
// least half.
func memoryForMachines(total int) int { return max(total-total/16-512, total/2) }

// Check implements configfile.Configuration.
func (c *config) Check(problems *configfile.Problems) {
	switch c.Driver.Name {
	case host.Auto, host.Firecracker, host.QEMUKVM, host.QEMU:
	default:
		problems.Addf("driver.name %q: use auto, firecracker, qemu-kvm or qemu", c.Driver.Name)
	}
	if n := c.Driver.QEMUCodeMB; n < qemu.MinCodeMiB || n > qemu.MaxCodeMiB {
		problems.Addf("driver.qemu_code_mb %d: use %d to %d", n, qemu.MinCodeMiB, qemu.MaxCodeMiB)
	}
	if f := c.Log.Format; f != "text" && f != "json" {
		problems.Addf("log.format %q: use text or json", f)
	}
	if _, _, err := net.SplitHostPort(c.Metrics); c.Metrics != "off" && err != nil {
		problems.Addf("metrics %q: use an address and a port such as 127.0.0.1:49981, or off", c.Metrics)
	}
	for name, n := range map[string]int{
		"limits.sandboxes": c.Limits.Sandboxes, "limits.memory_mb": c.Limits.MemoryMB + 1, "limits.disk_free_mb": c.Limits.DiskFreeMB + 1, // -1 is no limit
		"memory_limit_mb": c.MemoryLimitMB, "limits.disk_mb_per_second": c.Limits.DiskMBPerSecond, "limits.disk_operations_per_second": c.Limits.DiskOperationsPerSecond, "store.mbit_per_second": c.Store.Mbit,
		"warm.vcpus": c.Warm.VCPUs, "warm.memory_mb": c.Warm.MemoryMB,
	} {
		if n < 0 {
			problems.Addf("%s: the number is too small", name)
		}
	}
	if n := c.Ready.Machines; n != nil && (*n < 0 || *n > maxReadyMachines) {
		problems.Addf("ready.machines %d: use 0 to %d", *n, maxReadyMachines)
	}
	for _, path := range []string{c.State, c.Run} {
		if !filepath.IsAbs(path) {
			problems.Addf("state and run %q: use absolute paths", path)
		}
	}
	problems.Add(wrenn.CheckZone(c.Zone))
	problems.Add(wrenn.CheckLabels(c.Labels))
	if c.Store.URL != "" {
		problems.Add(objects.CheckURL(c.Store.URL))
	}
	c.Traces.Check(problems)
	problems.Add(c.network().Check())
	problems.Add(c.Templates.Images.Check())
	problems.Add(c.listen().Check())
}

func (c *config) listen() server.Listen {
	return server.Listen{Address: c.Listen, Group: c.Group, AnyUser: c.AnyUser, TLS: c.TLS}
}

func (c *config) network() network.Config {
	n := c.Network
	return network.Config{Prefix: n.Prefix, Range: n.Range, Ready: n.Ready, Max: n.Max, Closed: n.Closed, Connections: n.Connections, MbitPerSecond: n.MbitPerSecond, PacketsPerSecond: n.PacketsPerSecond, Resolvers: n.resolvers()}
}

// resolvers returns the DNS servers with their port.
func (n networkConfig) resolvers() []netip.AddrPort {
	var servers []netip.AddrPort
	for _, addr := range n.Resolvers {
		const dns = 53
		servers = append(servers, netip.AddrPortFrom(addr, dns))
	}
	return servers
}

// print writes the effective configuration; there are no secrets in it.
func (c *config) print(w io.Writer) error { return toml.NewEncoder(w).Encode(c) }

func (c *config) logger(w io.Writer) (*slog.Logger, error) {
	return telemetry.NewLogger(w, telemetry.Log{Level: c.Log.Level, Format: c.Log.Format})
}

func (c *config) host(out io.Writer, log *slog.Logger) host.Config {
	d := c.Driver
	return host.Config{
		StateDir: c.State, RunDir: c.Run, Adopt: true,
		Image:   image.Config{StateDir: c.State, Dir: c.Images, Kernel: d.Kernel, Initrd: d.Initrd, MinFree: int64(max(0, c.Limits.DiskFreeMB)) << 20},
		Driver:  host.DriverConfig{Name: d.Name, QEMU: d.QEMU, QEMUCodeMiB: d.QEMUCodeMB, Firecracker: d.Firecracker, Jailer: d.Jailer, Unjailed: d.Unjailed, NoDownload: d.NoDownload},
		Network: c.network(),
		Limits: sandbox.Limits{
			Sandboxes: c.Limits.Sandboxes, MemoryMiB: max(0, c.Limits.MemoryMB), DiskFreeMiB: max(0, c.Limits.DiskFreeMB), DisksMiB: max(0, c.Limits.DisksMB),
			DiskRate: vm.DiskRate{BytesPerSecond: int64(c.Limits.DiskMBPerSecond) * 1_000_000, OperationsPerSecond: int64(c.Limits.DiskOperationsPerSecond)},
		},
		Pool:       c.Ready.Machines,
		Registries: c.Templates.Registries,
		Allowed:    c.Templates.Images,
		Out:        out, Log: log,
	}
}
