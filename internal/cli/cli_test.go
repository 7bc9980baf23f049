package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"wrenn.dev/client"
	"wrenn.dev/client/settings"
	"wrenn.dev/internal/run"
)

var update = flag.Bool("update", false, "write the golden files")

const (
	testID    = "iabcdefghijklmnopqrst"
	privateID = "iprivatepppppppppppp0"
	endedID   = "iendedeeeeeeeeeeeeee0"
	otherID   = "iotheroooooooooooooo0"
	testKey   = "e2b_0123456789012345678901234567890123456789"
)

// result is the exit code and the output of a run of wrenn.
type result struct {
	code     int
	out, err string
}

// invoke runs the command line with an environment.
func invoke(t *testing.T, stdin io.Reader, environ map[string]string, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	std := Std{In: stdin, Out: &out, Err: &errOut, Environ: func(name string) string { return environ[name] }}
	code := run.Run(t.Context(), func(ctx context.Context, args []string) error { return Command(ctx, args, std) }, args, &errOut)
	return result{code, out.String(), errOut.String()}
}

// server is the part of the API that these tests use, with one sandbox.
func server(t *testing.T) *httptest.Server {
	t.Helper()
	box := map[string]any{
		"id": testID, "status": "running", "template": "base", "vcpus": 1, "memory_mb": 512, "disk_mb": 10240, "timeout_sec": 0,
		"metadata": map[string]string{"b": "\x1b[31m", "a": "1"}, "created_at": time.Now().Add(-90 * time.Second), "last_updated": time.Now(),
	}
	mux := http.NewServeMux()
	answer := func(status int, body any) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			status, body := status, body
			if r.Header.Get("X-API-Key") != testKey {
				status, body = 401, map[string]any{"error": map[string]string{"code": "unauthorized", "message": "the API key is unknown or revoked"}}
			}
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(body)
		}
	}
	mux.HandleFunc("POST /v1/sandboxes", answer(201, box))
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-API-Key") != "" {
			t.Error("the version was asked for with a key")
		}
		_, _ = io.WriteString(w, `{"version":"v1.2.3","commit":"0123","date":""}`)
	})
	mux.HandleFunc("GET /v1/sandboxes", answer(200, []any{box}))
	private := maps.Clone(box)
	private["id"] = privateID
	private["ports"] = map[string]any{"url": "https://{port}-" + privateID + ".example.com/", "private": true, "token": "secret", "https": []int{443}}
	ended := maps.Clone(box)
	ended["status"], ended["reason"], ended["end_cause"] = "stopped", "it was not used", "timeout"
	ended["created_at"], ended["last_updated"] = time.Date(2026, 1, 2, 15, 4, 5, 0, time.Local), time.Date(2026, 1, 2, 16, 4, 5, 0, time.Local)
	mux.HandleFunc("GET /v1/sandboxes/{id}", answer(200, box))
	mux.HandleFunc("GET /v1/sandboxes/{id}/metrics", func(w http.ResponseWriter, r *http.Request) {
		samples := []any{}
		if r.URL.Query().Get("start") == "" {
			samples = append(samples, map[string]any{
				"time": time.Date(2026, 1, 2, 15, 4, 5, 0, time.Local), "cpus": 2, "cpu_percent": 12.34, "memory_used_bytes": 100 << 20,
				"memory_total_bytes": 512 << 20, "memory_cache_bytes": 50 << 20, "disk_used_bytes": 1 << 30, "disk_total_bytes": 10 << 30,
			})
		}
		answer(200, map[string]any{"samples": samples})(w, r)
	})
	mux.HandleFunc("GET /v1/sandboxes/"+privateID, answer(200, private))
	mux.HandleFunc("GET /v1/sandboxes/"+endedID, answer(200, ended))
	rules := map[string]any{"default": "deny", "allow": []string{"1.1.1.1", "8.0.0.0/8"}, "deny": []string{}}
	mux.HandleFunc("GET /v1/sandboxes/{id}/network", answer(200, rules))
	mux.HandleFunc("GET /v1/sandboxes/{id}/network/log", answer(200, map[string]any{"dropped": 2, "events": []any{
		map[string]any{"seq": 1, "time": time.Date(2026, 1, 2, 15, 4, 5, 0, time.Local), "protocol": "tls", "verdict": "ended", "name": "example.com", "address": "192.0.2.1", "port": 443, "sent_bytes": 10, "received_bytes": 20, "duration_ms": 1500},
		map[string]any{"seq": 2, "time": time.Date(2026, 1, 2, 15, 4, 6, 0, time.Local), "protocol": "dns", "verdict": "denied", "name": "a\x1b[31m.test", "port": 53, "reason": "no"},
		map[string]any{"seq": 3, "time": time.Date(2026, 1, 2, 15, 4, 7, 0, time.Local), "protocol": "icmp", "verdict": "allowed", "address": "192.0.2.2"},
	}}))
	mux.HandleFunc("GET /v1/sandboxes/{id}/network/explain", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		answer(200, map[string]any{"allowed": q.Get("port") == "443", "rule": "allow " + q.Get("host"), "reason": "why", "addresses": []any{map[string]any{"address": "192.0.2.1", "allowed": true, "rule": "r"}}})(w, r)
	})
	mux.HandleFunc("PUT /v1/sandboxes/{id}/network", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		answer(200, map[string]any{"default": string(body)})(w, r)
	})
	mux.HandleFunc("DELETE /v1/sandboxes/{id}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("id") != testID {
			answer(404, map[string]any{"error": map[string]string{"code": "not_found", "message": "sandbox not found"}})(w, r)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /v1/sandboxes/{id}/fork", func(w http.ResponseWriter, r *http.Request) {
		var wish struct{ Count int }
		_ = json.NewDecoder(r.Body).Decode(&wish)
		forked := map[string]any{"sandboxes": []any{box}, "errors": []any{}}
		if wish.Count > 1 {
			forked["errors"] = []any{map[string]string{"id": "other", "code": "limit_exceeded", "message": "no \x1broom"}}
		}
		answer(201, forked)(w, r)
	})
	now := time.Now().Add(-90 * time.Second)
	point := func(id, parent, name string) map[string]any {
		return map[string]any{"id": id, "parent_id": parent, "name": name, "created_at": now, "size_bytes": 3<<20 + 1}
	}
	mux.HandleFunc("POST /v1/sandboxes/{id}/checkpoints", answer(201, point("s1", "", "")))
	measured := point("s1", "", "start")
	measured["own_bytes"] = 1<<20 + 1
	mux.HandleFunc("GET /v1/sandboxes/{id}/checkpoints", answer(200, map[string]any{"head": "s4", "disk_bytes": 9 << 20, "checkpoints": []any{
		measured, point("s2", "s1", ""), point("s3", "s2", "\x1b[31m"), point("s4", "s1", "other way"), point("s5", "gone", ""),
	}}))
	mux.HandleFunc("POST /v1/sandboxes/{id}/checkpoints/{checkpoint}/restore", answer(200, box))
	mux.HandleFunc("DELETE /v1/sandboxes/{id}/checkpoints/{checkpoint}", answer(200, nil))
	templates(mux, answer)
	mux.HandleFunc("GET /v1/sandboxes/{id}/exec/stream", echo)
	mux.HandleFunc("GET /v1/sandboxes/{id}/logs", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Linux\r\n%s\x1b", r.URL.Query().Get("follow"))
	})
	mux.HandleFunc("POST /v1/sandboxes/{id}/files/stream/read", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "content")
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// echo is a command that prints its input and ends as its name says, or by a signal.
func echo(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"wrenn.exec.v1.binary"}})
	if err != nil {
		return
	}
	defer conn.CloseNow()
	conn.SetReadLimit(1 << 20)
	say := func(text string) { _ = conn.Write(r.Context(), websocket.MessageText, []byte(text)) }
	ends := map[string]string{
		"three": `{"type":"exit","exit_code":3,"status":"exit status 3"}`,
		"kill":  `{"type":"exit","exit_code":-1,"status":"signal: killed"}`,
		"slow":  `{"type":"exit","exit_code":-1,"status":"signal: killed","reason":"timeout"}`,
		"break": `{"type":"error","code":"internal","data":"the server is broken"}`,
	}
	refusals := map[string]string{
		"missing": `"code":"not_found","data":"command 'missing' not found"`,
		"/etc":    `"code":"forbidden","data":"user 'root' may not run '/etc' in '/root'"`,
	}
	taken := 0
	for {
		kind, text, err := conn.Read(r.Context())
		if err != nil {
			return
		}
		var f struct{ Type, Cmd, Signal string }
		if kind == websocket.MessageBinary {
			if before, eof := bytes.CutSuffix(text[1:], []byte("\x04\x04")); eof { // the end of a terminal's input within a line
				_ = conn.Write(r.Context(), kind, append([]byte{3}, before...))
				say(`{"type":"exit","exit_code":0,"status":"exit status 0"}`)
				continue
			}
			_ = conn.Write(r.Context(), kind, append([]byte{1}, text[1:]...))
			taken += len(text) - 1
			say(fmt.Sprintf(`{"type":"input","offset":%d}`, taken))
			continue
		}
		_ = json.Unmarshal(text, &f)
		switch f.Type {
		case "start":
			if refusal := refusals[f.Cmd]; refusal != "" {
				say(`{"type":"error",` + refusal + `}`)
				return
			}
			say(`{"type":"start","pid":42}`)
			say(`{"type":"stderr","data":"to stderr\n"}`)
			if end := ends[f.Cmd]; end != "" {
				say(end)
			} else if f.Cmd == "chatter" {
				say(`{"type":"stdout","data":"y\n"}`)
			}
		case "stdin_close":
			say(`{"type":"exit","exit_code":0,"status":"exit status 0"}`)
		case "signal":
			say(`{"type":"exit","exit_code":-1,"status":"signal: terminated"}`)
		}
	}
}

