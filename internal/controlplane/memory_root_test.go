//go:build root

package controlplane

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
)

// TestExecMemory: outputs of commands that callers wait for are held in a bounded part of
// the memory of the control plane and the agent, and all arrive. Both run in this
// process.
func TestExecMemory(t *testing.T) {
	const (
		execs, output = 20, 8 << 20 // of each of the two outputs
		most          = 450 << 10   // KiB
	)
	s := newSystem(t)
	c, err := client.New(client.Config{URL: s.url, Key: s.key})
	testkit.Must(t, err)
	box := s.create(t, c)
	testkit.Must(t, os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)) // the peak begins now, see proc_pid_clear_refs(5)
	command := fmt.Sprintf(`{"cmd": "sh", "args": ["-c", "head -c %d /dev/zero | tr '\\0' x; head -c %d /dev/zero | tr '\\0' y >&2"], "timeout_sec": 600}`, output, output)
	var all sync.WaitGroup
	for range execs {
		all.Go(func() {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/v1/sandboxes/"+box+"/exec", strings.NewReader(command))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("X-Api-Key", s.key)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			begin, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
			rest, err := io.Copy(io.Discard, resp.Body)
			if err != nil || resp.StatusCode != http.StatusOK || len(begin)+int(rest) < 2*output {
				t.Errorf("%s, %d bytes, %v: %.300s", resp.Status, len(begin)+int(rest), err, begin)
			}
		})
	}
	all.Wait()
	if peak := peakMemory(t); peak > most {
		t.Errorf("%d commands with %d bytes of output took %d KiB at the peak", execs, 2*output, peak)
	}
}

// peakMemory returns VmHWM of this process in KiB.
func peakMemory(t *testing.T) (kib int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	testkit.Must(t, err)
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}
