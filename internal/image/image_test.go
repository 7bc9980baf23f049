package image

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
)

// staticProgram writes an ELF that cannot run but has the headers that are checked;
// tag makes it differ from others.
func staticProgram(t *testing.T, tag string, segment elf.ProgType) string {
	t.Helper()
	var out bytes.Buffer
	for _, v := range []any{
		elf.Header64{
			Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
		},
		elf.Prog64{Type: uint32(segment)}, []byte(tag),
	} {
		if err := binary.Write(&out, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, out.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func testConfig(t *testing.T) Config {
	t.Helper()
	return Config{
		StateDir: t.TempDir(),
		Envd:     staticProgram(t, "envd", elf.PT_LOAD),
		Stage0:   staticProgram(t, "stage0", elf.PT_LOAD),
		Size:     64 << 20,
	}
}

func prepared(t *testing.T, cfg Config) *preparation {
	t.Helper()
	cfg, err := cfg.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPreparation(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDigestsFollowTheInputs(t *testing.T) {
	cfg := testConfig(t)
	first := prepared(t, cfg)
	for _, tt := range []struct {
		name        string
		change      func(*Config)
		base, guest bool // must change
	}{
		{"nothing", func(*Config) {}, false, false},
		{"the state directory", func(c *Config) { c.StateDir = t.TempDir() }, false, false},
		{"a kernel of one's own", func(c *Config) { c.Kernel = "/vmlinux" }, false, false},
		{"envd", func(c *Config) { c.Envd = staticProgram(t, "newer", elf.PT_LOAD) }, false, true},
		{"stage0", func(c *Config) { c.Stage0 = staticProgram(t, "newer", elf.PT_LOAD) }, false, true},
		{"another order of packages", func(c *Config) { c.Packages = append(DefaultPackages()[1:], DefaultPackages()[0]) }, false, false},
		{"the packages", func(c *Config) { c.Packages = []string{"git"} }, true, true},
		{"the size", func(c *Config) { c.Size = 1 << 30 }, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			changed := cfg
			tt.change(&changed)
			p := prepared(t, changed)
			if got := p.base != first.base; got != tt.base {
				t.Errorf("base changes: %v", got)
			}
			if got := p.guest != first.guest; got != tt.guest {
				t.Errorf("guest changes: %v", got)
			}
		})
	}
}

func TestPrepareRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		change     func(*Config)
		code       wrenn.Code
	}{
		{"no state directory", "state directory is not set", func(c *Config) { c.StateDir = "" }, wrenn.Invalid},
		{"an initramfs alone", "needs its kernel", func(c *Config) { c.Initrd = "/initrd" }, wrenn.Invalid},
		{"no envd", "envd is missing (make build)", func(c *Config) { c.Envd = "/nonexistent/envd" }, wrenn.FailedPrecondition},
		{"no stage0", "stage0 is missing (make build)", func(c *Config) { c.Stage0 = "/nonexistent/stage0" }, wrenn.FailedPrecondition},
		{"a dynamic envd", "not static", func(c *Config) { c.Envd = staticProgram(t, "", elf.PT_INTERP) }, wrenn.FailedPrecondition},
		{"an unknown image", "there is no image mine", func(c *Config) { c.Name = "mine" }, wrenn.NotFound},
		{"a bad name", "cannot name an image", func(c *Config) { c.Name = "../x" }, wrenn.Invalid},
		{"a name of ours", "cannot begin with guest-", func(c *Config) { c.Name = "guest-1" }, wrenn.Invalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(t)
			tt.change(&cfg)
			_, err := Prepare(t.Context(), cfg)
			if wrenn.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Prepare() = %v (%s), want %q (%s)", err, wrenn.CodeOf(err), tt.want, tt.code)
			}
		})
	}
}

func TestParsePackages(t *testing.T) {
	got := parsePackages("# why\ngit\n\ncurl # what for\n git\n")
	if diff := cmp.Diff([]string{"curl", "git"}, got); diff != "" {
		t.Errorf("parsePackages() mismatch (-want +got):\n%s", diff)
	}
}

func TestExportQuotes(t *testing.T) {
	var out bytes.Buffer
	if err := (Guest{Kernel: "/a b", Initrd: "/it's", RootFS: "/r"}).Export(&out); err != nil {
		t.Fatal(err)
	}
	want := "export WRENN_TEST_KERNEL='/a b'\nexport WRENN_TEST_INITRD='/it'\\''s'\nexport WRENN_TEST_ROOTFS='/r'\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("Export() mismatch (-want +got):\n%s", diff)
	}
}

// TestDigestIsOfJSON keeps the names of existing images.
func TestDigestIsOfJSON(t *testing.T) {
	inputs := []any{1, "a<b", []string{"x", "y"}, []byte("any program"), []byte{}, []byte(nil), int64(7)}
	data, err := json.Marshal(inputs)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	if got, want := digest(inputs...), hex.EncodeToString(sum[:8]); got != want {
		t.Errorf("digest() = %s, want %s", got, want)
	}
}
