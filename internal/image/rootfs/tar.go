package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"wrenn.dev"
)

// maxEntries bounds the entries of all archives of a tree; a desktop system has half a million.
const maxEntries = 2_000_000

// block is the disk space that the smallest file or directory counts for: the
// allocation unit of file systems, and more than an inode and a name take.
const block = 4 << 10

// Extract unpacks an archive of a root file system, as `docker export` writes it,
// into the tree: owners, permissions, times, links, file capabilities and user
// attributes. A hostile archive cannot write elsewhere: a path that leads out of the
// tree is an error. So is an archive without its end mark, which a failed export
// does not write. Devices and pipes are skipped: a guest makes its own. The files
// may take limit bytes on a disk in total, see block. It returns how many entries
// were skipped.
func (t *Tree) Extract(ctx context.Context, r io.Reader, limit int64) (skipped int, err error) {
	x := extraction{tree: t, left: limit}
	source := t.source(ctx, r, limit)
	if err := t.unpack(source, x.first); err != nil {
		return 0, err
	}
	return x.skipped, source.finish()
}

// unpack calls each with the entries of an archive in order.
func (t *Tree) unpack(source *source, each func(*tar.Header, io.Reader) error) error {
	archive := tar.NewReader(source)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if source.ctx.Err() != nil {
			return context.Cause(source.ctx)
		}
		if _, ok := errors.AsType[*wrenn.Error](err); ok { // of the reader, such as a registry's
			return err
		}
		if err != nil {
			return &wrenn.Error{Code: wrenn.Invalid, Message: "the archive cannot be read", Err: err}
		}
		if t.entries++; t.entries > maxEntries {
			return wrenn.Errorf(wrenn.Invalid, "the image has more than %d entries", maxEntries)
		}
		if err := each(header, archive); err != nil {
			return fmt.Errorf("unpack %q: %w", header.Name, err)
		}
	}
}

// maxUnused is how much the archives of a tree may have besides what is unpacked:
// headers, entries that are skipped, and what follows an archive's end. It is enough for
// maxEntries headers.
const maxUnused = 1 << 30

// source is the stream of an archive. Reads fail when ctx has ended, and when the
// archives of the tree have more bytes than they may.
type source struct {
	ctx   context.Context
	in    io.Reader
	tree  *Tree
	most  int64 // of tree.read
	ended bool  // the stream ended before the archive
}

// source returns the stream of an archive of which limit bytes may be unpacked.
func (t *Tree) source(ctx context.Context, r io.Reader, limit int64) *source {
	t.most = max(t.most, limit+maxUnused) // the limits of later layers are what is left
	return &source{ctx: ctx, in: r, tree: t, most: t.most}
}

func (s *source) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	n, err := s.in.Read(p)
	if s.tree.read += int64(n); s.tree.read > s.most {
		return 0, exhausted()
	}
	s.ended = s.ended || errors.Is(err, io.EOF)
	return n, err
}

// finish returns an error if the archive was cut off. It reads the padding after
// the archive, so that the exporter does not fail on a closed pipe.
func (s *source) finish() error {
	const padding = 1 << 20
	if s.ended {
		return wrenn.Errorf(wrenn.Invalid, "the archive is empty or cut off: did the export fail?")
	}
	_, _ = io.CopyN(io.Discard, s.in, padding)
	return nil
}

type extraction struct {
	tree    *Tree
	left    int64
	skipped int
}

// first unpacks an entry of an archive that is the only one of its tree. os.Root follows
// links above a path, which may make it longer.
func (x *extraction) first(h *tar.Header, data io.Reader) error {
	if _, err := x.tree.place(h.Name); wrenn.CodeOf(err) == wrenn.Invalid {
		return err
	}
	return x.entry(h, data) // which explains other errors
}

// place follows the links above an entry's path: a directory may be a link, in a
// container image one of a lower layer.
func (t *Tree) place(name string) (string, error) {
	name, err := inside(name)
	if err != nil || name == "." {
		return name, err
	}
	dir, err := t.resolve(path.Dir(name))
	if err != nil {
		return "", err
	}
	name = path.Join(dir, path.Base(name))
	return name, checkPath(name)
}

