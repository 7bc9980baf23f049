package cli

import (
	"cmp"
	"fmt"
	"os"
	"strings"
	"time"

	"wrenn.dev/images"
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
	if r.Missing != "" {
		return nil, fmt.Errorf("template %s is not built yet: %s; build your own with --file", r.Name, r.Missing)
	}
	files, err := r.Files()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "wrenn-recipe-")
	if err != nil {
		return nil, err
	}
	done = func() { _ = os.RemoveAll(dir) } // a few small files may stay
	if err := os.CopyFS(dir, files); err != nil {
		done()
		return nil, err
	}
	c.Context, c.FromTemplate = dir, "base"
	c.VCPUs, c.Memory, c.ReadyCmd = cmp.Or(c.VCPUs, count(r.VCPUs)), cmp.Or(c.Memory, count(r.MemoryMB)), cmp.Or(c.ReadyCmd, r.ReadyCmd)
	c.ReadyTimeout = cmp.Or(c.ReadyTimeout, span{recipeReady})
	return done, nil
}
