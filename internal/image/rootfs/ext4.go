package rootfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"wrenn"
)

// MakeExt4 makes the new file image an ext4 file system of size bytes, with a
// journal and a copy of tree, including owners and extended attributes. The file is
// sparse. If MakeExt4 fails the file may exist; the caller must remove it.
func MakeExt4(ctx context.Context, tree, image string, size int64) error {
	// lazy_*: a new file is all zeros already. ^features: an operator's kernel from
	// before 2022 or 2017 may not support these.
	_, err := run(ctx, "", "mke2fs", "-q", "-t", "ext4", "-d", tree, "-m", "0", "-L", "wrenn",
		"-O", "^orphan_file,^metadata_csum_seed",
		"-E", "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,nodiscard",
		image, fmt.Sprintf("%dk", size>>10))
	return err
}

// Check returns an error if an image is not a consistent file system. It changes
// nothing.
func Check(ctx context.Context, image string) error {
	_, err := run(ctx, "", "e2fsck", "-f", "-n", image)
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
	mkdirs, err := makeParents(ctx, image, dir, files)
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
	output, err := run(ctx, dir, "debugfs", "-w", "-f", "commands", image)
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
func makeParents(ctx context.Context, image, dir string, files []File) (string, error) {
	dirs := parents(files)
	var look strings.Builder
	for _, name := range dirs {
		fmt.Fprintf(&look, "cd %s/.\n", name)
	}
	if err := os.WriteFile(filepath.Join(dir, "look"), []byte(look.String()), 0o600); err != nil {
		return "", err
	}
	messages, err := complaints(ctx, dir, "debugfs", "-f", "look", image)
	if err != nil {
		return "", err
	}
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

// complaints runs a program and returns what it wrote to its standard error, each line after a newline.
func complaints(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd, err := command(ctx, dir, name, args...)
	if err != nil {
		return "", err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return "", explain(ctx, name, err, stderr.Bytes())
	}
	return "\n" + stderr.String(), nil
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

func same(file string, want []byte) error {
	got, err := os.ReadFile(file)
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
	if _, err := run(ctx, dir, "debugfs", "-R", "dump "+name+" out", image); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, "out"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, wrenn.Errorf(wrenn.NotFound, "the image has no %s", name)
	}
	return bytes.Clone(data), err
}