// templates serves the base, one that is ready and one that failed.
func templates(mux *http.ServeMux, answer func(int, any) http.HandlerFunc) {
	now := time.Now().Add(-90 * time.Second)
	build := func(id, name, state string) map[string]any {
		return map[string]any{"id": id, "template": name, "state": state, "vcpus": 1, "memory_mb": 512, "disk_mb": 10240, "created_at": now, "last_updated": now}
	}
	good, bad := build("t1", "py", "ready"), build("t2", "py:bad", "failed")
	good["from_oci"], good["size_bytes"] = "debian:12", 3<<20+1
	bad["from_sandbox"], bad["reason"] = "i1", "no \x1bway"
	base := map[string]any{"name": "base", "builtin": true}
	all := map[string]any{"base": base, "py": map[string]any{"name": "py", "current": good, "latest": good}, "py:bad": map[string]any{"name": "py:bad", "latest": bad}}
	mux.HandleFunc("POST /v1/templates", func(w http.ResponseWriter, r *http.Request) {
		var wish map[string]any
		_ = json.NewDecoder(r.Body).Decode(&wish)
		of := map[string]map[string]any{"py": good, "py:bad": bad}[wish["name"].(string)]
		if user, given := wish["registry_username"]; given {
			of = maps.Clone(of)
			of["id"] = fmt.Sprintf("user %s password %s", user, wish["registry_password"])
		}
		answer(202, of)(w, r)
	})
	mux.HandleFunc("GET /v1/templates", answer(200, []any{all["base"], all["py"], all["py:bad"]}))
	mux.HandleFunc("GET /v1/templates/{name}", func(w http.ResponseWriter, r *http.Request) { answer(200, all[r.PathValue("name")])(w, r) })
	mux.HandleFunc("DELETE /v1/templates/{name}", answer(200, nil))
	mux.HandleFunc("GET /v1/templates/{name}/generations/{id}", func(w http.ResponseWriter, r *http.Request) {
		from, _ := strconv.Atoi(r.URL.Query().Get("from"))
		lines, of := []string{"booting", "kept"}, good
		if r.PathValue("id") == "t2" {
			lines, of = []string{"no \x1bway"}, bad
		}
		if login := r.PathValue("id"); strings.HasPrefix(login, "user ") {
			lines = append([]string{login}, lines...)
		}
		answer(200, map[string]any{"generation": of, "first": from, "lines": lines[min(from, len(lines)):], "next": len(lines)})(w, r)
	})
}

