package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"

	"wrenn.dev"
)

// Names with which a layer hides files of the layers below it, see layer.md of the
// OCI image specification.
const (
	whiteout       = ".wh."         // + name: the file of that name
	whiteoutMark   = ".wh..wh."     // + anything else: metadata of AUFS
	whiteoutOpaque = ".wh..wh..opq" // everything in its directory
)

// Bounds of the paths of a layer, which are kept in memory until its end. A desktop
// system in one layer takes half of maxNames.
const (
	maxNames = 128 << 20
	perName  = 64 // the cost of a map entry besides its bytes
)

// ExtractLayer unpacks a layer of a container image over the layers in the tree,
// like Extract, and removes the files that the layer hides. The lowest layer comes
// first. The files may take limit bytes on a disk, see block; ExtractLayer returns
// how many they take.
func (t *Tree) ExtractLayer(ctx context.Context, r io.Reader, limit int64) (size int64, err error) {
	l := layer{extraction: extraction{tree: t, left: limit}, made: map[string]bool{}}
	source := t.source(ctx, r, limit)
	if err := t.unpack(source, l.entry); err != nil {
		return 0, err
	}
	// Read to the end, where the digest is checked.
	if _, err := io.Copy(io.Discard, source); err != nil {
		return 0, err
	}
	return limit - l.left, nil
}

// layer is the extraction of a layer. A layer never hides its own files, in any
// order of its entries: made has their paths, and those of the directories above.
type layer struct {
	extraction
	made  map[string]bool
	names int // the size of made in bytes
}

func (l *layer) entry(h *tar.Header, data io.Reader) error {
	name, err := l.tree.place(h.Name)
	if err != nil || name == "." {
		return err
	}
	dir, base := path.Split(name)
	switch hidden, hides := strings.CutPrefix(base, whiteout); {
	case base == whiteoutOpaque:
		return escape(l.hideAll(path.Clean(dir)))
	case strings.HasPrefix(base, whiteoutMark):
		return nil
	case hides:
		return escape(l.hide(path.Clean(dir), hidden))
	case !kept(h):
		l.skipped++
		return nil
	}
	if err := l.remember(name); err != nil {
		return err
	}
	here := *h
	here.Name = name
	if h.Typeflag == tar.TypeLink {
		if here.Linkname, err = l.tree.place(h.Linkname); err != nil {
			return err
		}
	}
	return l.extraction.entry(&here, data)
}

// remember adds a path of the layer, and those above it, to made.
func (l *layer) remember(name string) error {
	for p := name; p != "." && !l.made[p]; p = path.Dir(p) {
		if l.names += len(p) + perName; l.names > maxNames {
			return wrenn.Errorf(wrenn.Invalid, "the layer's paths have more than %d MiB", maxNames>>20)
		}
		l.made[p] = true
	}
	return nil
}

// hide removes a file or directory of a lower layer.
func (l *layer) hide(dir, name string) error {
	if name == "" || name == "." || name == ".." {
		return wrenn.Errorf(wrenn.Invalid, "the layer hides a file without a name")
	}
	if at := path.Join(dir, name); !l.made[at] {
		return l.tree.root.RemoveAll(at)
	}
	return nil
}

// hideAll removes the files of lower layers in a directory.
func (l *layer) hideAll(dir string) error {
	d, err := l.tree.root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	entries, err := d.ReadDir(-1)
	if err := errors.Join(err, d.Close()); err != nil {
		return err
	}
	for _, e := range entries {
		at := path.Join(dir, e.Name())
		switch {
		case !l.made[at]:
			err = l.tree.root.RemoveAll(at)
		case e.IsDir():
			err = l.hideAll(at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
