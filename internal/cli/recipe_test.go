package cli

import (
	"os"
	"path/filepath"
	"testing"

	"wrenn.dev"
	"wrenn.dev/images"
	"wrenn.dev/internal/testkit"
)

// TestWriteRecipe: a recipe's files are written, and a program that this installation
// lacks is named.
func TestWriteRecipe(t *testing.T) {
	t.Parallel()
	r, ok := images.FindRecipe("mcp-gateway")
	if !ok || len(r.Programs) != 1 {
		t.Fatalf("the recipe is %+v", r)
	}
	dir := t.TempDir()
	r.Programs = []string{"no-such-program"}
	testkit.WantCode(t, writeRecipe(dir, r), wrenn.NotFound, "no-such-program")
	if _, err := os.Stat(filepath.Join(dir, "Dockerfile")); err != nil {
		t.Error(err)
	}
}