func (x *extraction) entry(h *tar.Header, data io.Reader) error {
	name, err := inside(h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		return nil // the root itself is made by mke2fs
	}
	if !kept(h) {
		x.skipped++
		return nil
	}
	if err := x.charge(name, h); err != nil {
		return err
	}
	root := x.tree.root
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return escape(err)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		err = x.dir(name)
	case tar.TypeReg:
		err = x.file(name, data)
	case tar.TypeSymlink:
		if err = clear(root, name); err == nil {
			err = root.Symlink(h.Linkname, name)
		}
	case tar.TypeLink:
		return x.hardlink(h.Linkname, name) // it has its target's owner and permissions
	}
	if err != nil {
		return escape(err)
	}
	return escape(x.attributes(name, h))
}

// charge subtracts from left the disk space that an entry needs at most, with the
// missing directories above it. Files that it replaces stay counted.
func (x *extraction) charge(name string, h *tar.Header) error {
	size := int64(len(h.Linkname))
	if h.Typeflag == tar.TypeReg {
		size = h.Size
		for key, value := range xattrs(h) {
			size += int64(len(key) + len(value))
		}
	}
	if size < 0 || size > x.left {
		return exhausted()
	}
	x.left -= block + (size+block-1)/block*block
	for dir := path.Dir(name); dir != "." && x.left >= 0; dir = path.Dir(dir) {
		if _, err := x.tree.root.Lstat(dir); err == nil {
			break
		}
		x.left -= block
	}
	if x.left < 0 {
		return exhausted()
	}
	return nil
}

func exhausted() error {
	return wrenn.Errorf(wrenn.Exhausted, "the archive is larger than the image's file system")
}

// kept reports whether an entry is unpacked: a guest gets only files, directories
// and links.
func kept(h *tar.Header) bool {
	switch h.Typeflag {
	case tar.TypeDir, tar.TypeReg, tar.TypeSymlink, tar.TypeLink:
		return true
	}
	return false
}

// inside returns an entry's name as a path below the root.
func inside(name string) (string, error) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") || strings.ContainsRune(name, 0) || len(name) > unix.PathMax {
		return "", wrenn.Errorf(wrenn.Invalid, "the archive has a path that leads out of it")
	}
	return clean, nil
}

// escape explains an error of os.Root for a path that leads out.
func escape(err error) error {
	// os does not export the error that it returns for such paths.
	if err != nil && strings.Contains(err.Error(), "path escapes from parent") {
		return &wrenn.Error{Code: wrenn.Invalid, Message: "the archive has a path that leads out of it", Err: err}
	}
	return err
}

// clear removes the file that an entry replaces.
func clear(root *os.Root, name string) error {
	if _, err := root.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return root.RemoveAll(name)
}

func (x *extraction) dir(name string) error {
	info, err := x.tree.root.Lstat(name)
	if err == nil && info.IsDir() {
		return nil
	}
	if err := clear(x.tree.root, name); err != nil {
		return err
	}
	return x.tree.root.Mkdir(name, 0o755)
}

func (x *extraction) file(name string, data io.Reader) error {
	if err := clear(x.tree.root, name); err != nil {
		return err
	}
	f, err := x.tree.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, data)
	return errors.Join(err, f.Close())
}

func (x *extraction) hardlink(target, name string) error {
	target, err := inside(target)
	if err != nil {
		return err
	}
	if err := clear(x.tree.root, name); err != nil {
		return escape(err)
	}
	return escape(x.tree.root.Link(target, name))
}

// attributes sets owner, then permissions (chown(2) drops set-user-ID), then
// the rest.
func (x *extraction) attributes(name string, h *tar.Header) error {
	root := x.tree.root
	if err := root.Lchown(name, h.Uid, h.Gid); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeSymlink {
		return nil
	}
	if err := root.Chmod(name, h.FileInfo().Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	if err := x.setXattrs(name, xattrs(h)); err != nil {
		return err
	}
	return root.Chtimes(name, h.ModTime, h.ModTime)
}

// xattrs returns the attributes that mean the same in a guest: file capabilities
// (ping has some) and user attributes.
func xattrs(h *tar.Header) map[string]string {
	attrs := map[string]string{}
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if ok && (attr == "security.capability" || strings.HasPrefix(attr, "user.")) {
			attrs[attr] = value
		}
	}
	return attrs
}

func (x *extraction) setXattrs(name string, attrs map[string]string) error {
	for attr, value := range attrs {
		f, err := x.tree.root.Open(name)
		if err != nil {
			return err
		}
		err = unix.Fsetxattr(int(f.Fd()), attr, []byte(value), 0)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("attribute %s: %w", attr, err)
		}
	}
	return nil
}
