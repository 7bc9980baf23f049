package nfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxHandle = 64 // NFS3_FHSIZE
	keySize   = 8
	maxName   = 255
)

// Export is a directory that clients mount by its name.
type Export struct {
	// Name is what a client mounts: "/" and this.
	Name string
	// Root is the root directory of a file system. The client reaches everything in that
	// file system, and nothing else. The server does not close it.
	Root *os.File
}

// export is an Export with what its handles begin with, so that they stay valid when
// the server is started again.
type export struct {
	name string
	dir  *os.File
	root int // the descriptor of dir
	key  [keySize]byte
	top  uint64 // the inode of the root
}

func newExport(e Export) (*export, error) {
	sum := sha256.Sum256([]byte(e.Name))
	out := &export{name: e.Name, dir: e.Root, root: int(e.Root.Fd()), key: [keySize]byte(sum[:])}
	var st unix.Stat_t
	if err := unix.Fstat(out.root, &st); err != nil {
		return nil, fmt.Errorf("export %s: %w", e.Name, err)
	}
	out.top = st.Ino
	return out, nil
}

// object is a file of an export, opened with O_PATH: it gives no access, but the
// kernel's calls can name the file by it. The caller must close it.
type object struct {
	export *export
	fd     int
}

func (o *object) close() { closeFD(o.fd) }

// path returns a path that leads to the object itself, whatever its name is now.
func (o *object) path() string { return procPath(o.fd) }

// closeFD closes a descriptor whose data, if that was asked for, was synced before.
func closeFD(fd int) { _ = unix.Close(fd) }

func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func (o *object) stat() (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstat(o.fd, &st)
	return st, err
}

// handle returns the object's handle: the export's key and the kernel's own handle,
// which outlives renames and this process.
func (o *object) handle() ([]byte, error) {
	h, _, err := unix.NameToHandleAt(o.fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, err
	}
	out := append([]byte(nil), o.export.key[:]...)
	out = binary.BigEndian.AppendUint32(out, uint32(h.Type()))
	out = append(out, h.Bytes()...)
	if len(out) > maxHandle {
		return nil, unix.EOVERFLOW
	}
	return out, nil
}

// find returns the object of a handle. The kernel accepts a handle only for a file in
// the file system of the export's root, so that a forged one leads to no other file.
func (s *Server) find(handle []byte) (*object, error) {
	if len(handle) < keySize+4 {
		return nil, statusBadHandle
	}
	for _, e := range s.exports {
		if !bytes.Equal(e.key[:], handle[:keySize]) {
			continue
		}
		rest := handle[keySize:]
		h := unix.NewFileHandle(int32(binary.BigEndian.Uint32(rest)), rest[4:])
		fd, err := unix.OpenByHandleAt(e.root, h, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC)
		switch {
		case errors.Is(err, unix.ESTALE), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil, statusStale
		case err != nil:
			return nil, err
		}
		return &object{export: e, fd: fd}, nil
	}
	return nil, statusStale // a volume that the sandbox does not have any more
}

// top returns the root of the export with a name.
func (s *Server) top(path string) (*object, error) {
	for _, e := range s.exports {
		if path != "/"+e.name {
			continue
		}
		fd, err := unix.Openat(e.root, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return &object{export: e, fd: fd}, nil
	}
	return nil, unix.ENOENT
}

// isTop reports whether the object is the root of its export.
func (o *object) isTop() bool {
	st, err := o.stat()
	return err == nil && st.Ino == o.export.top
}

// child returns what has a name in the directory o. ".." of the root is the root.
func (o *object) child(name string) (*object, error) {
	if name == ".." && o.isTop() {
		name = "."
	}
	if name != "." && name != ".." {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	fd, err := unix.Openat(o.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &object{export: o.export, fd: fd}, nil
}

// checkName checks the name of a new or removed entry of a directory.
func checkName(name string) error {
	switch {
	case name == "." || name == "..":
		return statusInval
	case name == "" || strings.ContainsAny(name, "/\x00"):
		return statusAccess
	case len(name) > maxName:
		return unix.ENAMETOOLONG
	}
	return nil
}

// reopen opens a regular file for data. flag is O_RDONLY or O_WRONLY. The client's
// kernel checked the access when a program opened the file; the file's mode may have
// changed since. So the owner always has access, and a user who may run a file may read
// it, as RFC 1813 asks for in section 4.4. The kernel decides about all others.
func (o *object) reopen(c *call, flag int) (fd int, err error) {
	st, err := o.stat()
	if err != nil {
		return -1, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return -1, statusIsDir
	default:
		return -1, statusInval
	}
	open := func() error {
		fd, err = unix.Open(o.path(), flag|unix.O_CLOEXEC, 0)
		return err
	}
	if err := c.user.Do(open); !errors.Is(err, unix.EACCES) {
		return fd, err
	}
	if st.Uid != c.user.UID && (flag != unix.O_RDONLY || o.access(c, unix.X_OK) != nil) {
		return -1, statusAccess
	}
	return fd, open()
}

// access asks the kernel whether the caller may access the object.
func (o *object) access(c *call, mode uint32) error {
	return c.user.Do(func() error { return unix.Faccessat(unix.AT_FDCWD, o.path(), mode, unix.AT_EACCESS) })
}
