// Package initramfs makes the first file system of a guest: cpio archives with the
// program that mounts the real root, and with the kernel modules for that.
//
// They are two archives, which the kernel unpacks one after the other, because the
// modules change only with the kernel.
//
// The cpio writer is not a library's: the format that the kernel reads is one header
// of fixed fields, which takes 30 lines, and the archive must be the same for the
// same input, because its digest names images.
package initramfs

import (
	"fmt"
	"io"
	"path"
	"strings"

	"wrenn.dev/internal/image/modules"
)

// Manifest names, in the guest, the file that lists the modules to load:
// a path on each line, in order.
const Manifest = "/modules"

// WriteStage0 writes an archive with the program as /init and the directories
// that it mounts on.
func WriteStage0(w io.Writer, program []byte) error {
	return Write(w, []Entry{
		{Name: "dev", Mode: modeDir | 0o755},
		{Name: "dev/console", Mode: modeChar | 0o600, Major: 5, Minor: 1}, // without it /init starts without standard files
		{Name: "proc", Mode: modeDir | 0o755},
		{Name: "root", Mode: modeDir | 0o755},
		{Name: "sys", Mode: modeDir | 0o755},
		{Name: "init", Mode: modeFile | 0o755, Data: program},
	})
}

// WriteModules writes an archive with the modules, to be loaded in this order,
// and the manifest. See modules.Resolve.
func WriteModules(w io.Writer, list []modules.Module) error {
	entries := []Entry{{Name: "lib", Mode: modeDir | 0o755}}
	var manifest strings.Builder
	for _, m := range list {
		name := path.Join("lib", m.Name+".ko")
		entries = append(entries, Entry{Name: name, Mode: modeFile | 0o644, Data: m.Data})
		fmt.Fprintf(&manifest, "/%s\n", name)
	}
	return Write(w, append(entries, Entry{Name: Manifest[1:], Mode: modeFile | 0o644, Data: []byte(manifest.String())}))
}
