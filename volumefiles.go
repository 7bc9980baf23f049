package wrenn

import "time"

// FileType is the kind of a file in a volume.
type FileType string

// The kinds. A pipe or a socket is OtherFile.
const (
	RegularFile FileType = "file"
	Directory   FileType = "directory"
	Symlink     FileType = "symlink"
	OtherFile   FileType = "unknown"
)

// VolumeEntry describes a file, directory or symbolic link of a volume.
type VolumeEntry struct {
	Path       string // from the root of the volume: /a/b
	Type       FileType
	Size       int64
	Mode       uint32 // the 12 bits of permissions
	UID, GID   uint32
	AccessedAt time.Time
	ModifiedAt time.Time
	ChangedAt  time.Time
	Target     string // of a symbolic link
}

// VolumeAttributes are the attributes of a file that can be set. Nil leaves one as it
// is; for a new file it is the owner 1000:1000, which is "user" in images of Wrenn, the
// mode 0644, and 0755 for a directory.
type VolumeAttributes struct {
	Mode     *uint32 // at most 07777
	UID, GID *uint32
}

// VolumeWrite is how a file of a volume is written.
type VolumeWrite struct {
	VolumeAttributes

	Parents   bool // directories above it are made, too
	NoReplace bool // AlreadyExists if the file exists
}
