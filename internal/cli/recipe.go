package cli

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wrenn.dev/images"
	"wrenn.dev/internal/parts"
)

// recipeReady is how long a recipe's server may take to start; an emulated machine
// takes a minute.
const recipeReady = 10 * time.Minute

// recipe returns the recipe that is meant by a name without a source.
func (c *templateBuildCommand) recipe() (images.Recipe, bool) {
	if c.File != "" || c.Context != "" || c.From != "" || c.FromOCI != "" || c.FromSandbox != "" || c.FromTemplate != "" || c.StartCmd != "" {
		return images.Recipe{}, false
	}
	name, _, _ := strings.Cut(c.Name, ":")
	return images.FindRecipe(name)
}

// useRecipe fills in what a recipe says, and writes its files to a directory, which
// the caller removes with done.
func (c *templateBuildCommand) useRecipe(r images.Recipe) (done func(), err error) {
	dir, err := os.MkdirTemp("", "wrenn-recipe-")
	if err != nil {
		return nil, err
	}
	done = func() { _ = os.RemoveAll(dir) } // a few files may stay
	if err := writeRecipe(dir, r); err != nil {
		done()
		return nil, err
	}
	c.Context, c.FromTemplate = dir, "base"
	c.VCPUs, c.Memory, c.ReadyCmd = cmp.Or(c.VCPUs, count(r.VCPUs)), cmp.Or(c.Memory, count(r.MemoryMB)), cmp.Or(c.ReadyCmd, r.ReadyCmd)
	c.ReadyTimeout = cmp.Or(c.ReadyTimeout, span{recipeReady})
	return done, nil
}

// writeRecipe writes the recipe's files and programs to a directory.
func writeRecipe(dir string, r images.Recipe) error {
	files, err := r.Files()
	if err != nil {
		return err
	}
	if err := os.CopyFS(dir, files); err != nil {
		return err
	}
	for _, name := range r.Programs {
		path, err := parts.Find(name)
		if err != nil {
			return err
		}
		program, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), program, 0o600); err != nil {
			return err
		}
	}
	return nil
}
