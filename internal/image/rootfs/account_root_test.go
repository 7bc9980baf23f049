//go:build root

package rootfs

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// layout is the account files of a kind of image, written out here: what they are
// in images of Debian, Alpine, Fedora and of the distroless project.
type layout struct {
	files map[string]string // without /etc/; pam.d/* are of the kind's PAM
	modes map[string]fs.FileMode
	pam   bool // su, sudo and PAM of this machine are in it; else busybox is
	want  map[string]string
}

const pamDebian = `auth sufficient pam_rootok.so
auth required pam_unix.so
account required pam_unix.so
session required pam_unix.so
`

// pamFedora is su of Fedora with its system-auth.
const pamFedora = `auth sufficient pam_rootok.so
auth required pam_unix.so
account sufficient pam_succeed_if.so uid = 0 use_uid quiet
account required pam_unix.so
account sufficient pam_localuser.so
account sufficient pam_succeed_if.so uid < 500 quiet
account required pam_permit.so
session optional pam_keyinit.so revoke
session required pam_unix.so
`

var layouts = map[string]layout{
	"debian": {
		files: map[string]string{
			"passwd":  "root:x:0:0:root:/root:/bin/bash\nubuntu:x:1000:1000::/home/ubuntu:/bin/bash\n",
			"group":   "root:x:0:\nshadow:x:42:\nubuntu:x:1000:\n",
			"shadow":  "root:*:19000:0:99999:7:::\nubuntu:!:19000:0:99999:7:::\n",
			"gshadow": "root:*::\nshadow:*::\nubuntu:!::\n",
			"sudoers": "root ALL=(ALL:ALL) ALL\n@includedir /etc/sudoers.d\n",
		},
		modes: map[string]fs.FileMode{"shadow": 0o640, "gshadow": 0o640},
		pam:   true,
		want: map[string]string{
			"passwd":  "root:x:0:0:root:/root:/bin/bash\nubuntu:x:1000:1000::/home/ubuntu:/bin/bash\nuser:x:1001:1001::/home/user:/bin/bash\n",
			"group":   "root:x:0:\nshadow:x:42:\nubuntu:x:1000:\nuser:x:1001:\n",
			"shadow":  "root:*:19000:0:99999:7:::\nubuntu:!:19000:0:99999:7:::\nuser:!:::::::\n",
			"gshadow": "root:*::\nshadow:*::\nubuntu:!::\nuser:!::\n",
			"sudoers": "root ALL=(ALL:ALL) ALL\n@includedir /etc/sudoers.d\n",
		},
	},
	"fedora": { // with what an account that was removed has left
		files: map[string]string{
			"passwd":  "root:x:0:0:Super User:/root:/bin/bash",
			"group":   "root:x:0:\nuser:x:500:",
			"shadow":  "root:!locked::0:99999:7:::\nuser:$6$old:0:0:99999:7:::",
			"gshadow": "root:::\nuser:!::",
			"sudoers": "Defaults !visiblepw\nroot ALL=(ALL) ALL\n## Read drop-in files\n#includedir /etc/other.d\n",
		},
		modes: map[string]fs.FileMode{"shadow": 0, "gshadow": 0, "sudoers": 0o440},
		pam:   true,
		want: map[string]string{
			"passwd":  "root:x:0:0:Super User:/root:/bin/bash\nuser:x:1000:500::/home/user:/bin/bash\n",
			"group":   "root:x:0:\nuser:x:500:",
			"shadow":  "root:!locked::0:99999:7:::\nuser:!:::::::\n",
			"gshadow": "root:::\nuser:!::",
			"sudoers": "Defaults !visiblepw\nroot ALL=(ALL) ALL\n## Read drop-in files\n#includedir /etc/other.d\n#includedir /etc/sudoers.d\n",
		},
	},
	"without passwords": {
		files: map[string]string{"passwd": "root:x:0:0:root:/root:/bin/sh\n", "group": "root:x:0:\n"},
		pam:   true,
		want: map[string]string{
			"passwd": "root:x:0:0:root:/root:/bin/sh\nuser:*:1000:1000::/home/user:/bin/bash\n", "group": "root:x:0:\nuser:x:1000:\n",
			"shadow": "", "gshadow": "", "sudoers": "#includedir /etc/sudoers.d\n",
		},
	},
	"alpine": {
		files: map[string]string{
			"passwd": "root:x:0:0:root:/root:/bin/sh\nguest:x:405:100:guest:/dev/null:/sbin/nologin\n",
			"group":  "root:x:0:root\nshadow:x:42:\nusers:x:100:\n",
			"shadow": "root:*::0:::::\nguest:!::0:::::\n",
		},
		modes: map[string]fs.FileMode{"shadow": 0o640},
		want: map[string]string{
			"passwd": "root:x:0:0:root:/root:/bin/sh\nguest:x:405:100:guest:/dev/null:/sbin/nologin\nuser:x:1000:1000::/home/user:/bin/sh\n",
			"group":  "root:x:0:root\nshadow:x:42:\nusers:x:100:\nuser:x:1000:\n",
			"shadow": "root:*::0:::::\nguest:!::0:::::\nuser:!:::::::\n", "gshadow": "",
		},
	},
	"distroless": {
		files: map[string]string{"passwd": "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n", "group": "root:x:0:\nnonroot:x:65532:\n"},
		want: map[string]string{
			"passwd": "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\nuser:*:1000:1000::/home/user:/bin/sh\n",
			"group":  "root:x:0:\nnonroot:x:65532:\nuser:x:1000:\n", "shadow": "", "gshadow": "",
		},
	},
	"nothing": {
		want: map[string]string{"passwd": "root:*:0:0:root:/root:/bin/sh\nuser:*:1000:1000::/home/user:/bin/sh\n", "group": "root:x:0:\nuser:x:1000:\n", "shadow": "", "gshadow": ""},
	},
}

