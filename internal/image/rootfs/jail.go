package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"wrenn.dev/internal/launch"
)

// toolUser runs the programs that read and write the file systems of tenants. It has no
// other processes and no files for longer than such a program runs. It lies below the
// users that machines run as.
const toolUser = 1_999_999_999

// The bounds of a program that works on an image.
const (
	toolMemory     = 4 << 30
	toolCPUSeconds = 1200 // for 2,000,000 files and a slow processor; the caller's deadline is shorter
	toolTasks      = 16
	toolFiles      = 256
)

// jailed runs a program on what a tenant made: a tree or an image may exploit an error
// in it. The program is a user that may write nothing else, in a root with its
// own libraries and the named files, without network, with bounded memory and time.
type jailed struct {
	dir    string   // its working directory
	reads  []string // files and directories that it may read, of any owner
	writes []string // files and directories that it may write to; they are its user's meanwhile
	size   int64    // of the largest file that it may write
}

// configurations are files that the programs read.
var configurations = []string{"/etc/mke2fs.conf", "/etc/e2fsck.conf"}

func (j jailed) start(ctx context.Context, name string, args ...string) (stdout, stderr []byte, err error) {
	program, err := find(name)
	if err != nil {
		return nil, nil, err
	}
	root, err := launch.ProgramRoot(program, configurations...)
	if err != nil {
		return nil, nil, err
	}
	root.ReadOnly, root.Writable = append(root.ReadOnly, j.reads...), j.writes
	for _, path := range j.writes {
		var giveBack func() error
		if giveBack, err = lend(path); err != nil {
			return nil, nil, err
		}
		defer func() { err = errors.Join(err, giveBack()) }()
	}
	exit, stdout, stderr, err := launch.Run(ctx, launch.Command{
		Path: root.ReadOnly[0], Args: args, Env: []string{"LC_ALL=C"}, Dir: j.dir,
		UID: toolUser, GID: toolUser, Root: root, NoNetwork: true, Reads: true,
		Limits: launch.Limits{
			Tasks: toolTasks, Files: toolFiles, MemoryBytes: toolMemory, CPUSeconds: toolCPUSeconds,
			FileBytes: uint64(max(j.size, maxSmallFile)),
		},
	})
	if err == nil && exit.Code != 0 {
		err = errors.New(exit.Reason)
	}
	return stdout, stderr, err
}

// lend gives a file or directory to the user of the programs until the caller calls
// giveBack.
func lend(path string) (giveBack func() error, err error) {
	if err := os.Lchown(path, toolUser, toolUser); err != nil {
		return nil, err
	}
	return func() error { return os.Lchown(path, os.Getuid(), os.Getgid()) }, nil
}

// workIn returns a jail for a program that reads an image and works in dir, and makes
// dir's path absolute.
func workIn(dir, image string, writes bool) (jailed, error) {
	info, err := os.Stat(image)
	if err != nil {
		return jailed{}, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return jailed{}, err
	}
	j := jailed{dir: dir, writes: []string{dir}, size: info.Size()}
	if writes {
		j.writes = append(slices.Clip(j.writes), image)
	} else {
		j.reads = []string{image}
	}
	return j, nil
}

// newImageFile makes the file that mke2fs makes a file system in.
func newImageFile(image string) (string, error) {
	image, err := filepath.Abs(image)
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return "", fmt.Errorf("new image: %w", err)
	}
	return image, f.Close()
}
