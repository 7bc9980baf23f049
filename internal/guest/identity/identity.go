// Package identity gives a copy of a guest its own identity: host name, boot id,
// machine id, and a signal to programs that asked for one. Randomness and time
// are package clock's.
package identity

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Identity is who a guest is.
type Identity struct {
	ID           string // of the sandbox
	StartCounter uint64 // increases with each start and restore
	Hostname     string // empty: ID
}

// Check returns an error that says what is wrong with an identity, or nil.
func (id Identity) Check() error {
	switch {
	case !isLabel(id.ID):
		return fmt.Errorf("id %.80q: use 1 to 63 letters, digits and inner hyphens", id.ID)
	case id.Hostname != "" && !isLabel(id.Hostname):
		return fmt.Errorf("hostname %.80q: use 1 to 63 letters, digits and inner hyphens", id.Hostname)
	}
	return nil
}

// isLabel reports whether s can be a label of a host name, RFC 1123 §2.1. It
// does not use package regexp, whose code is cold after a restore: an emulated CPU
// has to translate it first.
func isLabel(s string) bool {
	for _, c := range []byte(s) {
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
}

func (id Identity) hostname() string { return cmp.Or(id.Hostname, id.ID) }

// Machine is the kernel. Tests and agents outside a guest have other ones.
type Machine interface {
	SetHostname(name string) error
	// Show makes the existing file at path read as file does. Twice is allowed.
	Show(file, path string) error
	// Signal signals a process that registered for it.
	Signal(pid, signal int) error
}

// Config is what a Keeper needs.
type Config struct {
	Machine Machine      // needed
	Log     *slog.Logger // needed
	RunDir  string       // /run/wrenn in a guest, where programs find it; empty: no file is written
	Root    string       // of the guest's files, "/" in a guest; empty: no file outside RunDir is written
}

// Names in RunDir. They are documented: docs/fork-safety.md.
const (
	identityFile  = "generation"
	bootIDFile    = "boot_id"
	machineIDFile = "machine_id"
	notifyDir     = "notify.d"
)

// Keeper holds the guest's identity. It is safe for concurrent use.
type Keeper struct {
	cfg Config

	mu         sync.Mutex // guards the following; held while the identity changes
	now        Identity   // zero until the host has sent one
	bootID     window
	random     place  // where the kernel shows its boot id
	file       window // identityFile
	registered place  // notifyDir
}

// New returns a keeper. It does what need not wait until a restore: it makes the
// directory where programs register, and has the ids shown from files in RunDir, since
// writing to a disk would be the most expensive part of a restore under emulation.
func New(cfg Config) *Keeper {
	k := &Keeper{cfg: cfg}
	if cfg.RunDir == "" {
		return k
	}
	if err := k.makeDirs(); err != nil {
		cfg.Log.Warn("programs cannot register for restores", slog.Any("err", err))
	}
	if err := errors.Join(k.openBootID(), k.showMachineID()); err != nil {
		cfg.Log.Warn("the guest's ids may not change with a restore", slog.Any("err", err))
	}
	return k
}

func (k *Keeper) makeDirs() error {
	dir := filepath.Join(k.cfg.RunDir, notifyDir)
	if err := os.MkdirAll(k.cfg.RunDir, 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Chmod(dir, 0o777|fs.ModeSticky); err != nil { // whatever the umask is
		return err
	}
	return k.registered.open(dir)
}

// openBootID shows a boot id from a file and keeps the file open for the next ids.
func (k *Keeper) openBootID() error {
	kernels, err := os.ReadFile(bootID)
	if err != nil {
		return err
	}
	if err := k.show(bootIDFile, string(kernels), bootID); err != nil {
		return err
	}
	if err := k.random.open(filepath.Dir(bootID)); err != nil {
		return err
	}
	return k.bootID.open(filepath.Join(k.cfg.RunDir, bootIDFile))
}

// show shows the file with a name in RunDir at path. It makes the file with text if it does not exist.
func (k *Keeper) show(name, text, path string) error {
	file := filepath.Join(k.cfg.RunDir, name)
	if _, err := os.Stat(file); err != nil {
		if err := os.WriteFile(file, []byte(text), 0o444); err != nil {
			return err
		}
	}
	return k.cfg.Machine.Show(file, path)
}

// showMachineID does what systemd does where /etc cannot be written: see
// machine-id(5), "First Boot Semantics". What the image has stays as it is on the disk.
func (k *Keeper) showMachineID() error {
	if k.cfg.Root == "" {
		return nil
	}
	path := filepath.Join(k.cfg.Root, "etc/machine-id")
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := k.show(machineIDFile, machineID(), path); err != nil {
		return err
	}
	// D-Bus has a link to it, or its own file.
	path = filepath.Join(k.cfg.Root, "var/lib/dbus/machine-id")
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
		return nil //nolint:nilerr // the image has no D-Bus
	}
	return k.show(machineIDFile, "", path)
}

// machineID returns a random machine id: machine-id(5), 32 hexadecimal digits and a newline.
func machineID() string {
	b := random()
	return hex.EncodeToString(b[:]) + "\n"
}

// Become gives the guest the identity id at the time at, and reports whether it
// had another ID or StartCounter before. The machine id changes with the ID alone,
// since a resumed sandbox is the same machine. Registered programs are signaled; they should
// be frozen, so that the signal is the first thing that they see.
//
// After an error the guest does not have the identity yet. A host name that gets
// no address is only logged.
func (k *Keeper) Become(id Identity, at time.Time) (changed bool, err error) {
	if err := id.Check(); err != nil {
		return false, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if id == k.now {
		return false, nil
	}
	if err := k.cfg.Machine.SetHostname(id.hostname()); err != nil {
		return false, fmt.Errorf("set the host name: %w", err)
	}
	if k.cfg.RunDir != "" {
		if err := k.write(id, at); err != nil {
			return false, err
		}
		k.notify()
	}
	k.now = id
	return true, nil
}

// write writes the files of the identity.
func (k *Keeper) write(id Identity, at time.Time) error {
	if err := k.newBootID(); err != nil {
		return fmt.Errorf("write the boot id: %w", err)
	}
	if id.ID != k.now.ID && k.cfg.Root != "" {
		if err := overwrite(filepath.Join(k.cfg.RunDir, machineIDFile), machineID()); err != nil {
			return fmt.Errorf("write the machine id: %w", err)
		}
	}
	k.writeHosts(id.hostname())
	if err := k.writeFile(id, at); err != nil {
		return fmt.Errorf("write the identity: %w", err)
	}
	return nil
}

// writeFile overwrites the file in place: a new file would be the most
// expensive part of a restore under emulation, and would not show where the old one is
// mounted, as in containers. No program reads half of it, because all are frozen.
func (k *Keeper) writeFile(id Identity, at time.Time) error {
	if !k.file.isLinked() { // the first time, or the guest's root has removed it
		path := filepath.Join(k.cfg.RunDir, identityFile)
		err := os.WriteFile(path, nil, 0o644)
		if err == nil {
			err = os.Chmod(path, 0o644) // whatever the umask is
		}
		if err == nil {
			err = k.file.open(path)
		}
		if err != nil {
			return err
		}
	}
	return k.file.set("id=" + id.ID + "\ngeneration=" + strconv.FormatUint(id.StartCounter, 10) + "\ntime=" + at.UTC().Format(time.RFC3339Nano) + "\n")
}

// newBootID overwrites the file in place, because that file is mounted over the
// kernel's. All boot ids have one length, so no reader sees parts of two.
func (k *Keeper) newBootID() error {
	if !k.bootID.isIn(k.random, filepath.Base(bootID)) { // the guest's root may have unmounted it
		if err := k.openBootID(); err != nil {
			return err
		}
	}
	return k.bootID.set(uuid() + "\n")
}

// uuid returns a random UUID, version 4 of RFC 9562 §5.4.
func uuid() string {
	b := random()
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func random() [16]byte {
	var b [16]byte
	// From the kernel, which was reseeded before, without the code of crypto/rand:
	// running code for the first time is what a restore costs. So few bytes never fail, see getrandom(2).
	if n, err := unix.Getrandom(b[:], 0); n != len(b) {
		panic(fmt.Sprintf("getrandom: %d bytes, %v", n, err))
	}
	return b
}

// writeHosts gives the host name an address in images whose resolver does not
// know it by itself: sudo looks it up, and complains. The guest's root may have
// made that impossible; then the file stays as it is.
func (k *Keeper) writeHosts(name string) {
	if k.cfg.Root == "" || name == k.now.hostname() || k.knowsItsName() {
		return
	}
	path := filepath.Join(k.cfg.Root, "etc/hosts")
	text, err := k.hosts(path, name)
	if err == nil && overwrite(path, text) != nil {
		err = replace(path, text, 0o644) // a link, or not there
	}
	if err != nil {
		k.cfg.Log.Warn("the host name has no address", slog.Any("err", err))
	}
}

// knowsItsName reports whether the C library uses nss-myhostname(8).
func (k *Keeper) knowsItsName() bool {
	raw, err := os.ReadFile(filepath.Join(k.cfg.Root, "etc/nsswitch.conf"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(raw)) {
		if services, ok := strings.CutPrefix(strings.TrimSpace(line), "hosts:"); ok {
			return slices.Contains(strings.Fields(services), "myhostname")
		}
	}
	return false
}

// hostsMark ends the agent's line in /etc/hosts.
const hostsMark = "# this sandbox"

// hosts returns the file at path with one line for the name. 127.0.1.1 is the
// address that Debian uses for it.
func (k *Keeper) hosts(path, name string) (string, error) {
	const longest = 1 << 20 // a larger file is a block list: left alone
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return "", err
	case !info.Mode().IsRegular() || info.Size() > longest:
		return "", errors.New("not a regular file, or too large")
	}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var text strings.Builder
	for line := range strings.Lines(string(old)) {
		if !strings.HasSuffix(strings.TrimSpace(line), hostsMark) {
			text.WriteString(line)
		}
	}
	if s := text.String(); s != "" && !strings.HasSuffix(s, "\n") {
		text.WriteByte('\n')
	}
	fmt.Fprintf(&text, "127.0.1.1\t%s\t%s\n", name, hostsMark)
	return text.String(), nil
}

// overwrite changes an existing file. It follows no link.
func overwrite(path, text string) error {
	var w window
	if err := w.open(path); err != nil {
		return err
	}
	defer w.close()
	return w.set(text)
}

// replace writes a new file and renames it over an old one, or over a link. It
// need not survive a power cut: a guest that boots again gets its identity again.
func replace(path, text string, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".wrenn-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
