package initramfs

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// File types in Entry.Mode, as in inode(7).
const (
	modeFile = 0o100000
	modeDir  = 0o040000
	modeChar = 0o020000
)

// Entry is one file of an archive. Directories come before what is in them.
type Entry struct {
	Name         string // without a leading slash
	Mode         uint32 // type and permissions, as in inode(7)
	Major, Minor uint32 // of a device
	Data         []byte
}

// Write writes a cpio archive in the format "newc" that the kernel unpacks, not
// compressed. All files belong to root and are of the year 1970 (the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst).
func Write(w io.Writer, entries []Entry) error {
	buf := bufio.NewWriter(w)
	for i, e := range entries {
		if e.Name == "" || strings.HasPrefix(e.Name, "/") {
			return fmt.Errorf("cpio: %q cannot name an entry", e.Name)
		}
		writeEntry(buf, uint32(i+1), e)
	}
	writeEntry(buf, 0, Entry{Name: "TRAILER!!!"})
	return buf.Flush() // a bufio.Writer keeps the first error
}

func writeEntry(w *bufio.Writer, inode uint32, e Entry) {
	const magic, headerLen = "070701", 110
	links := uint32(1)
	if e.Mode&modeDir != 0 {
		links = 2
	}
	_, _ = w.WriteString(magic)
	for _, field := range []uint32{
		inode, e.Mode, 0, 0, links, 0, // uid, gid, …, mtime
		uint32(len(e.Data)), 0, 0, e.Major, e.Minor, // size, device, …, rdev
		uint32(len(e.Name) + 1), 0, // with the NUL; no checksum
	} {
		fmt.Fprintf(w, "%08x", field)
	}
	_, _ = w.WriteString(e.Name + "\x00")
	pad(w, headerLen+len(e.Name)+1)
	_, _ = w.Write(e.Data)
	pad(w, len(e.Data))
}

// pad writes zeros up to a multiple of four.
func pad(w *bufio.Writer, n int) {
	_, _ = w.WriteString("\x00\x00\x00"[:(4-n%4)%4])
}
