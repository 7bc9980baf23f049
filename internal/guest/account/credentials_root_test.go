//go:build root

package account

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

var guest = User{Name: "guest", UID: 4242, GID: 4243, Groups: []uint32{4244}}

// identity is what the kernel says about the calling thread.
func identity(t *testing.T) string {
	t.Helper()
	runtime.LockOSThread() // or another goroutine could use the thread between open and read
	defer runtime.UnlockOSThread()
	raw, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		t.Error(err)
	}
	var lines []string
	for line := range strings.Lines(string(raw)) {
		for _, name := range []string{"Uid:", "Gid:", "Groups:", "CapEff:"} {
			if strings.HasPrefix(line, name) {
				lines = append(lines, strings.Join(strings.Fields(line), " "))
			}
		}
	}
	return strings.Join(lines, "\n")
}

func TestDo(t *testing.T) {
	before := identity(t)
	const want = "Uid: 0 4242 0 4242\nGid: 0 4243 0 4243\nGroups: 4244\nCapEff: 0000000000000000"
	if err := guest.Do(func() error {
		if got := identity(t); got != want {
			t.Errorf("as a user the thread is\n%s\nwant\n%s", got, want)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := identity(t); got != before {
		t.Errorf("afterwards the thread is\n%s\nwant\n%s", got, before)
	}
}

// The kernel refuses a user what it refuses the user's programs.
func TestDoIsRefused(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func() error{
		"read":           func() error { _, err := os.ReadFile(secret); return err },
		"write":          func() error { return os.WriteFile("/etc/wrenn-test", nil, 0o644) },
		"chown":          func() error { return os.Chown("/tmp", 4242, 4243) },
		"root's process": func() error { _, err := os.ReadFile("/proc/1/environ"); return err },
		"sysctl": func() error {
			f, err := os.OpenFile("/proc/sys/kernel/hostname", os.O_WRONLY, 0)
			f.Close()
			return err
		},
	} {
		if err := guest.Do(f); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s: %v, want permission denied", name, err)
		}
	}
}

// Threads that are a user for a moment do not make others one.
func TestDoTogether(t *testing.T) {
	before := identity(t)
	var work sync.WaitGroup
	for range 32 {
		work.Go(func() {
			for range 100 {
				other := guest
				other.UID = 5000
				_ = guest.Do(func() error {
					if got := identity(t); !strings.HasPrefix(got, "Uid: 0 4242 0 4242\n") {
						t.Errorf("as a user the thread is\n%s", got)
					}
					return nil
				})
				_ = other.Do(func() error { return nil })
				if got := identity(t); got != before {
					t.Errorf("beside users a thread is\n%s", got)
				}
			}
		})
	}
	work.Wait()
}

func BenchmarkDo(b *testing.B) {
	for b.Loop() {
		_ = guest.Do(func() error { return nil })
	}
}
