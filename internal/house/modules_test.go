package house

import (
	"encoding/json"
	"go/parser"
	"go/token"
	"maps"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// module is what go mod edit prints of a go.mod.
type module struct {
	Go      string
	Require []struct{ Path, Version string }
	Replace []struct{ New struct{ Path string } }
}

func moduleOf(t *testing.T, file string) module {
	t.Helper()
	text, err := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json", root+"/"+file).Output()
	if err != nil {
		t.Fatal(err)
	}
	var out module
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func (m module) versions() map[string]string {
	out := map[string]string{}
	for _, r := range m.Require {
		out[r.Path] = r.Version
	}
	return out
}

// TestSDKModule: programs that use the SDK get few other modules by it, in the versions
// with which it is tested here.
func TestSDKModule(t *testing.T) {
	sdk, whole := moduleOf(t, "client/go.mod"), moduleOf(t, "go.mod")
	if sdk.Go != whole.Go || len(sdk.Replace) > 0 {
		t.Errorf("client/go.mod has Go %s and replaces %v; want Go %s and none, which users would not get", sdk.Go, sdk.Replace, whole.Go)
	}
	want := []string{"github.com/coder/websocket", "github.com/pelletier/go-toml/v2"}
	if got := slices.Sorted(maps.Keys(sdk.versions())); !slices.Equal(got, want) {
		t.Errorf("the SDK needs %q; want %q alone", got, want)
	}
	tested := whole.versions()
	for path, version := range sdk.versions() {
		if tested[path] != version {
			t.Errorf("client/go.mod has %s %s, go.mod %s", path, version, tested[path])
		}
	}
}

// TestSDKStandsAlone: the SDK and its tests build without the rest of the tree.
func TestSDKStandsAlone(t *testing.T) {
	for _, f := range tracked(t) {
		if !strings.HasPrefix(f, sdk) || path.Ext(f) != ".go" {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), f, read(t, f), parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range file.Imports {
			imported, _ := strconv.Unquote(i.Path.Value)
			if first, _, _ := strings.Cut(imported, "/"); first == "wrenn.dev" && !strings.HasPrefix(imported+"/", "wrenn.dev/"+sdk) {
				t.Errorf("%s imports %s, which is in another module: tests that need it belong into internal/clienttest", f, imported)
			}
		}
	}
}
