package filesystem

import (
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// xattrPrefix marks the extended attributes that are metadata. The
	// protocol fixes it, and with it the longest key: the kernel takes names
	// of 255 bytes (xattr(7)).
	xattrPrefix    = "user.e2b."
	maxMetadataKey = 255 - len(xattrPrefix)
	// maxMetadata bounds all keys and values of a file, as the protocol does:
	// ext4 keeps them in one block.
	maxMetadata = 4096
	// maxXattrList is the kernel's limit for the names of a file (XATTR_LIST_MAX).
	maxXattrList = 64 << 10
)

// readMetadata returns the metadata at path, following a link; nil when there
// is none or none can be had. Attributes beyond the limits were not written by
// an upload and are left out.
func readMetadata(path string, mode fs.FileMode) map[string]string {
	if !mode.IsRegular() && !mode.IsDir() {
		return nil // others cannot have attributes of users, xattr(7)
	}
	size, err := unix.Listxattr(path, nil)
	if err != nil || size == 0 {
		return nil
	}
	list := make([]byte, min(size+1024, maxXattrList))
	if size, err = unix.Listxattr(path, list); err != nil {
		return nil
	}
	var metadata map[string]string
	room := maxMetadata
	value := make([]byte, maxMetadata)
	for name := range strings.SplitSeq(string(list[:size]), "\x00") {
		key, ok := strings.CutPrefix(name, xattrPrefix)
		if !ok || key == "" {
			continue
		}
		n, err := unix.Getxattr(path, name, value)
		if err != nil || len(key)+n > room {
			continue
		}
		if metadata == nil {
			metadata = map[string]string{}
		}
		room -= len(key) + n
		metadata[printable(key)] = printable(string(value[:n]))
	}
	return metadata
}
