package rootfs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"wrenn.dev"
)

// MakeExt4 makes the new file image an ext4 file system of size bytes, with a
// journal and a copy of tree, including owners and extended attributes. The file is
// sparse. If MakeExt4 fails the file may exist; the caller must remove it.
func MakeExt4(ctx context.Context, tree, image string, size int64) error {
	// lazy_*: a new file is all zeros already. ^features: an operator's kernel from
	// before 2022 or 2017 may not support these.
	image, err := newImageFile(image)
	if err != nil {
		return err
	}
	if tree, err = filepath.Abs(tree); err != nil {
		return err
	}
	j := jailed{dir: "/", reads: []string{tree}, writes: []string{image}, size: size}
	_, err = j.run(ctx, "mke2fs", "-q", "-t", "ext4", "-d", tree, "-m", "0", "-L", "wrenn",
		"-O", "^orphan_file,^metadata_csum_seed",
		"-E", "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,nodiscard",
		image, fmt.Sprintf("%dk", size>>10))
	return err
}

// Check returns an error if an image is not a consistent file system. It changes
// nothing.
func Check(ctx context.Context, image string) error {
	image, err := filepath.Abs(image)
	if err != nil {
		return err
	}
	j := jailed{dir: "/", reads: []string{image}}
	_, err = j.run(ctx, "e2fsck", "-f", "-n", image)
	return err
}

// File is a file to write into an image, owned by root.
type File struct {
	Path string // in the image, absolute; links to directories are followed, missing directories are made
	Data []byte
	Mode os.FileMode // permissions
}

// Inject writes files into an image that is not in use, replacing existing ones,
// reads each back, and removes the files at the paths in gone. scratch is an
// existing directory for temporary copies. If Inject fails the image may be damaged;
// the caller must remove it.
func Inject(ctx context.Context, image, scratch string, files []File, gone ...string) error {
	image, err := filepath.Abs(image)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(scratch, "inject-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // else the next build removes it
	var script strings.Builder
	for _, name := range gone {
		fmt.Fprintf(&script, "rm %s\n", name)
	}
	look, err := workIn(dir, image, false)
	if err != nil {
		return err
	}
	mkdirs, err := makeParents(ctx, look, image, files)
	if err != nil {
		return err
	}
	script.WriteString(mkdirs)
	for i, f := range files {
		name := fmt.Sprintf("in%d", i)
		if err := os.WriteFile(filepath.Join(dir, name), f.Data, f.Mode); err != nil {
			return err
		}
		script.WriteString(f.commands(name, fmt.Sprintf("out%d", i)))
	}
	if err := os.WriteFile(filepath.Join(dir, "commands"), []byte(script.String()), 0o600); err != nil {
		return err
	}
	// debugfs always exits with 0: reading back shows whether it worked.
	change, err := workIn(dir, image, true)
	if err != nil {
		return err
	}
	output, err := change.run(ctx, "debugfs", "-w", "-f", "commands", image)
	if err != nil {
		return err
	}
	for i, f := range files {
		if err := same(filepath.Join(dir, fmt.Sprintf("out%d", i)), f.Data); err != nil {
			return explain(ctx, "debugfs", fmt.Errorf("write %s: %w", f.Path, err), []byte(output))
		}
	}
	return nil
}

// commands returns the commands for debugfs(8) that write a file. debugfs writes
// only into the current directory, and follows a link to it (/sbin) only with a
// trailing dot.
func (f File) commands(in, out string) string {
	dir, base := path.Split(f.Path)
	return fmt.Sprintf("cd %[1]s.\nrm %[2]s\nwrite %[3]s %[2]s\nset_inode_field %[2]s mode %#[4]o\nset_inode_field %[2]s uid 0\nset_inode_field %[2]s gid 0\ndump %[2]s %[5]s\ncd /\n",
		dir, base, in, 0o100000|uint32(f.Mode.Perm()), out)
}

// makeParents returns the commands that make the missing directories of files,
// upper ones first. It first checks which exist, because debugfs damages a directory
// when it makes it a second time.
func makeParents(ctx context.Context, j jailed, image string, files []File) (string, error) {
	dirs := parents(files)
	var look strings.Builder
	for _, name := range dirs {
		fmt.Fprintf(&look, "cd %s/.\n", name)
	}
	if err := os.WriteFile(filepath.Join(j.dir, "look"), []byte(look.String()), 0o600); err != nil {
		return "", err
	}
	_, stderr, err := j.start(ctx, "debugfs", "-f", "look", image)
	if err != nil {
		return "", explain(ctx, "debugfs", err, stderr)
	}
	messages := "\n" + string(stderr)
	var script strings.Builder
	for _, name := range dirs {
		_, complaint, found := strings.Cut(messages, "\n"+name+"/.: ")
		switch {
		case !found:
		case strings.HasPrefix(complaint, "File not found"):
			upper, base := path.Split(name)
			fmt.Fprintf(&script, "cd %s.\nmkdir %s\ncd /\n", upper, base)
		default:
			complaint, _, _ = strings.Cut(complaint, "\n")
			return "", wrenn.Errorf(wrenn.FailedPrecondition, "the image's %s cannot be a directory: %.100s", name, complaint)
		}
	}
	return script.String(), nil
}

// parents returns the directories of files and those above, upper ones first.
func parents(files []File) []string {
	known := map[string]bool{"/": true}
	for _, f := range files {
		for dir := path.Dir(f.Path); !known[dir]; dir = path.Dir(dir) {
			known[dir] = true
		}
	}
	delete(known, "/")
	return slices.Sorted(maps.Keys(known)) // a directory sorts before those in it
}

// maxDumped bounds a file that is read from an image.
const maxDumped = 64 << 20

// readRegular returns the content of a file that a jailed program made, of limit bytes
// at most. It could have made a link to another file of the host, or a pipe.
func readRegular(file string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("%s is not a regular file, or is larger than %d MiB", filepath.Base(file), limit>>20)
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

func same(file string, want []byte) error {
	got, err := readRegular(file, int64(len(want)))
	if err != nil {
		return err
	}
	if sha256.Sum256(got) != sha256.Sum256(want) {
		return errors.New("the image has other content")
	}
	return nil
}

// ReadFile returns the content of a file in an image that is not in use; NotFound
// when there is none. It follows links. scratch is as for Inject.
func ReadFile(ctx context.Context, image, scratch, name string) ([]byte, error) {
	image, err := filepath.Abs(image)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(scratch, "read-*")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // else the next build removes it
	j, err := workIn(dir, image, false)
	if err != nil {
		return nil, err
	}
	j.size = maxDumped
	if _, err := j.run(ctx, "debugfs", "-R", "dump "+name+" out", image); err != nil {
		return nil, err
	}
	data, err := readRegular(filepath.Join(dir, "out"), maxDumped)
	if errors.Is(err, os.ErrNotExist) {
		return nil, wrenn.Errorf(wrenn.NotFound, "the image has no %s", name)
	}
	return data, err
}
