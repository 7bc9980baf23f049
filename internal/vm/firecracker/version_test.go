package firecracker

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestVersionOf(t *testing.T) {
	for _, c := range []struct {
		name, output string
		want         Version
		bad          bool
	}{
		{name: "release", output: "Firecracker v1.12.1\n\n2026-11-24T23:23:59.2 [anonymous-instance:main] Firecracker exiting successfully. exit_code=0\n", want: Version{1, 12, 1, ""}},
		{name: "development", output: "Firecracker v1.17.0-dev\n", want: Version{1, 17, 0, "dev"}},
		{name: "no newline", output: "Firecracker v1.16.1", want: Version{1, 16, 1, ""}},
		{name: "another program", output: "QEMU emulator version 7.2.22\n", bad: true},
		{name: "no version", output: "Firecracker \n", bad: true},
		{name: "two numbers", output: "Firecracker v1.16\n", bad: true},
		{name: "a number that is too long", output: "Firecracker v1.16.99999999999999999999\n", bad: true},
		{name: "nothing", output: "", bad: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := versionOf([]byte(c.output))
			if (err != nil) != c.bad || got != c.want {
				t.Errorf("versionOf() = %v, %v; want %v", got, err, c.want)
			}
		})
	}
}

func FuzzVersionOf(f *testing.F) {
	f.Add([]byte("Firecracker v1.12.1\n"))
	f.Add([]byte("Firecracker v1.17.0-dev\nlog"))
	f.Fuzz(func(t *testing.T, output []byte) {
		v, err := versionOf(output)
		if err != nil {
			return
		}
		again, err := ParseVersion(v.String())
		if err != nil || again != v {
			t.Errorf("ParseVersion(%q) = %v, %v", v, again, err)
		}
	})
}

func TestCapabilities(t *testing.T) {
	for text, want := range map[string]capabilities{
		"1.12.1":     {},
		"1.15.9":     {},
		"1.16.0":     {clockRealtime: true, diffs: true},
		"1.17.0-dev": {clockRealtime: true, diffs: true},
		"2.0.0":      {clockRealtime: true, diffs: true},
	} {
		v, err := ParseVersion(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := v.capabilities(); got != want {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
}

// TestLoadSendsWhatTheVersionKnows: the API refuses a body with a field that is unknown to it.
func TestLoadSendsWhatTheVersionKnows(t *testing.T) {
	base := `{"snapshot_path":"state","mem_backend":{"backend_type":"File","backend_path":"memory"},"resume_vm":true`
	for text, want := range map[string]string{
		"1.12.1": base + `}`,
		"1.16.1": base + `,"clock_realtime":true,"track_dirty_pages":true}`,
	} {
		v, err := ParseVersion(text)
		if err != nil {
			t.Fatal(err)
		}
		got, err := json.Marshal(loadCall(v.capabilities(), "tap0", "tap0"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("%s: body (-want +got):\n%s", text, diff)
		}
	}
	body, err := json.Marshal(loadCall(capabilities{}, "tap0", "tap1"))
	if want := base + `,"network_overrides":[{"iface_id":"eth0","host_dev_name":"tap1"}]}`; err != nil || string(body) != want {
		t.Errorf("another TAP: %s, %v; want %s", body, err, want)
	}
}

func TestLoads(t *testing.T) {
	for _, c := range []struct {
		ours, made string
		want       bool
	}{
		{"1.16.1", "1.16.0", true},
		{"1.16.1", "1.16.1", true},
		{"1.17.0", "1.16.1", false},
		{"1.16.1", "1.17.0", false},
		{"1.17.0", "1.17.0-dev", false},
		{"2.16.1", "1.16.1", false},
	} {
		ours, _ := ParseVersion(c.ours)
		made, _ := ParseVersion(c.made)
		if got := ours.loads(made); got != c.want {
			t.Errorf("%s loads one of %s: %v", c.ours, c.made, got)
		}
	}
}