// here returns the environment of a user of s.
func here(s *httptest.Server) map[string]string {
	return map[string]string{"WRENN_API_KEY": testKey, "HOME": "/nonexistent", "URL": s.URL}
}

func TestCommands(t *testing.T) {
	s := server(t)
	noise := string(bytes.Repeat([]byte{0xff, 0, '\n', 1}, 100<<10))
	for name, test := range map[string]struct {
		args  []string
		stdin string
		want  result
	}{
		"create": {[]string{"sandbox", "create"}, "", result{0, testID + "\n", ""}},
		"port":   {[]string{"sandbox", "port", testID, "80"}, "", result{0, s.URL + "/p/" + testID + "/80/\n", ""}},
		"port, private": {[]string{"sandbox", "port", privateID, "80"}, "", result{0, "https://80-" + privateID + ".example.com/\n",
			"the ports are private: send the token that \"wrenn sandbox get " + privateID + "\" shows as E2b-Traffic-Access-Token\n"}},
		"port, JSON":            {[]string{"-o", "json", "sandbox", "port", privateID, "80"}, "", result{0, "{\n  \"url\": \"https://80-" + privateID + ".example.com/\",\n  \"token\": \"secret\"\n}\n", ""}},
		"port, ended":           {[]string{"sandbox", "port", endedID, "80"}, "", result{1, "", "sandbox " + testID + " has ended\n"}},
		"port-forward, no port": {[]string{"port-forward", testID, "0:0"}, "", result{2, "", "usage: \"0:0\" is not a port: give PORT or LOCAL:PORT, from 1 to 65535\n"}},
		"list": {[]string{"sandbox", "ls"}, "", result{0, "" +
			"ID                     STATE    LEFT   TEMPLATE  VCPUS  MEMORY  AGE  DETAILS\n" +
			testID + "  running  never  base      1      512M    1m   a=1,b=�[31m\n", ""}},
		"network": {[]string{"sandbox", "network", testID}, "", result{0, "default  deny\nallow    1.1.1.1 8.0.0.0/8\ndeny     -\n", ""}},
		"no network": {[]string{"sandbox", "network", testID, "--network", "none", "--allow", "1.1.1.1"}, "", result{0,
			`default  {"default":"deny","allow":["1.1.1.1"]}` + "\nallow    -\ndeny     -\n", ""}},
		"network log": {[]string{"sandbox", "network", "log", testID}, "", result{0,
			"2026-01-02 15:04:05  ended    tls   example.com:443 (192.0.2.1)  sent 10, received 20 bytes in 1.5s\n" +
				"2026-01-02 15:04:06  denied   dns   a�[31m.test:53  no\n2026-01-02 15:04:07  allowed  icmp  192.0.2.2\n", "2 events are lost: there were too many\n"}},
		"network explain":           {[]string{"sandbox", "network", "explain", testID, "pypi.org:443"}, "", result{0, "allowed: why\nrule  allow pypi.org\n192.0.2.1        allowed  r\n", ""}},
		"network explain, any port": {[]string{"sandbox", "network", "explain", testID, "1.1.1.1"}, "", result{0, "denied: why\nrule  allow 1.1.1.1\n192.0.2.1        allowed  r\n", ""}},
		"network explain, no port":  {[]string{"sandbox", "network", "explain", testID, "pypi.org:x"}, "", result{1, "", "\"x\" is not a port: write one of 1 to 65535, as in pypi.org:443\n"}},
		"network again":             {[]string{"sandbox", "network", testID, "--network", "internet"}, "", result{0, `default  {"default":"allow"}` + "\nallow    -\ndeny     -\n", ""}},
		"network headers": {[]string{"sandbox", "network", testID, "--header", "a.test A: x: y", "--header", "a.test B:${secrets.t}"}, "", result{0,
			`default  {"default":"allow","headers":[{"host":"a.test","headers":{"A":"x: y","B":"${secrets.t}"}}]}` + "\nallow    -\ndeny     -\n", ""}},
		"network, no header": {[]string{"sandbox", "network", testID, "--header", "a.test"}, "", result{1, "", "--header is 'HOST NAME: TEXT', such as 'api.example.com Authorization: Bearer ${secrets.token}'\n"}},
		"ids":                {[]string{"sandbox", "ls", "-q"}, "", result{0, testID + "\n", ""}},
		"kill":               {[]string{"sandbox", "kill", testID}, "", result{0, testID + "\n", ""}},
		"kill some":          {[]string{"sandbox", "kill", otherID, testID}, "", result{1, testID + "\n", otherID + ": sandbox not found\n"}},
		"kill what":          {[]string{"sandbox", "kill"}, "", result{1, "", "which sandboxes? Give their ids, or -l NAME=VALUE, or --all\n"}},
		"fork":               {[]string{"sandbox", "fork", testID}, "", result{0, testID + "\n", ""}},
		"fork in part":       {[]string{"sandbox", "fork", testID, "--count", "2"}, "", result{1, testID + "\n", "other: no �room\n"}},
		"checkpoint":         {[]string{"checkpoint", "create", testID, "a name"}, "", result{0, "s1\n", ""}},
		"go back":            {[]string{"checkpoint", "restore", testID, "s1"}, "", result{0, testID + "\n", ""}},
		"no checkpoints":     {[]string{"checkpoint", "rm", testID, "s1", "s2"}, "", result{0, "s1\ns2\n", ""}},
		"checkpoints": {[]string{"checkpoint", "ls", testID}, "", result{0, "" +
			"ID  PARENT  AGE  SIZE  OWN  STORED  NAME\n" +
			"s1  -       1m   4M    2M   no      start\n" +
			"s2  s1      1m   4M    -    no      -\n" +
			"s3  s2      1m   4M    -    no      �[31m\n" +
			"s4  s1      1m   4M    -    no      other way\n" +
			"s5  gone    1m   4M    -    no      -\n", "together 9M\n"}},
		"tree": {[]string{"checkpoint", "tree", testID}, "", result{0, "" +
			testID + "\n" +
			"├── s1  start  1m ago\n" +
			"│   ├── s2  1m ago\n" +
			"│   │   └── s3  �[31m  1m ago\n" +
			"│   └── s4  other way  1m ago  <- the sandbox goes on from here\n" +
			"└── s5  1m ago\n", ""}},
		"templates": {[]string{"template", "ls"}, "", result{0, "" +
			"NAME    BUILD  VCPUS  MEMORY  SIZE  AGE  FROM             STATE\n" +
			"base    -      any    any     -     -    the guest image  built in\n" +
			"py      t1     1      512M    4M    1m   debian:12        ready\n" +
			"py:bad  t2     1      512M    -     1m   sandbox i1       failed: no \ufffdway\n", ""}},
		"template names": {[]string{"template", "ls", "-q"}, "", result{0, "base\npy\npy:bad\n", ""}},
		"build":          {[]string{"template", "build", "py", "--start-cmd", "serve"}, "", result{0, "t1\n", "booting\nkept\n"}},
		"build that fails": {[]string{"template", "build", "py:bad", "--from-sandbox", otherID}, "",
			result{1, "", "no \ufffdway\ntemplate py:bad was not built: no \ufffdway\n"}},
		"build by itself": {[]string{"template", "build", "py", "-d"}, "", result{0, "t1\n", "building; follow it with: wrenn template logs --follow py\n"}},
		"password": {[]string{"template", "build", "py", "--from-oci", "debian:12", "--registry-user", "u", "--registry-password-file", "-"}, "p\n",
			result{0, "t1\n", "user u password p\nbooting\nkept\n"}},
		"password for what": {[]string{"template", "build", "py", "--registry-user", "u"}, "", result{1, "", "a registry's user and password are for --from-oci and a Dockerfile\n"}},
		"build log":         {[]string{"template", "logs", "py"}, "", result{0, "booting\nkept\n", ""}},
		"build log to its end": {[]string{"template", "logs", "-f", "py:bad"}, "",
			result{1, "", "no \ufffdway\ntemplate py:bad was not built: no \ufffdway\n"}},
		"build log of the base": {[]string{"template", "logs", "base"}, "", result{1, "", "template base is built in: there was no build\n"}},
		"a template": {[]string{"template", "get", "py"}, "", result{0, "" +
			"name        py\nstate       ready\nbuild       t1 (1m ago)\n  from      debian:12\n  vcpus     1\n  memory    512 MiB\n  disk      10240 MiB\n  size      4M on the disk\n", ""}},
		"no templates":  {[]string{"template", "rm", "py"}, "", result{0, "py\n", ""}},
		"binary":        {[]string{"sandbox", "exec", testID, "--", "cat"}, noise, result{0, noise, "to stderr\n"}},
		"exit code":     {[]string{"sandbox", "exec", testID, "three", "-x", "--", "-o"}, "", result{3, "", "to stderr\n"}},
		"signal":        {[]string{"sandbox", "exec", testID, "kill"}, "", result{128 + 9, "", "to stderr\n"}},
		"no program":    {[]string{"sandbox", "exec", testID, "missing"}, "", result{127, "", "command 'missing' not found\n"}},
		"no executable": {[]string{"sandbox", "exec", testID, "/etc"}, "", result{126, "", "user 'root' may not run '/etc' in '/root'\n"}},
		"broken stream": {[]string{"sandbox", "exec", testID, "break"}, "", result{1, "", "to stderr\nthe server is broken\nIf the command still runs, follow it with: wrenn sandbox exec --attach 42 " + testID + "\n"}},
		"no command":    {[]string{"sandbox", "exec", testID}, "", result{1, "", "give the command to run after the sandbox's id, or --attach PID\n"}},
		"stats": {[]string{"sandbox", "stats", testID, "--last", "0s"}, "", result{0,
			"TIME                 CPUS  CPU    MEMORY   OF       CACHE   DISK      OF\n" +
				"2026-01-02 15:04:05  2     12.3%  100 MiB  512 MiB  50 MiB  1024 MiB  10240 MiB\n", ""}},
		"no stats":   {[]string{"sandbox", "stats", testID}, "", result{0, "", "no samples: the sandbox was not measured in that time; --last 0s shows all\n"}},
		"json stats": {[]string{"sandbox", "stats", testID, "-o", "json"}, "", result{0, "[]\n", ""}},
		"json exec": {[]string{"-o", "json", "sandbox", "exec", testID, "three"}, "", result{3, "" +
			"{\n  \"stdout\": \"\",\n  \"stderr\": \"to stderr\\n\",\n  \"exit_code\": 3,\n  \"status\": \"exit status 3\"\n}\n", ""}},
		"json exec of bytes": {[]string{"-o", "json", "sandbox", "exec", testID, "cat"}, "\xff", result{0, "" +
			"{\n  \"stdout\": \"/w==\",\n  \"stderr\": \"dG8gc3RkZXJyCg==\",\n  \"encoding\": \"base64\",\n  \"exit_code\": 0,\n  \"status\": \"exit status 0\"\n}\n", ""}},
		"json logs": {[]string{"-o", "json", "sandbox", "logs", "-f", testID}, "", result{0, "{\"line\":\"Linux\"}\n{\"line\":\"true\\u001b\"}\n", ""}},
		"shell":     {[]string{"sandbox", "shell", testID}, "ls\n", result{0, "ls\n", "to stderr\n"}},
		"terminal":  {[]string{"sandbox", "exec", "-t", testID, "tty"}, "a", result{0, "a", "to stderr\n"}},
		"timeout":   {[]string{"sandbox", "exec", "--timeout", "1s", testID, "slow"}, "", result{124, "", "to stderr\nthe command did not end in time and was killed: give it a longer --timeout\n"}},
		"logs":      {[]string{"sandbox", "logs", "-f", testID}, "", result{0, "Linux\r\ntrue\x1b", ""}},
		"download":  {[]string{"sandbox", "cp", testID + ":/x", "-"}, "", result{0, "content", ""}},
		"no copy":   {[]string{"sandbox", "cp", "a", "b"}, "", result{1, "", "neither a nor b is in a sandbox: write ID:PATH\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := invoke(t, strings.NewReader(test.stdin), here(s), append([]string{"--url", s.URL}, test.args...)...)
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Errorf("wrenn %q (-want +got):\n%s", test.args, diff)
			}
		})
	}
}

