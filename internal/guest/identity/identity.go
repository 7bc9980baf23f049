// Package identity makes a copy of a guest somebody new: host name, boot id,
// machine id, and the word to programs that want to know. Randomness and time
// are the clock room's.
package identity

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Identity is who a guest is.
type Identity struct {
	ID         string // of the sandbox
	Generation uint64 // counts its starts and restores
	Hostname   string // empty: ID
}

// Check returns what is wrong with an identity.
func (id Identity) Check() error {
	switch {
	case !isLabel(id.ID):
		return fmt.Errorf("id %.80q: use 1 to 63 letters, digits and inner hyphens", id.ID)
	case id.Hostname != "" && !isLabel(id.Hostname):
		return fmt.Errorf("hostname %.80q: use 1 to 63 letters, digits and inner hyphens", id.Hostname)
	}
	return nil
}

// isLabel reports whether s can be a label of a host name, RFC 1123 §2.1. By
// hand: the code of package regexp is cold after a restore, which an emulated CPU pays for.
func isLabel(s string) bool {
	for _, c := range []byte(s) {
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
}

func (id Identity) hostname() string { return cmp.Or(id.Hostname, id.ID) }

// Machine is the kernel's side. Tests and agents outside a guest bring their own.
type Machine interface {
	SetHostname(name string) error
	// ShowBootID makes file what everybody reads as the kernel's boot id.
	// Showing the file that is shown already is nothing to do.
	ShowBootID(file string) error
	// Signal tells the process, of whom it is known that it wants that.
	Signal(pid, signal int) error
}

// Config is what a Keeper needs.
type Config struct {
	Machine Machine      // needed
	Log     *slog.Logger // needed
	RunDir  string       // /run/wrenn in a guest, where programs find it; empty: nothing is written at all
	Root    string       // of the guest's files, "/" in a guest; empty: no file outside RunDir is touched
}

// Names in RunDir. They are documented: docs/fork-safety.md.
const (
	generationFile = "generation"
	bootIDFile     = "boot_id"
	notifyDir      = "notify.d"
)

// Keeper knows who the guest is. It is safe for concurrent use.
type Keeper struct {
	cfg Config

	mu  sync.Mutex // guards now; held while the guest changes
	now Identity   // zero until the host said it
}

// New returns a keeper. It does what need not wait until a restore: makes the
// directory where programs ask to be told, and shows the kernel's boot id by a file.
func New(cfg Config) *Keeper {
	k := &Keeper{cfg: cfg}
	if cfg.RunDir == "" {
		return k
	}
	if err := k.makeDirs(); err != nil {
		cfg.Log.Warn("programs cannot ask to be told of a restore", slog.Any("error", err))
	}
	if err := k.showBootID(); err != nil {
		cfg.Log.Warn("the boot id cannot change", slog.Any("error", err)) // Become tries again
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
	return os.Chmod(dir, 0o777|fs.ModeSticky) // whatever the umask is
}

func (k *Keeper) showBootID() error {
	path := filepath.Join(k.cfg.RunDir, bootIDFile)
	if _, err := os.Stat(path); err != nil {
		kernels, err := os.ReadFile(bootID)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, kernels, 0o444); err != nil {
			return err
		}
	}
	return k.cfg.Machine.ShowBootID(path)
}

// Become makes the guest id, at the time at, and reports whether it was
// somebody else: another ID or Generation. Its machine id changes with the ID
// alone, since a resumed sandbox is the same machine. The programs that asked for it are
// signalled; they should be frozen, so that it is the first thing that they see.
//
// When the kernel refuses it returns an error, and the guest is not yet id. What a
// user may have broken, files in /etc, is logged and left out.
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

// write changes the files that say who the guest is.
func (k *Keeper) write(id Identity, at time.Time) error {
	if err := k.newBootID(); err != nil {
		return fmt.Errorf("new boot id: %w", err)
	}
	if k.cfg.Root != "" {
		k.writeEtc(id, id.ID != k.now.ID)
	}
	if err := k.writeGeneration(id, at); err != nil {
		return fmt.Errorf("write the generation: %w", err)
	}
	return nil
}

// writeGeneration replaces the file as a whole: readers see the old or the new one.
func (k *Keeper) writeGeneration(id Identity, at time.Time) error {
	text := fmt.Sprintf("id=%s\ngeneration=%d\ntime=%s\n", id.ID, id.Generation, at.UTC().Format(time.RFC3339Nano))
	return replace(filepath.Join(k.cfg.RunDir, generationFile), text, 0o644)
}

// newBootID overwrites the file in place, because it is what the kernel shows:
// a new one would not be. All boot ids have one length, so no reader sees half of two.
func (k *Keeper) newBootID() error {
	if err := k.showBootID(); err != nil {
		return err
	}
	return overwrite(filepath.Join(k.cfg.RunDir, bootIDFile), uuid()+"\n")
}

// uuid is a random one, version 4 of RFC 9562 §5.4.
func uuid() string {
	b := random()
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func random() [16]byte {
	var b [16]byte
	rand.Read(b[:]) // never fails, see crypto/rand; reads from the kernel, which was reseeded before
	return b
}

// writeEtc writes what programs read in files of the guest. Root in the guest
// may have made that impossible; then it is as before.
func (k *Keeper) writeEtc(id Identity, newMachine bool) {
	files := map[string]string{}
	if id.hostname() != k.now.hostname() {
		hosts, err := k.hosts(id.hostname())
		if err != nil {
			k.complain("etc/hosts", err)
		} else {
			files["etc/hosts"] = hosts
		}
	}
	if newMachine {
		b := random()
		// machine-id(5): 32 hexadecimal digits and a newline.
		files["etc/machine-id"] = hex.EncodeToString(b[:]) + "\n"
		// D-Bus has a link to it, or a file of its own.
		const dbus = "var/lib/dbus/machine-id"
		if info, err := os.Lstat(filepath.Join(k.cfg.Root, dbus)); err == nil && info.Mode().IsRegular() {
			files[dbus] = files["etc/machine-id"]
		}
	}
	for name, text := range files {
		path := filepath.Join(k.cfg.Root, name)
		// In place, which costs the disk less; what is no file is replaced.
		if overwrite(path, text) == nil {
			continue
		}
		if err := replace(path, text, 0o644); err != nil {
			k.complain(name, err)
		}
	}
}

func (k *Keeper) complain(name string, err error) {
	k.cfg.Log.Warn("a file still tells of who the guest was", slog.String("file", name), slog.Any("error", err))
}

// hostsMark ends the line of /etc/hosts that is ours.
const hostsMark = "# this sandbox"

// hosts is /etc/hosts with the name in one line of ours: sudo complains about
// a host name without an address. 127.0.1.1 is where Debian puts it.
func (k *Keeper) hosts(name string) (string, error) {
	const longest = 1 << 20 // what is larger is somebody's block list: left alone
	path := filepath.Join(k.cfg.Root, "etc/hosts")
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return "", err
	case !info.Mode().IsRegular() || info.Size() > longest:
		return "", errors.New("it is no file, or too large")
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

// overwrite changes a file that is there. It follows no link.
func overwrite(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a file")
	}
	if _, err := f.WriteAt([]byte(text), 0); err != nil || info.Size() <= int64(len(text)) {
		return err
	}
	return f.Truncate(int64(len(text)))
}

// replace writes a file anew and puts it in the place of an old one, or of a
// link. It need not survive a power cut: a guest that boots again is told again.
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
