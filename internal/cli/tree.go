package cli

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// Bounds of a tree that a sandbox sends: sandboxes are not trusted.
	maxEntries = 1_000_000
	maxName    = 4096     // as in Linux
	maxNames   = 64 << 20 // bytes of directory names, which are kept in memory
	// permissions is the part of a mode that is copied: set-user-ID and the like
	// are only for programs that the caller trusts.
	permissions = 0o777
)

// pack writes the tree below dir as an archive with names relative to dir. It
// leaves out what is neither a file, a directory nor a link, and calls skipped for it.
func pack(w io.Writer, dir string, skipped func(name string)) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // it was only read
	out := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if name == "." {
			return nil // the receiver makes the directory
		}
		switch info.Mode().Type() {
		case 0, fs.ModeDir, fs.ModeSymlink:
			return packOne(out, root, name, info)
		}
		skipped(filepath.Join(dir, name))
		return nil
	})
	if err != nil {
		return err
	}
	return out.Close()
}

func packOne(out *tar.Writer, root *os.Root, name string, info fs.FileInfo) error {
	header := &tar.Header{
		Name: name, Mode: int64(info.Mode() & permissions), ModTime: info.ModTime().Truncate(time.Second), Format: tar.FormatPAX,
	}
	switch info.Mode().Type() {
	case fs.ModeDir:
		header.Typeflag, header.Name = tar.TypeDir, header.Name+"/"
	case fs.ModeSymlink:
		target, err := root.Readlink(name)
		if err != nil {
			return err
		}
		header.Typeflag, header.Linkname = tar.TypeSymlink, target
	default:
		header.Typeflag, header.Size = tar.TypeReg, info.Size()
	}
	if header.Typeflag != tar.TypeReg {
		return out.WriteHeader(header)
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := out.WriteHeader(header); err != nil {
		return err
	}
	n, err := io.CopyN(out, f, header.Size)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s became shorter while it was copied: %d bytes of %d", name, n, header.Size)
	}
	return err
}

// unpacker writes an untrusted archive below a directory. Nothing is written
// outside of it, whatever the names and links in the archive are: the directory
// is an os.Root, and a file or a link replaces an existing one of its name.
type unpacker struct {
	root    *os.Root
	fresh   bool              // the directory did not exist before
	left    int64             // bytes of content still allowed
	skipped func(name string) // called for what is not a file, directory or link
	dirs    []directory       // get their modes and times at the end, after the last write below them
	names   int               // bytes of their names
}

type directory struct {
	name string
	mode fs.FileMode
	time time.Time
}

// unpack writes the archive r below dir, which is made if needed; at most limit
// bytes of content. What was written before an error stays.
func unpack(r io.Reader, dir string, limit int64, skipped func(string)) error {
	_, err := os.Stat(dir)
	u := &unpacker{fresh: errors.Is(err, fs.ErrNotExist), left: limit, skipped: skipped}
	if err := os.MkdirAll(dir, 0o777); err != nil { // the umask applies, as in any program
		return err
	}
	if u.root, err = os.OpenRoot(dir); err != nil {
		return err
	}
	defer func() { _ = u.root.Close() }() // all files written through it are closed already
	return errors.Join(u.entries(tar.NewReader(r)), u.finish())
}

func (u *unpacker) entries(in *tar.Reader) error {
	for range maxEntries {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = u.entry(header, in)
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("more than %d files: copy a part of it", maxEntries)
}

func (u *unpacker) entry(header *tar.Header, content io.Reader) error {
	name := path.Clean(header.Name)
	if !filepath.IsLocal(name) || len(name) > maxName {
		return fmt.Errorf("the sandbox sent a file named %.200q, which is not below the requested directory", header.Name)
	}
	if parent := path.Dir(name); parent != "." {
		if err := u.root.MkdirAll(parent, 0o777); err != nil {
			return err
		}
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return u.dir(name, header)
	case tar.TypeReg:
		return u.file(name, header, content)
	case tar.TypeSymlink:
		return u.link(name, func() error { return u.root.Symlink(header.Linkname, name) })
	case tar.TypeLink:
		return u.hardLink(name, path.Clean(header.Linkname))
	default:
		u.skipped(name)
		return nil
	}
}

// dir makes a directory, or uses the existing one.
func (u *unpacker) dir(name string, header *tar.Header) error {
	if name == "." && !u.fresh {
		return nil // the caller's existing directory keeps its mode and time
	}
	info, err := u.root.Lstat(name)
	if err == nil && !info.IsDir() { // a link to a directory is not a directory
		return fmt.Errorf("%s exists already and is not a directory", name)
	}
	if err != nil {
		// The owner must be able to write to it; finish sets the final mode.
		if err := u.root.Mkdir(name, 0o700); err != nil {
			return err
		}
	}
	if u.names += len(name); u.names > maxNames {
		return errors.New("too many directories: copy a part of it")
	}
	u.dirs = append(u.dirs, directory{name, fs.FileMode(header.Mode & permissions), header.ModTime})
	return nil
}

// file writes a file under another name and renames it when it is complete.
func (u *unpacker) file(name string, header *tar.Header, content io.Reader) (err error) {
	for record := range header.PAXRecords {
		if strings.HasPrefix(record, "GNU.sparse.") { // the file would be larger than the content sent for it
			return fmt.Errorf("%s: the sandbox sent a sparse file, which is not allowed", name)
		}
	}
	if u.left -= header.Size; u.left < 0 {
		return errors.New("the directory is larger than the limit: copy a part of it, or raise --max-size")
	}
	staged := path.Join(path.Dir(name), ".wrenn-"+rand.Text())
	f, err := u.root.OpenFile(staged, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = u.root.Remove(staged) // the first error is the one that counts
		}
	}()
	_, err = io.Copy(f, content)
	if err = errors.Join(err, f.Chmod(fs.FileMode(header.Mode&permissions)), f.Close()); err != nil {
		return err
	}
	if err := u.root.Chtimes(staged, header.ModTime, header.ModTime); err != nil {
		return err
	}
	return u.root.Rename(staged, name)
}

// hardLink makes another name for a file that was received before.
func (u *unpacker) hardLink(name, target string) error {
	info, err := u.root.Lstat(target)
	if err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("%s: a link to %.200q, which is not a file that was sent before", name, target)
	}
	if target == name {
		return nil
	}
	return u.link(name, func() error { return u.root.Link(target, name) })
}

// link calls make to create a link in place of an existing file. An existing directory is an error.
func (u *unpacker) link(name string, make func() error) error {
	info, err := u.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return make()
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("%s exists already and is a directory", name)
	}
	if err := u.root.Remove(name); err != nil {
		return err
	}
	return make()
}

// finish gives the directories their modes and times, the deepest first.
func (u *unpacker) finish() error {
	var errs []error
	for _, d := range slices.Backward(u.dirs) {
		if info, err := u.root.Lstat(d.name); err != nil || !info.IsDir() {
			continue // another entry replaced it
		}
		errs = append(errs, u.root.Chtimes(d.name, d.time, d.time), u.root.Chmod(d.name, d.mode))
	}
	return errors.Join(errs...)
}
