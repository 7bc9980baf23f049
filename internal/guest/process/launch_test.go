package process

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/guest/account"
	"wrenn.dev/internal/guest/settings"
	pb "wrenn.dev/proto/gen/envd/process"
)

func TestEnvironment(t *testing.T) {
	t.Setenv("PATH", "/agent/bin")
	t.Setenv("LANG", "C.UTF-8")
	user := &account.User{Name: "user", Home: "/home/user"}
	got := environment(user, map[string]string{"A": "sandbox", "B": "sandbox", "HOME": "/sandbox"}, map[string]string{"B": "request", "PATH": "/request"})
	want := map[string]string{"PATH": "/request", "HOME": "/sandbox", "USER": "user", "LOGNAME": "user", "LANG": "C.UTF-8", "A": "sandbox", "B": "request"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("environment() mismatch (-want +got):\n%s", diff)
	}
	t.Setenv("PATH", "")
	if got := environment(user, nil, nil)["PATH"]; got != defaultPath {
		t.Errorf("PATH = %q, want %q", got, defaultPath)
	}
}

func TestWorkdir(t *testing.T) {
	home := t.TempDir()
	if err := os.MkdirAll(filepath.Join(home, "code"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	user, homeless := &account.User{Home: home}, &account.User{Home: filepath.Join(home, "none")}
	for _, tc := range []struct {
		name, cwd, fallback string
		user                *account.User
		want, err           string
	}{
		{name: "home", user: user, want: home},
		{name: "no home", user: homeless, want: "/"},
		{name: "default", user: user, fallback: "code", want: filepath.Join(home, "code")},
		{name: "given wins", user: user, cwd: "/", fallback: "code", want: "/"},
		{name: "relative", user: user, cwd: "code", fallback: "/", want: filepath.Join(home, "code")},
		{name: "tilde", user: user, cwd: "~/code", want: filepath.Join(home, "code")},
		{name: "missing", user: user, cwd: "/no/where", err: "cwd '/no/where' does not exist"},
		{name: "missing default", user: user, fallback: "/no/where", err: "cwd '/no/where' does not exist"},
		{name: "file", user: user, cwd: "~/file", err: "cwd '" + home + "/file' is not a directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := workdir(&pb.ProcessConfig{Cwd: &tc.cwd}, tc.user, tc.fallback)
			if tc.err != "" {
				if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.HasSuffix(err.Error(), tc.err) {
					t.Errorf("workdir() = %v, want invalid_argument %q", err, tc.err)
				}
				return
			}
			if err != nil || got != tc.want {
				t.Errorf("workdir() = %q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

func TestLookCommand(t *testing.T) {
	dir := t.TempDir()
	for path, mode := range map[string]os.FileMode{"bin/tool": 0o755, "bin/text": 0o644, "other/text": 0o755, "here": 0o755} {
		full := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "bin/dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := dir + "/bin:" + dir + "/other:"
	for cmd, want := range map[string]string{
		"tool": dir + "/bin/tool", "text": dir + "/other/text", "here": dir + "/here",
		"./x/y": "./x/y", "/no/such": "/no/such",
	} {
		if got, err := lookCommand(cmd, path, dir); err != nil || got != want {
			t.Errorf("lookCommand(%q) = %q, %v; want %q", cmd, got, err, want)
		}
	}
	for _, cmd := range []string{"dir", "absent"} {
		if _, err := lookCommand(cmd, path, dir); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("lookCommand(%q) = %v, want not_found", cmd, err)
		}
	}
}

func TestResolveRefuses(t *testing.T) {
	user := &account.User{Name: "user", Home: "/"}
	for name, req := range map[string]*pb.ProcessConfig{
		"no command":      {},
		"NUL in argument": {Cmd: "true", Args: []string{"a\x00b"}},
		"NUL in command":  {Cmd: "tr\x00ue"},
		"NUL in cwd":      {Cmd: "true", Cwd: new("/\x00")},
		"empty name":      {Cmd: "true", Envs: map[string]string{"": "x"}},
		"= in name":       {Cmd: "true", Envs: map[string]string{"A=B": "x"}},
		"NUL in value":    {Cmd: "true", Envs: map[string]string{"A": "\x00"}},
	} {
		if _, err := resolve(req, user, settings.Values{}); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%s: resolve() = %v, want invalid_argument", name, err)
		}
	}
}

func FuzzResolve(f *testing.F) {
	f.Add("true", "arg", "/", "KEY", "value", "/bin:")
	f.Add("./x", "", "~/..", "PATH", ":", "")
	f.Fuzz(func(t *testing.T, cmd, arg, cwd, key, value, path string) {
		req := &pb.ProcessConfig{Cmd: cmd, Args: []string{arg}, Cwd: &cwd, Envs: map[string]string{key: value}}
		l, err := resolve(req, &account.User{Name: "user", Home: "/"}, settings.Values{Env: map[string]string{"PATH": path}})
		if err != nil {
			return
		}
		if !filepath.IsAbs(l.dir) || len(l.argv) != 2 || strings.Contains(strings.Join(append(l.env, l.argv...), ""), "\x00") {
			t.Fatalf("resolve() = %+v", l)
		}
	})
}

func FuzzKeepalive(f *testing.F) {
	for _, v := range []string{"", "50", "0", "-1", "99999999999", "1e3"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if d := keepalive(http.Header{"Keepalive-Ping-Interval": {value}}); d < time.Second || d > maxKeepalive {
			t.Fatalf("keepalive(%q) = %v", value, d)
		}
	})
}

func TestSizeOf(t *testing.T) {
	for _, tc := range []struct {
		cols, rows uint32
		ok         bool
	}{{0, 0, true}, {80, 24, true}, {65535, 65535, true}, {65536, 1, false}, {1, 1 << 31, false}} {
		size, err := sizeOf(&pb.PTY{Size: &pb.PTY_Size{Cols: tc.cols, Rows: tc.rows}})
		if (err == nil) != tc.ok {
			t.Errorf("sizeOf(%d, %d) = %v, %v", tc.cols, tc.rows, size, err)
		}
	}
	if size, err := sizeOf(&pb.PTY{}); err != nil || size != defaultSize {
		t.Errorf("sizeOf(nothing) = %v, %v; want %v", size, err, defaultSize)
	}
}
