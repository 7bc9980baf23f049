//go:build root && vm

package e2e

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox"
)

// A guest has what other init systems set up: the table of docs/guest-image.md.
func TestGuestSystem(t *testing.T) {
	h := openHost(t)
	sb, err := h.Manager.Create(t.Context(), wrenn.NewSandboxID(), small)
	sb = keep(t, sb, err)
	if console, _, err := h.Manager.Console(sb.ID(), time.Time{}); err != nil || strings.Contains(console, "wrenn-init:") || strings.Contains(console, "stage0:") {
		t.Errorf("the console says %v\n%s", err, console)
	}
	for _, tt := range []struct{ name, user, script, want string }{
		{"process substitution", "user", `bash -c 'cat <(echo A)'`, "A"},
		{"a script of a substitution", "user", `bash -c 'source <(echo "x=set"); echo $x'`, "set"},
		{"/dev/stdout", "user", "echo out >/dev/stdout", "out"},
		{"/dev/stderr", "user", "{ echo err >/dev/stderr; } 2>&1", "err"},
		{"/dev/stdin", "user", "echo in | cat /dev/stdin", "in"},
		{"/dev/fd", "user", "cat /dev/fd/3 3<<END\nthree\nEND", "three"},
		{"links in /dev", "root", "cd /dev; readlink fd stdin stdout stderr core", "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\n/proc/kcore"},
		{"devices for all", "user", "for d in null zero full random urandom tty ptmx; do [ -r /dev/$d ] && [ -w /dev/$d ] || echo $d; done", ""},
		{"file systems", "root", "stat -f -c %T /proc /sys /dev/shm /dev/mqueue /dev/hugepages /run /run/lock /run/user /sys/fs/cgroup /sys/fs/bpf /sys/kernel/security /sys/kernel/debug /sys/kernel/tracing | tr '\\n' ' '",
			"proc sysfs tmpfs mqueue hugetlbfs tmpfs tmpfs tmpfs cgroup2fs bpf_fs securityfs debugfs tracefs "},
		{"modes", "root", "stat -c '%a %U' /tmp /var/tmp /dev/shm /run /run/lock /run/user | tr '\\n' ' '", "1777 root 1777 root 1777 root 755 root 1777 root 755 root "},
		{"mounts propagate", "root", "findmnt -n -o PROPAGATION /", "shared"},
		{"/etc/mtab", "user", "readlink /etc/mtab; grep -c ' / ' /etc/mtab", "../proc/self/mounts\n1"},
		{"locks of old programs", "user", "touch /var/lock/mine && ls /run/lock", "mine"},
		{"who is logged in", "user", "who", ""},
		{"XDG_RUNTIME_DIR", "user", "echo $XDG_RUNTIME_DIR; stat -c '%a %U %G' $XDG_RUNTIME_DIR; touch $XDG_RUNTIME_DIR/x", "/run/user/1000\n700 user user"},
		{"XDG_RUNTIME_DIR of root", "root", "echo $XDG_RUNTIME_DIR", "/run/user/0"},
		{"open files", "user", "ulimit -S -n; ulimit -H -n; ulimit -n 524288", "1024\n524288"},
		{"core files", "user", "ulimit -S -c; ulimit -H -c", "0\nunlimited"},
		{"kernel values", "user", "cd /proc/sys; cat fs/file-max fs/inotify/max_user_watches fs/inotify/max_user_instances " +
			"fs/protected_fifos fs/protected_hardlinks fs/protected_regular fs/protected_symlinks kernel/pid_max vm/max_map_count vm/overcommit_memory net/ipv4/ip_local_port_range | tr '\\t\\n' '  '",
			"9223372036854775807 524288 1024 1 1 2 1 4194304 1048576 0 32768 60999 "},
		{"groups that may ping", "user", "tr '\\t' ' ' </proc/sys/net/ipv4/ping_group_range", "0 2147483647"},
		{"ping", "user", "ping -c 1 -W 5 127.0.0.1 | grep -c 'ttl='", "1"},
		{"locale", "user", `echo $LANG; locale charmap; python3 -c 'import sys; print(sys.getfilesystemencoding(), sys.stdout.encoding)'`, "C.UTF-8\nUTF-8\nutf-8 utf-8"},
		{"locale of a login", "root", "env -i su - user -c 'echo $LANG'", "C.UTF-8"},
		{"account files", "root", "pwck -r -q; grpck -r", ""},
		{"su", "root", "su user -c 'id -un; sudo -n id -un'", "user\nroot"},
		{"names", "user", "getent hosts localhost | wc -l; getent ahostsv4 $(hostname) | head -n 1 | grep -c .", "1\n1"},
		{"name servers", "user", "grep -c ^nameserver /etc/resolv.conf", "2"},
		{"machine id", "user", "grep -cE '^[0-9a-f]{32}$' /etc/machine-id", "1"},
		{"time zone", "user", "date +%Z; readlink -e /etc/localtime", "UTC\n/usr/share/zoneinfo/Etc/UTC"},
		{"semaphores and queues", "user", `python3 -c 'import multiprocessing as m; l = m.Lock(); l.acquire(); print(m.Queue() is not None)'`, "True"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := shAs(t, sb, tt.user, tt.script); got != tt.want {
				t.Errorf("%s printed\n%s\nwant\n%s", tt.script, got, tt.want)
			}
		})
	}
}

