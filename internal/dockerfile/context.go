package dockerfile

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// maxFiles bounds the files of a context.
const maxFiles = 500_000

// Context is the directory that COPY copies from. The caller closes it. Symbolic
// links in it are copied as links, and never followed.
type Context struct {
	root   *os.Root
	ignore *patternmatcher.PatternMatcher
	names  []string // all that is not ignored, sorted; nil before it was read
}

// OpenContext opens a directory. Ignore has the text of a .dockerignore; nil is the
// file of that name in the directory, if there is one.
func OpenContext(dir string, ignore io.Reader) (*Context, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("context: %w", err)
	}
	c := &Context{root: root}
	if err := c.readIgnore(ignore); err != nil {
		return nil, errors.Join(fmt.Errorf(".dockerignore: %w", err), root.Close())
	}
	return c, nil
}

// Close closes the directory.
func (c *Context) Close() error { return c.root.Close() }

func (c *Context) readIgnore(ignore io.Reader) error {
	if ignore == nil {
		f, err := c.root.Open(".dockerignore")
		if errors.Is(err, fs.ErrNotExist) {
			ignore = strings.NewReader("")
		} else if err != nil {
			return err
		} else {
			defer f.Close()
			ignore = f
		}
	}
	patterns, err := ignorefile.ReadAll(io.LimitReader(ignore, maxBytes))
	if err != nil {
		return err
	}
	c.ignore, err = patternmatcher.New(patterns)
	return err
}

// list reads the names of the context.
func (c *Context) list() ([]string, error) {
	if c.names != nil {
		return c.names, nil
	}
	err := fs.WalkDir(c.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		ignored, err := c.ignore.MatchesOrParentMatches(name)
		switch {
		case err != nil:
			return err
		case ignored && d.IsDir() && !c.ignore.Exclusions():
			return fs.SkipDir
		case ignored:
			return nil
		case len(c.names) == maxFiles:
			return fmt.Errorf("the context has more than %d files: leave some out by a .dockerignore", maxFiles)
		}
		c.names = append(c.names, name)
		return nil
	})
	return c.names, err
}

// Files are what a COPY step copies.
type Files struct {
	Hash string // of names, modes and contents

	context *Context
	names   []string
	step    Step
}

// Files finds the files of a COPY step, and reads them for their hash.
func (c *Context) Files(step Step) (*Files, error) {
	f := &Files{context: c, step: step}
	sum := sha256.New()
	fmt.Fprintf(sum, "COPY %q %q %d\x00", step.Source, step.Args[1], len(step.Inline))
	if step.Inline != nil {
		_, _ = sum.Write(step.Inline) // never fails
		f.Hash = hex.EncodeToString(sum.Sum(nil))
		return f, nil
	}
	all, err := c.list()
	if err != nil {
		return nil, err
	}
	pattern := strings.Split(step.Source, "/")
	for _, name := range all {
		if step.Source == "." || named(pattern, strings.Split(name, "/")) {
			f.names = append(f.names, name)
		}
	}
	if len(f.names) == 0 {
		return nil, fmt.Errorf("COPY %s: the context has no such file, or .dockerignore leaves it out", step.Source)
	}
	for _, name := range f.names {
		if err := f.addTo(sum, name); err != nil {
			return nil, err
		}
	}
	f.Hash = hex.EncodeToString(sum.Sum(nil))
	return f, nil
}

// named reports whether a pattern names a path or a directory above it.
func named(pattern, parts []string) bool {
	if len(parts) < len(pattern) {
		return false
	}
	for i, p := range pattern {
		if ok, err := path.Match(p, parts[i]); (!ok || err != nil) && p != parts[i] {
			return false
		}
	}
	return true
}

// addTo adds a file to the hash. Times and owners are left out: they differ between
// checkouts.
func (f *Files) addTo(sum hash.Hash, name string) error {
	info, err := f.context.root.Lstat(name)
	if err != nil {
		return err
	}
	fmt.Fprintf(sum, "%q %v ", name, info.Mode())
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := f.context.root.Readlink(name)
		fmt.Fprintf(sum, "%q", target)
		return err
	case info.Mode().IsRegular():
		fmt.Fprintf(sum, "%d ", info.Size())
		return f.read(sum, name)
	}
	return nil
}

func (f *Files) read(to io.Writer, name string) error {
	in, err := f.context.root.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(to, in)
	return err
}

// Archive writes the files as a tar archive, compressed by gzip.
func (f *Files) Archive(to io.Writer) error {
	zipped := gzip.NewWriter(to)
	archive := tar.NewWriter(zipped)
	if f.step.Inline != nil {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.step.Source, Mode: 0o644, Size: int64(len(f.step.Inline)), ModTime: time.Unix(0, 0)}
		if err := archive.WriteHeader(h); err != nil {
			return err
		}
		if _, err := archive.Write(f.step.Inline); err != nil {
			return err
		}
	}
	for _, name := range f.names {
		if err := f.archive(archive, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return errors.Join(archive.Close(), zipped.Close())
}

func (f *Files) archive(to *tar.Writer, name string) error {
	info, err := f.context.root.Lstat(name)
	if err != nil {
		return err
	}
	link := ""
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		if link, err = f.context.root.Readlink(name); err != nil {
			return err
		}
	case !info.IsDir() && !info.Mode().IsRegular():
		return fmt.Errorf("it is not a file, a directory or a link, and cannot be copied")
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Uid, h.Gid, h.Uname, h.Gname = name, 0, 0, "", ""
	if info.IsDir() {
		h.Name += "/"
	}
	if err := to.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	return f.read(to, name)
}