// make fills a tree. The programs of a kind with PAM are this machine's, which
// enter lends it, so that here are only their names.
func (l *layout) make(t *testing.T, dir string) {
	t.Helper()
	files := map[string]string{"root/x": "", "dev/null": ""}
	for name, text := range l.files {
		files["etc/"+name] = text
	}
	if l.pam {
		for name, target := range map[string]string{"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"} {
			files[name] = ">" + target
		}
		for _, name := range []string{"bin/bash", "bin/sudo", "sbin/x", "lib/x", "lib64/x"} {
			files["usr/"+name] = ""
		}
		for _, service := range []string{"su", "su-l", "sudo", "other"} {
			files["etc/pam.d/"+service] = pamDebian
			if strings.Contains(l.files["passwd"], "Super User") {
				files["etc/pam.d/"+service] = pamFedora
			}
		}
		files["etc/nsswitch.conf"] = "passwd: files\ngroup: files\nshadow: files\n"
		files["etc/shells"] = "/bin/sh\n/bin/bash\n"
	} else {
		busybox, err := os.ReadFile("/bin/busybox")
		if err != nil {
			missing(t, "there is no /bin/busybox (apt-get install busybox-static)")
		}
		files["bin/busybox"] = string(busybox)
		files["bin/sh"] = ">busybox"
		files["bin/su"] = ">busybox"
		files["bin/id"] = ">busybox"
	}
	fill(t, dir, files)
	for name, mode := range l.modes {
		path := filepath.Join(dir, "etc", name)
		gid := 0
		if mode == 0o640 {
			gid = 42
		}
		if err := os.Chown(path, 0, gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
}

// missing skips a test where it may be skipped.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("WRENN_CI") == "1" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// enter runs a shell script with the tree as its root. What it mounts for that is
// in a mount namespace that ends with it.
func (l *layout) enter(t *testing.T, dir, script string) string {
	t.Helper()
	const prepare = `mount --bind /dev/null "$0/dev/null" && { [ ! -d "$0/usr/bin" ] || mount --bind -o ro /usr "$0/usr"; } && exec chroot "$0" /bin/sh -c "$1"`
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "/bin/sh", "-c", prepare, dir, script)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// The account can be used, whatever keeps accounts in an image, and the files are
// as the programs that check them want them.
func TestAddUser(t *testing.T) {
	for name, l := range layouts {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath("sudo"); err != nil && l.pam {
				missing(t, "there is no sudo (apt-get install sudo)")
			}
			tree, dir := openTree(t)
			l.make(t, dir)
			for range 2 { // an existing account stays as it is
				if err := tree.AddUser(); err != nil {
					t.Fatal(err)
				}
				l.check(t, dir)
			}
			l.login(t, dir)
		})
	}
}

// check compares the files, their modes and owners.
func (l *layout) check(t *testing.T, dir string) {
	t.Helper()
	got := map[string]string{}
	for name := range l.want {
		text, _ := os.ReadFile(filepath.Join(dir, "etc", name)) // "" without one
		got[name] = string(text)
	}
	if diff := cmp.Diff(l.want, got); diff != "" {
		t.Errorf("files mismatch (-want +got):\n%s", diff)
	}
	for name, mode := range l.modes {
		info, err := os.Stat(filepath.Join(dir, "etc", name))
		if err != nil || info.Mode() != mode {
			t.Errorf("%s = %v, %v; want %v", name, info.Mode(), err, mode)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "pwck", "-r", "-q", "-R", dir).CombinedOutput(); err != nil {
		t.Errorf("pwck: %v: %s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), "grpck", "-r", "-R", dir).CombinedOutput(); err != nil {
		t.Errorf("grpck: %v: %s", err, out)
	}
}

// login becomes the user, and root again.
func (l *layout) login(t *testing.T, dir string) {
	t.Helper()
	for script, want := range map[string]string{
		`su user -s /bin/sh -c 'id -un; id -gn'`: "user\nuser\n",
		`su - user -c 'pwd; echo $HOME'`:         "/home/user\n/home/user\n",
	} {
		if got := l.enter(t, dir, script); got != want {
			t.Errorf("%s printed %q, want %q", script, got, want)
		}
	}
	if !l.pam {
		return
	}
	if got := l.enter(t, dir, `su user -c '(sudo -n id -u && sudo -n -u user id -un) 2>/dev/null'`); got != "0\nuser\n" {
		t.Errorf("sudo printed %q", got)
	}
}