func TestJSON(t *testing.T) {
	s := server(t)
	got := invoke(t, nil, here(s), "--url", s.URL, "-o", "json", "sandbox", "list")
	var boxes []client.Sandbox
	if err := json.Unmarshal([]byte(got.out), &boxes); err != nil || len(boxes) != 1 || boxes[0].ID != testID || boxes[0].Metadata["b"] != "\x1b[31m" {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestVersion: of this program and the server, also if that does not answer.
func TestVersion(t *testing.T) {
	s := server(t)
	own := versionLine(ownVersion())
	want := "wrenn   " + own + "\nserver  v1.2.3, commit 0123 of an unknown date at " + s.URL + "\n"
	if got := invoke(t, nil, here(s), "--url", s.URL, "version"); got.code != 0 || got.out != want {
		t.Errorf("got %+v, want %q", got, want)
	}
	if got := invoke(t, nil, nil, "--version"); got.code != 0 || got.out != "wrenn "+own+"\n" {
		t.Errorf("--version: %+v", got)
	}
	s.Close()
	if got := invoke(t, nil, here(s), "--url", s.URL, "version"); got.code != 0 || !strings.Contains(got.out, "no connection to "+s.URL) {
		t.Errorf("without a server: %+v", got)
	}
}

// TestGetEnded: of a sandbox that ended, get shows when and why.
func TestGetEnded(t *testing.T) {
	s := server(t)
	got := invoke(t, nil, here(s), "--url", s.URL, "sandbox", "get", endedID)
	for _, line := range []string{"state     stopped\n", "reason    it was not used\n", "ended     2026-01-02 16:04:05 (", "ended by  timeout\n"} {
		if !strings.Contains(got.out, line) {
			t.Errorf("no %q in %+v", line, got)
		}
	}
}

// TestKeyStaysWithItsServer: a configuration's key must not reach another server, named by --url.
func TestKeyStaysWithItsServer(t *testing.T) {
	s := server(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "wrenn", "config.toml")
	if err := os.MkdirAll(filepath.Dir(config), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, fmt.Appendf(nil, "url = %q\nkey = %q\n", s.URL, testKey), 0o600); err != nil {
		t.Fatal(err)
	}
	environ := map[string]string{"XDG_CONFIG_HOME": dir}
	if got := invoke(t, nil, environ, "sandbox", "create"); got.code != 0 {
		t.Errorf("with the configuration alone: %+v", got)
	}
	other := server(t)
	if got := invoke(t, nil, environ, "--url", other.URL, "sandbox", "create"); got.code != 1 || !strings.Contains(got.err, "no API key for "+other.URL) {
		t.Errorf("with another server: %+v", got)
	}
	environ["WRENN_API_KEY"] = "e2b_wrong"
	if got := invoke(t, nil, environ, "sandbox", "create"); got.code != 1 || !strings.Contains(got.err, "unknown or revoked") {
		t.Errorf("the environment's key does not win: %+v", got)
	}
	delete(environ, "WRENN_API_KEY")

	// E2B_API_KEY may be that of a cloud.
	environ["E2B_API_KEY"] = "e2b_cloud"
	if got := invoke(t, nil, environ, "sandbox", "create"); got.code != 0 {
		t.Errorf("E2B's key is used in place of the configuration's: %+v", got)
	}
	if got := invoke(t, nil, environ, "--url", other.URL, "sandbox", "create"); got.code != 1 || !strings.Contains(got.err, "E2B_API_KEY is sent only to") {
		t.Errorf("E2B's key for another server: %+v", got)
	}
	alone := map[string]string{"HOME": t.TempDir(), "E2B_API_KEY": testKey, "E2B_API_URL": other.URL + "/"}
	if got := invoke(t, nil, alone, "sandbox", "create"); got.code != 0 {
		t.Errorf("with E2B's variables alone: %+v", got)
	}
}

// TestLogin: a server is kept if its key works; the one in use before is not lost.
func TestLogin(t *testing.T) {
	s := server(t)
	environ := map[string]string{"XDG_CONFIG_HOME": t.TempDir()}
	config := filepath.Join(environ["XDG_CONFIG_HOME"], "wrenn", "config.toml")
	if err := os.MkdirAll(filepath.Dir(config), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, []byte("url = 'http://127.0.0.1:1'\nkey = 'k'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(stdin string, args ...string) result {
		return invoke(t, strings.NewReader(stdin), environ, args...)
	}
	for _, step := range []struct {
		stdin string
		args  []string
		want  result
	}{
		{"e2b_wrong\n", []string{"login", s.URL}, result{1, "", s.URL + ": the API key is unknown or revoked\n"}},
		{"", []string{"login", s.URL}, result{1, "", "no API key was given\n"}},
		{testKey + "\n", []string{"login", "--name", "prod", s.URL + "/"}, result{0, s.URL + " is in use from now on, as prod\n", ""}},
		{"", []string{"sandbox", "create"}, result{0, testID + "\n", ""}},
		{"", []string{"context", "use", "local"}, result{}},
		{"", []string{"context", "list"}, result{0, "NAME   URL                     IN USE\nlocal  http://127.0.0.1:1      yes\nprod   " + s.URL + "  -\n", ""}},
		{"", []string{"--context", "prod", "sandbox", "create"}, result{0, testID + "\n", ""}},
		{"", []string{"--context", "none", "sandbox", "create"}, result{1, "", "there is no context none: wrenn context list shows them, wrenn login makes one\n"}},
		{"", []string{"context", "rm", "local"}, result{}},
		{"", []string{"sandbox", "create"}, result{1, "", "no API key for http://127.0.0.1:8080: set WRENN_API_KEY, or start a server here with: sudo wrenn up\n"}},
	} {
		if diff := cmp.Diff(step.want, run(step.stdin, step.args...), cmp.AllowUnexported(result{})); diff != "" && step.args[1] != "list" {
			t.Errorf("wrenn %q (-want +got):\n%s", step.args, diff)
		} else if got := run("", "context", "list"); strings.Contains(got.out, testKey) {
			t.Errorf("a list has a key: %+v", got)
		}
	}
	if info, err := os.Stat(config); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// TestLend: the file is the owner's alone, is replaced, and a link leads nowhere.
func TestLend(t *testing.T) {
	home := t.TempDir()
	path := filepath.Join(home, ".config", "wrenn", "config.toml")
	if err := lend(home, os.Getuid(), os.Getgid(), settings.File{URL: "http://old", Key: "old"}); err != nil {
		t.Fatal(err)
	}
	other := map[string]settings.Server{"other": {URL: "http://other", Key: "secret"}}
	text, err := toml.Marshal(settings.File{URL: "http://old", Key: "old", Contexts: other})
	if err := errors.Join(err, os.WriteFile(path, text, 0o600)); err != nil {
		t.Fatal(err)
	}
	roots := map[string]settings.Server{"roots": {URL: "http://root", Key: "of root"}}
	if err := lend(home, os.Getuid(), os.Getgid(), settings.File{URL: "http://new", Key: "new", Contexts: roots}); err != nil {
		t.Fatal(err)
	}
	var got settings.File
	text, err = os.ReadFile(path)
	info, statErr := os.Stat(path)
	if err := errors.Join(err, statErr, toml.Unmarshal(text, &got)); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	want := settings.File{URL: "http://new", Key: "new", Contexts: map[string]settings.Server{"other": other["other"], "local": {URL: "http://new", Key: "new"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lent (-want +got):\n%s", diff)
	}
	trap, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(trap, ".config")); err != nil {
		t.Fatal(err)
	}
	if err := lend(trap, os.Getuid(), os.Getgid(), settings.File{URL: "http://x"}); err == nil {
		t.Error("wrote through a link out of the home")
	}
	if files, err := os.ReadDir(outside); err != nil || len(files) > 0 {
		t.Errorf("outside: %v, %v", files, err)
	}
}

func TestNoServer(t *testing.T) {
	s := server(t)
	s.Close()
	got := invoke(t, nil, here(s), "--url", s.URL, "sandbox", "create")
	if got.code != 1 || !strings.Contains(got.err, "sudo wrenn up") {
		t.Errorf("%+v", got)
	}
}

// brokenPipe is an output whose reader is gone.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }

// TestCommandEndsWithItsReader: it ends by the signal that the lost output brings about.
func TestCommandEndsWithItsReader(t *testing.T) {
	s := server(t)
	environ := here(s)
	std := Std{In: blocked(t), Out: brokenPipe{}, Err: io.Discard, Environ: func(name string) string { return environ[name] }}
	err := Command(t.Context(), []string{"--url", s.URL, "sandbox", "exec", testID, "chatter"}, std)
	if code, ok := errors.AsType[exitCode](err); !ok || code.ExitCode() != codeSignal+int(syscall.SIGPIPE) {
		t.Errorf("got %v", err)
	}
}

// TestInterrupt: Ctrl-C ends the command, and the exit code reports that.
func TestInterrupt(t *testing.T) {
	s := server(t)
	environ := here(s)
	ctx, interrupt := context.WithCancel(t.Context())
	std := Std{In: blocked(t), Out: writer(func() { interrupt() }), Err: io.Discard, Environ: func(name string) string { return environ[name] }}
	err := Command(ctx, []string{"--url", s.URL, "sandbox", "exec", testID, "chatter"}, std)
	if code, ok := errors.AsType[exitCode](err); !ok || code.ExitCode() != codeSignal+int(syscall.SIGINT) {
		t.Errorf("got %v", err)
	}
}

type writer func()

func (w writer) Write(p []byte) (int, error) {
	w()
	return len(p), nil
}

// blocked returns an input without any data until the test ends.
func blocked(t *testing.T) io.Reader {
	t.Helper()
	r, w := io.Pipe()
	t.Cleanup(func() { w.Close() })
	return r
}

func TestReceiveIsWholeOrNothing(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := receive(name, strings.NewReader("old")); err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	go func() {
		_, _ = io.WriteString(w, "ne")
		w.CloseWithError(io.ErrUnexpectedEOF)
	}()
	if err := receive(name, r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("receive() of a cut file = %v", err)
	}
	files, err := os.ReadDir(filepath.Dir(name))
	if text, _ := os.ReadFile(name); err != nil || string(text) != "old" || len(files) != 1 {
		t.Errorf("afterwards: %q, %v, %v", text, files, err)
	}
}

// TestHelp compares the help pages with golden files, so that changes are reviewed. Run with -update to accept them.
func TestHelp(t *testing.T) {
	for _, page := range []string{
		"", "up", "doctor", "sandbox create", "sandbox list", "sandbox exec", "sandbox shell", "sandbox kill", "sandbox cp", "sandbox logs", "sandbox fork", "checkpoint", "template", "template build", "key create", "completion", "verify fork",
	} {
		t.Run(page, func(t *testing.T) {
			got := invoke(t, nil, nil, append(strings.Fields(page), "--help")...)
			file := filepath.Join("testdata", "help", strings.ReplaceAll("wrenn "+page, " ", "-")+".txt")
			file = strings.Replace(file, "-.txt", ".txt", 1)
			if *update {
				if err := os.WriteFile(file, []byte(got.out), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.out); diff != "" || got.code != 0 {
				t.Errorf("code %d (-want +got):\n%s", got.code, diff)
			}
		})
	}
}

// TestHelpCommand: help COMMAND prints what COMMAND --help does.
func TestHelpCommand(t *testing.T) {
	for _, page := range []string{"", "sandbox", "sandbox exec"} {
		words := strings.Fields(page)
		got, want := invoke(t, nil, nil, append([]string{"help"}, words...)...), invoke(t, nil, nil, append(words, "--help")...)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(result{})); diff != "" || got.code != 0 {
			t.Errorf("help %s (-want +got):\n%s", page, diff)
		}
	}
}

func TestWrongCommandLine(t *testing.T) {
	for _, args := range [][]string{{"nothing"}, {"sandbox", "create", "--vcpus", "many"}, {"sandbox", "create", "--timeout", "0s"}, {"-o", "xml", "version"}, {"sandbox", "create", "--on-timeout", "sell"}, {"sandbox", "fork"},
		{"sandbox", "create", "--vcpus", "0"}, {"sandbox", "create", "-m", "0"}, {"sandbox", "create", "--disk", "0M"}, {"sandbox", "list", "-n", "0"},
		{"sandbox", "fork", testID, "-n", "0"}, {"sandbox", "exec", "--timeout", "0s", testID, "true"}, {"key", "create", "x", "--expires", "0s"},
	} {
		if got := invoke(t, nil, nil, args...); got.code != 2 || got.err == "" {
			t.Errorf("wrenn %q = %+v", args, got)
		}
	}
}

// TestAlign: a table fits in the width of a terminal.
func TestAlign(t *testing.T) {
	rows := [][]string{{"ID", "STATE", "DETAILS"}, {"i1", "running", "a=\x1b1"}, {"i2", "é", strings.Repeat("x", 30)}}
	for width, want := range map[int]string{
		0:  "ID  STATE    DETAILS\ni1  running  a=�1\ni2  é        " + strings.Repeat("x", 30) + "\n",
		30: "ID  STATE    DETAILS\ni1  running  a=�1\ni2  é        xxxxxxxxxxxxxxxx…\n",
		5:  "ID  STATE    DETAILS\ni1  running  a=�1\ni2  é        xxxxxxxxx…\n",
	} {
		var got strings.Builder
		for _, line := range align(rows, width) {
			got.WriteString(strings.Join(line, "") + "\n")
		}
		if diff := cmp.Diff(want, got.String()); diff != "" {
			t.Errorf("width %d (-want +got):\n%s", width, diff)
		}
	}
}

func TestHarmless(t *testing.T) {
	var out bytes.Buffer
	for _, text := range []string{"a\r\nb\x1b[31m\tc\xff", "\u009b1m\n"} {
		if n, err := (harmless{&out}).Write([]byte(text)); n != len(text) || err != nil {
			t.Errorf("Write() = %d, %v", n, err)
		}
	}
	if got, want := out.String(), "a\nb�[31m    c��1m\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
