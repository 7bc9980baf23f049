package images

import (
	"embed"
	"io/fs"
	"path"
)

// Recipe is how a well-known template is built by its name alone, from the base.
type Recipe struct {
	Name            string
	VCPUs, MemoryMB int    // of its sandboxes
	ReadyCmd        string // as of a template
	// Programs are names of programs of Wrenn that the Dockerfile copies, too.
	Programs []string
}

var recipes = []Recipe{
	{Name: "base", VCPUs: 2, MemoryMB: 1024},
	{Name: "code-interpreter-v1", VCPUs: 2, MemoryMB: 2048, ReadyCmd: "curl -sf http://127.0.0.1:49999/health"},
	{Name: "desktop", VCPUs: 4, MemoryMB: 4096},
	{Name: "mcp-gateway", VCPUs: 2, MemoryMB: 1024, Programs: []string{"mcp-gateway"}},
}

//go:embed templates
var recipeFiles embed.FS

// Recipes returns all recipes.
func Recipes() []Recipe { return append([]Recipe(nil), recipes...) }

// FindRecipe returns the recipe of a template's name without a tag; ok is false when
// there is none.
func FindRecipe(name string) (r Recipe, ok bool) {
	for _, r := range recipes {
		if r.Name == name {
			return r, true
		}
	}
	return Recipe{}, false
}

// Files returns the Dockerfile of a recipe with the files that it copies, but for its
// Programs.
func (r Recipe) Files() (fs.FS, error) { return fs.Sub(recipeFiles, path.Join("templates", r.Name)) }
