package filesystem

import (
	"errors"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"wrenn.dev"
)

const (
	// xattrPrefix marks the extended attributes that are metadata. The
	// protocol fixes it, and with it the longest key: the kernel takes names
	// of 255 bytes (xattr(7)).
	xattrPrefix    = "user.e2b."
	metadataHeader = "x-metadata-"
	maxMetadataKey = 255 - len(xattrPrefix)
	// maxMetadata bounds all keys and values of a file, as the protocol does:
	// ext4 keeps them in one block.
	maxMetadata = 4096
	// maxXattrList is the kernel's limit for the names of a file (XATTR_LIST_MAX).
	maxXattrList = 64 << 10
	maxXattr     = 64 << 10 // for a value (XATTR_SIZE_MAX)
)

// readMetadata returns the metadata at path, following a link; nil when it has none
// or none can be read. It leaves out attributes beyond the limits, which no upload
// has written.
func readMetadata(path string, mode fs.FileMode) map[string]string {
	if !mode.IsRegular() && !mode.IsDir() {
		return nil // other files cannot have user attributes, xattr(7)
	}
	var metadata map[string]string
	room := maxMetadata
	for name := range strings.SplitSeq(xattrNames(path), "\x00") {
		key, ok := strings.CutPrefix(name, xattrPrefix)
		if !ok || key == "" {
			continue
		}
		value := make([]byte, maxMetadata)
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

// xattrNames returns the names of path's extended attributes, each followed by a
// zero byte; "" when it has none or none can be read.
func xattrNames(path string) string {
	size, err := unix.Listxattr(path, nil)
	if err != nil || size == 0 {
		return "" // most files
	}
	list := make([]byte, maxXattrList)
	if size, err = unix.Listxattr(path, list); err != nil {
		return ""
	}
	return string(list[:size])
}

// metadataFromHeader returns the X-Metadata-<key> headers of an upload with keys in
// lower case, nil when it has none.
func metadataFromHeader(h http.Header) (map[string]string, error) {
	var metadata map[string]string
	room := maxMetadata
	for name, values := range h {
		key, ok := strings.CutPrefix(strings.ToLower(name), metadataHeader)
		if !ok {
			continue
		}
		value := strings.Join(values, ", ") // as RFC 9110 §5.3 has it
		switch {
		case key == "" || len(key) > maxMetadataKey || !utf8.ValidString(key):
			return nil, wrenn.Errorf(wrenn.Invalid, "a metadata key needs 1 to %d bytes", maxMetadataKey)
		case !utf8.ValidString(value) || strings.ContainsRune(key+value, 0):
			return nil, wrenn.Errorf(wrenn.Invalid, "the metadata '%s' is not UTF-8 text", key)
		case len(key)+len(value) > room:
			return nil, wrenn.Errorf(wrenn.Invalid, "the metadata of a file, keys and values, is at most %d bytes", maxMetadata)
		}
		if metadata == nil {
			metadata = map[string]string{}
		}
		room -= len(key) + len(value)
		metadata[key] = value
	}
	return metadata, nil
}

// errNoMetadata is for file systems without user attributes.
var errNoMetadata = wrenn.Errorf(wrenn.Invalid, "the file system of this path keeps no metadata: leave out the X-Metadata headers")

// writeMetadata sets the metadata of a new file in the order of the keys.
func writeMetadata(f *os.File, metadata map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(metadata)) {
		err := setXattr(f, xattrPrefix+key, metadata[key])
		if errors.Is(err, unix.ENOTSUP) {
			return errNoMetadata
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func setXattr(f *os.File, name, value string) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = conn.Control(func(fd uintptr) { setErr = unix.Fsetxattr(int(fd), name, []byte(value), 0) })
	return errors.Join(err, setErr)
}
