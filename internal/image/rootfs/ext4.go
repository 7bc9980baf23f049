package rootfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"wrenn"
)

// MakeExt4 makes the new file image an ext4 file system of so many bytes, with
// a journal, that holds a copy of tree, owners and extended attributes included.
// The file is sparse. When it fails the file may be there; remove it.
func MakeExt4(ctx context.Context, tree, image string, size int64) error {
	// lazy_*: a new file is all zeros already. ^features: kernels of before
	// 2022 and 2017 that somebody may configure do not know these.
	_, err := run(ctx, "", "mke2fs", "-q", "-t", "ext4", "-d", tree, "-m", "0", "-L", "wrenn",
		"-O", "^orphan_file,^metadata_csum_seed",
		"-E", "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,nodiscard",
		image, fmt.Sprintf("%dk", size>>10))
	return err
}

// Check says whether an image is a whole file system; it changes nothing.
func Check(ctx context.Context, image string) error {
	_, err := run(ctx, "", "e2fsck", "-f", "-n", image)
	return err
}

// File is a file to put into an image, root's.
type File struct {
	Path string // in the image, absolute, in an existing directory; links to directories are followed
	Data []byte
	Mode os.FileMode // permissions
}

// Inject writes files into an image that nobody uses, over what is there, and
// reads each back. scratch is an existing directory for copies of them. When it
// fails the image may be damaged; remove it.
func Inject(ctx context.Context, image, scratch string, files []File) error {
	image, err := filepath.Abs(image)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(scratch, "inject-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // what stays, the next build sweeps
	var script strings.Builder
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
	// debugfs ends with 0 whatever went wrong: what counts is what is read back.
	said, err := run(ctx, dir, "debugfs", "-w", "-f", "commands", image)
	if err != nil {
		return err
	}
	for i, f := range files {
		if err := same(filepath.Join(dir, fmt.Sprintf("out%d", i)), f.Data); err != nil {
			return explain(ctx, "debugfs", fmt.Errorf("write %s: %w", f.Path, err), []byte(said))
		}
	}
	return nil
}

// commands are what debugfs(8) has to do for a file. It writes into the current
// directory only, and a trailing dot makes it follow a link there (/sbin).
func (f File) commands(in, out string) string {
	dir, base := path.Split(f.Path)
	return fmt.Sprintf("cd %[1]s.\nrm %[2]s\nwrite %[3]s %[2]s\nset_inode_field %[2]s mode %#[4]o\nset_inode_field %[2]s uid 0\nset_inode_field %[2]s gid 0\ndump %[2]s %[5]s\ncd /\n",
		dir, base, in, 0o100000|uint32(f.Mode.Perm()), out)
}

func same(file string, want []byte) error {
	got, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if sha256.Sum256(got) != sha256.Sum256(want) {
		return errors.New("the image holds something else")
	}
	return nil
}

// ReadFile returns a file out of an image that nobody uses; NotFound when there
// is none. Links are followed. scratch is as for Inject.
func ReadFile(ctx context.Context, image, scratch, name string) ([]byte, error) {
	image, err := filepath.Abs(image)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(scratch, "read-*")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // what stays, the next build sweeps
	if _, err := run(ctx, dir, "debugfs", "-R", "dump "+name+" out", image); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, "out"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, wrenn.Errorf(wrenn.NotFound, "the image has no %s", name)
	}
	return bytes.Clone(data), err
}
