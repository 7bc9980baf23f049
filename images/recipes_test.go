package images_test

import (
	"io/fs"
	"slices"
	"strings"
	"testing"

	"wrenn.dev/images"
	"wrenn.dev/internal/dockerfile"
)

// TestRecipes: each Dockerfile is one that templates can be built from, and its files exist.
func TestRecipes(t *testing.T) {
	for _, r := range images.Recipes() {
		files, err := r.Files()
		if err != nil {
			t.Fatal(err)
		}
		f, err := files.Open("Dockerfile")
		if err != nil {
			t.Fatal(err)
		}
		plan, err := dockerfile.Parse(f, nil)
		_ = f.Close()
		if err != nil {
			t.Errorf("%s: %v", r.Name, err)
			continue
		}
		if plan.From != "base" || len(plan.Notices) > 0 || (plan.StartCmd == "") != (r.ReadyCmd == "") {
			t.Errorf("%s: from %s, start %q, ready %q, notices: %s", r.Name, plan.From, plan.StartCmd, r.ReadyCmd, strings.Join(plan.Notices, "; "))
		}
		for _, step := range plan.Steps {
			if step.Source == "" || slices.Contains(r.Programs, step.Source) {
				continue
			}
			if _, err := fs.Stat(files, step.Source); err != nil {
				t.Errorf("%s copies what does not exist: %v", r.Name, err)
			}
		}
	}
	if _, ok := images.FindRecipe("nothing"); ok {
		t.Error("there is a recipe for any name")
	}
}
