package template

import (
	"archive/tar"
	"bufio"
	"cmp"
	"compress/gzip"
	"errors"
	"io"
	"path"
	"strings"
	"time"

	"wrenn.dev"
)

// Bounds of the files of a COPY step, unpacked.
const (
	maxCopiedFiles = 500_000
	maxCopiedBytes = 8 << 30
	maxNameBytes   = 4 << 10
	maxNameParts   = 256
)

// placement says where the files of a COPY step go in a guest.
type placement struct {
	source   string // as the step has it: a path or pattern in the context
	dest     string // absolute
	destDir  bool   // dest is a directory, or is meant to be one
	uid, gid int
	mode     int64 // -1 keeps the archive's
	most     int64 // bytes unpacked; 0 is maxCopiedBytes
}

// limit returns the bytes that the files may have together.
func (p placement) limit() int64 { return cmp.Or(p.most, maxCopiedBytes) }

func tooLarge(limit int64) error {
	return wrenn.Errorf(wrenn.Invalid, "the uploaded files of a step have more than %d MiB, unpacked", limit>>20)
}

// place reads the archive of a COPY step and writes another one to out, which is
// unpacked at the root of the guest. As in a Dockerfile, of a directory that the
// source names the content is copied, merged into dest; of files the files, into
// dest if that is a directory. The archive is not trusted: names that leave it and
// special files are errors.
func (p placement) place(archive io.Reader, out io.Writer) error {
	in, err := decompressed(archive, p.limit())
	if err != nil {
		return err
	}
	w := &placer{placement: p, out: tar.NewWriter(out)}
	files := tar.NewReader(in)
	for {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return badArchive(err)
		}
		if err := w.add(h, files); err != nil {
			return err
		}
	}
	if w.files == 0 {
		return wrenn.Errorf(wrenn.Invalid, "there are no files for %.200q in what was uploaded", p.source)
	}
	return w.out.Close()
}

func badArchive(err error) error {
	if _, ok := errors.AsType[*wrenn.Error](err); ok {
		return err
	}
	return &wrenn.Error{Code: wrenn.Invalid, Message: "the uploaded files are not a whole tar archive, or one of tar and gzip", Err: err}
}

// decompressed returns the archive as tar alone, no longer than the limit.
func decompressed(archive io.Reader, limit int64) (io.Reader, error) {
	buffered := bufio.NewReader(archive)
	magic, err := buffered.Peek(2)
	if err != nil || magic[0] != 0x1f || magic[1] != 0x8b {
		return &bounded{buffered, limit, limit}, nil //nolint:nilerr // tar explains an archive that is too short
	}
	unzipped, err := gzip.NewReader(buffered)
	if err != nil {
		return nil, badArchive(err)
	}
	return &bounded{unzipped, limit, limit}, nil
}

// bounded is a reader that fails after some bytes.
type bounded struct {
	io.Reader
	left, limit int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, tooLarge(b.limit)
	}
	n, err := b.Reader.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// placer writes the archive for the guest.
type placer struct {
	placement
	out   *tar.Writer
	files int
	whole int   // files that are dest itself
	bytes int64 // of files; the holes of sparse ones count
	buf   []byte
}

