package image

import "path/filepath"

// Name names the root file system by what it was made from: images of equal
// names have equal content.
func (g Guest) Name() string { return filepath.Base(filepath.Dir(g.RootFS)) }
