package filesystem

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"google.golang.org/protobuf/types/known/timestamppb"

	"wrenn.dev/internal/guest/account"
	pb "wrenn.dev/proto/gen/envd/filesystem"
)

// entry describes the file at path. For a symbolic link, type and mode are those of
// the file that it leads to; the rest is the link's own. A link that leads nowhere
// has the type symlink. The error is the kernel's for path itself.
func entry(path string, names *account.Names) (*pb.EntryInfo, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	e := &pb.EntryInfo{
		Name:         printable(filepath.Base(path)),
		Path:         printable(path),
		Size:         info.Size(),
		Permissions:  permissions(info.Mode()),
		ModifiedTime: timestamppb.New(info.ModTime()),
		IsSymlink:    info.Mode().Type() == fs.ModeSymlink,
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		e.Owner, e.Group = names.User(stat.Uid), names.Group(stat.Gid)
	}
	if e.GetIsSymlink() {
		target, _ := followLinks(path) // as far as it can be followed
		e.SymlinkTarget = new(printable(target))
		if target, err := os.Stat(path); err == nil {
			info = target
		}
	}
	e.Type, e.Mode = fileType(info.Mode()), uint32(info.Mode().Perm())
	e.Metadata = readMetadata(path, info.Mode())
	return e, nil
}

// maxLinks is the kernel's limit for links that lead to links, see path_resolution(7).
const maxLinks = 40

// followLinks returns the absolute path that the links at path lead to, which need
// not exist; path itself when it is no link.
func followLinks(path string) (string, error) {
	for range maxLinks {
		link, err := os.Readlink(path)
		if err != nil {
			return path, nil //nolint:nilerr // not a link, or it does not exist: the caller's next call fails then
		}
		if !filepath.IsAbs(link) {
			link = filepath.Dir(path) + "/" + link
		}
		// Links among the directories change what .. means, so they are resolved first.
		dir, base := filepath.Split(link)
		if dir, err = filepath.EvalSymlinks(dir); err != nil {
			return filepath.Clean(link), err
		}
		path = filepath.Join(dir, base)
	}
	return path, &fs.PathError{Op: "follow", Path: path, Err: syscall.ELOOP}
}

func fileType(mode fs.FileMode) pb.FileType {
	switch mode.Type() {
	case 0:
		return pb.FileType_FILE_TYPE_FILE
	case fs.ModeDir:
		return pb.FileType_FILE_TYPE_DIRECTORY
	case fs.ModeSymlink:
		return pb.FileType_FILE_TYPE_SYMLINK
	default:
		return pb.FileType_FILE_TYPE_UNSPECIFIED // the protocol has no type for pipes, sockets and devices
	}
}

// permissions returns a mode as ls -l prints it, which differs from fs.FileMode.
func permissions(mode fs.FileMode) string {
	text := []byte("-" + mode.Perm().String()[1:])
	switch mode.Type() {
	case fs.ModeDir:
		text[0] = 'd'
	case fs.ModeSymlink:
		text[0] = 'l'
	case fs.ModeNamedPipe:
		text[0] = 'p'
	case fs.ModeSocket:
		text[0] = 's'
	case fs.ModeDevice:
		text[0] = 'b'
	case fs.ModeDevice | fs.ModeCharDevice:
		text[0] = 'c'
	}
	for _, special := range []struct {
		bit fs.FileMode
		at  int
		x   byte // with the execute bit
		no  byte // without
	}{{fs.ModeSetuid, 3, 's', 'S'}, {fs.ModeSetgid, 6, 's', 'S'}, {fs.ModeSticky, 9, 't', 'T'}} {
		switch {
		case mode&special.bit == 0:
		case text[special.at] == 'x':
			text[special.at] = special.x
		default:
			text[special.at] = special.no
		}
	}
	return string(text)
}