// fill fills every tmpfs with bytes, and then with empty files.
const fill = `
import os
for root in "/dev/shm", "/run", "/run/lock", "/run/user", "/dev":
    try:
        with open(root + "/filler", "wb") as f:
            while True:
                f.write(bytes(1 << 16))
    except OSError:
        pass
    try:
        os.mkdir(root + "/many")
        n = 0
        while True:
            os.close(os.open(f"{root}/many/{n}", os.O_CREAT | os.O_WRONLY))
            n += 1
    except OSError:
        pass
print("full")
`

// File systems in memory can never hold so much that the guest or its agent dies,
// and temporary files are not in memory.
func TestGuestIsFull(t *testing.T) {
	h := openHost(t)
	collectLast(t, h)
	sb, err := h.Manager.Create(t.Context(), wrenn.NewSandboxID(), small)
	sb = keep(t, sb, err)
	const size = 300 << 20 // more than the memory
	if got := shAs(t, sb, "user", fmt.Sprintf("head -c %d /dev/zero >/tmp/big && stat -c %%s /tmp/big", size)); got != strconv.Itoa(size) {
		t.Errorf("/tmp/big has %s bytes", got)
	}
	if err := sb.Guest().WriteFile(t.Context(), "root", "/root/fill", strings.NewReader(fill)); err != nil {
		t.Fatal(err)
	}
	boot := sh(t, sb, "cut -d' ' -f22 /proc/1/stat; pidof envd")
	alive := func(when string, sb *sandbox.Sandbox) {
		t.Helper()
		if got := sh(t, sb, "cut -d' ' -f22 /proc/1/stat; pidof envd"); got != boot {
			t.Errorf("%s PID 1 and the agent are %q, they were %q", when, got, boot)
		}
		if got := sh(t, sb, "df --output=pcent /dev/shm /run /run/lock /run/user /dev | tail -n +2 | tr -d ' \n'"); got != strings.Repeat("100%", 5) {
			t.Errorf("%s the tmpfs are filled by %s", when, got)
		}
		if got := shAs(t, sb, "user", "stat -c %s /tmp/big; echo x >/tmp/small && cat /tmp/small"); got != strconv.Itoa(size)+"\nx" {
			t.Errorf("%s /tmp has %q", when, got)
		}
	}
	if got := sh(t, sb, "python3 /root/fill"); got != "full" {
		t.Fatalf("filling said %q", got)
	}
	alive("full:", sb)
	if err := errors.Join(sb.Pause(t.Context()), sb.Resume(t.Context())); err != nil {
		t.Fatal(err)
	}
	alive("after a resume:", sb)
	forked, err := sb.Fork(t.Context(), []wrenn.SandboxID{wrenn.NewSandboxID()}, nil)
	if err != nil || forked[0].Err != nil {
		t.Fatal(err, forked)
	}
	alive("in a fork:", keep(t, forked[0].Sandbox, nil))
}

// synchronized waits for at most half a minute. In that time chronyd would not ask
// by itself: it does so once a minute or less often.
const synchronized = "chronyc -n waitsync 30 0 0 1 >/dev/null && chronyc -n tracking | grep -E '^(Reference ID|Leap status)'"

// A guest's clock follows the host's again soon after a restore. By itself chronyd
// would notice the restore only when it asks the next time.
func TestGuestClock(t *testing.T) {
	h := openHost(t)
	collectLast(t, h)
	sb, err := h.Manager.Create(t.Context(), wrenn.NewSandboxID(), small)
	sb = keep(t, sb, err)
	const want = "Reference ID    : A9FE0016 (169.254.0.22)\nLeap status     : Normal"
	follows := func(when string, sb *sandbox.Sandbox) {
		t.Helper()
		if got := sh(t, sb, synchronized); got != want {
			t.Errorf("%s chronyd says %q", when, got)
		}
		checkClock(t, sb)
	}
	follows("after a create", sb)
	// A guest that seems to have been paused for an hour, and whose chronyd knows that it is not synchronized.
	sh(t, sb, "until chronyc -n activity | grep -q '^1 sources online'; do sleep 0.5; done; date -s '-1 hour'; chronyc -n tracking | grep 'Not synchron'")
	if err := sb.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	forked, err := sb.Fork(t.Context(), []wrenn.SandboxID{wrenn.NewSandboxID()}, nil)
	if err != nil || forked[0].Err != nil {
		t.Fatal(err, forked)
	}
	follows("a fork's", keep(t, forked[0].Sandbox, nil))
	if err := sb.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	follows("after a resume", sb)
}