func (w *placer) add(h *tar.Header, content io.Reader) error {
	if w.files++; w.files > maxCopiedFiles {
		return wrenn.Errorf(wrenn.Invalid, "the uploaded files of a step are more than %d", maxCopiedFiles)
	}
	inContext, err := insideName(h.Name)
	if err != nil {
		return err
	}
	to := w.target(inContext, h.Typeflag == tar.TypeDir)
	if to == w.dest && !w.destDir {
		if w.whole++; w.whole > 1 {
			return wrenn.Errorf(wrenn.Invalid, "%.200q names several files: end the destination with a / to copy them into a directory", w.source)
		}
	}
	next := &tar.Header{
		Typeflag: h.Typeflag, Name: strings.TrimPrefix(to, "/"), Mode: h.Mode & 0o7777, Uid: w.uid, Gid: w.gid,
		ModTime: h.ModTime.Truncate(time.Second), Format: tar.FormatGNU, // which BusyBox's tar reads, too
	}
	if w.mode >= 0 {
		next.Mode = w.mode
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if next.Name == "" || to == w.dest && w.destDir { // exists, and keeps its owner and mode
			return nil
		}
		next.Name += "/"
	case tar.TypeSymlink:
		next.Linkname, next.Mode = h.Linkname, 0o777
	case tar.TypeLink:
		target, err := insideName(h.Linkname)
		if err != nil {
			return err
		}
		next.Linkname = strings.TrimPrefix(w.target(target, false), "/")
	case tar.TypeReg:
		if h.Size > w.limit()-w.bytes { // a sparse file is larger than the archive
			return tooLarge(w.limit())
		}
		w.bytes += h.Size
		next.Size = h.Size
	default:
		return wrenn.Errorf(wrenn.Invalid, "%.200q cannot be copied: it is not a file, directory or link", h.Name)
	}
	if err := w.out.WriteHeader(next); err != nil {
		return writeError(err)
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	return w.copy(content)
}

// copy copies a file's content. It tells errors of the archive from those of out.
func (w *placer) copy(content io.Reader) error {
	if w.buf == nil {
		w.buf = make([]byte, 64<<10)
	}
	for {
		n, err := content.Read(w.buf)
		if n > 0 {
			if _, err := w.out.Write(w.buf[:n]); err != nil {
				return writeError(err)
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return badArchive(err)
		}
	}
}

// writeError returns an error of the output, or why tar cannot hold a file.
func writeError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) {
		return badArchive(err)
	}
	return err
}

// insideName returns a name of the archive as a clean path, "." is the context
// itself. A name that leaves the context is an error.
func insideName(name string) (string, error) {
	clean := path.Clean(strings.TrimSuffix(name, "/"))
	if path.IsAbs(name) || clean == ".." || strings.HasPrefix(clean, "../") || !wrenn.IsText(name) || len(name) > maxNameBytes || strings.Count(name, "/") > maxNameParts {
		return "", wrenn.Errorf(wrenn.Invalid, "the uploaded files have %.200q, which is not a path inside of the context", name)
	}
	return clean, nil
}

// target returns where a file or directory of the context goes.
func (w *placer) target(inContext string, isDir bool) string {
	root, rest := split(w.source, inContext)
	switch {
	case rest != "":
		return path.Join(w.dest, rest)
	case isDir:
		return w.dest
	case w.destDir:
		return path.Join(w.dest, path.Base(root))
	}
	return w.dest
}

// split splits a path of the context into the part that the source names, and the
// rest below it. What it does not name is named by itself: clients know patterns
// that are not known here.
func split(source, inContext string) (root, rest string) {
	source = path.Clean(source)
	if source == "." {
		if inContext == "." {
			return ".", ""
		}
		return ".", inContext
	}
	pattern := strings.Split(strings.TrimPrefix(source, "/"), "/")
	parts := strings.Split(inContext, "/")
	if n := shortest(pattern, parts); n > 0 {
		return path.Join(parts[:n]...), path.Join(parts[n:]...)
	}
	return inContext, ""
}

// shortest returns how many of the parts, from the first on, a pattern names: the
// least, 0 if it names none. Its parts are those of path.Match, or **, which is any
// number of parts.
func shortest(pattern, parts []string) int {
	named := make([]bool, len(parts)+1) // by the pattern so far: the first parts, of each number
	named[0] = true
	for _, p := range pattern {
		next := make([]bool, len(parts)+1)
		for n := range named {
			switch {
			case p == "**":
				next[n] = named[n] || n > 0 && next[n-1]
			case n > 0 && named[n-1]:
				ok, err := path.Match(p, parts[n-1])
				next[n] = ok && err == nil
			}
		}
		named = next
	}
	for n := 1; n <= len(parts); n++ {
		if named[n] {
			return n
		}
	}
	return 0
}
