package wrenn

import "time"

// FileEntry describes a file, directory or symbolic link of a sandbox, as the sandbox
// says.
type FileEntry struct {
	Path         string // absolute
	Type         FileType
	Size         int64  // in bytes
	Mode         uint32 // the nine bits of permissions; of a link those of what it leads to
	Owner, Group string // names
	ModifiedAt   time.Time
	Target       string // of a symbolic link, absolute
}

// FileChangeType is what happened to a file that is watched.
type FileChangeType string

// What can happen. A rename is reported for the old name, and as a creation for the new
// one if that is in the watched directory.
const (
	FileCreated FileChangeType = "create"
	FileWritten FileChangeType = "write"
	FileRemoved FileChangeType = "remove"
	FileRenamed FileChangeType = "rename"
	FileChmod   FileChangeType = "chmod"
)

// FileChange is a change in a watched directory.
type FileChange struct {
	Path string // from the watched directory; "." is the directory itself
	Type FileChangeType
}

// ProcessInfo describes a program of a sandbox that was started through its agent.
type ProcessInfo struct {
	PID  int
	Cmd  string
	Args []string
	Cwd  string // "" is the default
	Tag  string // that its starter gave it; "" for none
}
