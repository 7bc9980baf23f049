package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
)

const (
	logName = "postgres.log"
	oldName = "postgres.log.1"
	// maxLog is how large the log gets; then it becomes the old one.
	maxLog = 16 << 20
	// rotateEvery is how often its size is checked.
	rotateEvery = time.Minute
)

// serverLog is the file that the server writes its messages to. Its directory belongs
// to the server's user, who could put links there to files of root: so it is made
// new each time, and never opened by its name again.
type serverLog struct {
	file *os.File
	dir  *os.Root
}

// openLog makes the log in dir, owned by the server's user; the previous one is kept
// as the old one. The caller closes it.
func openLog(dir string, owner *owner) (*serverLog, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	l := &serverLog{dir: root}
	if err := root.Rename(logName, oldName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(err, root.Close())
	}
	if l.file, err = l.create(logName, os.O_RDWR|os.O_APPEND); err == nil && owner.cred != nil {
		err = l.file.Chown(int(owner.cred.Uid), int(owner.cred.Gid))
	}
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// create makes a file of a name that must be free.
func (l *serverLog) create(name string, flags int) (*os.File, error) {
	f, err := l.dir.OpenFile(name, flags|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the database's log: %w", err)
	}
	return f, nil
}

// close closes the log. Twice is allowed.
func (l *serverLog) close() error {
	if l.file != nil {
		if err := l.file.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
			return err
		}
	}
	return l.dir.Close()
}

// tail returns the end of the log, for an error message.
func (l *serverLog) tail() string {
	const limit = 2 << 10
	info, err := l.file.Stat()
	if err != nil {
		return "no log: " + err.Error()
	}
	text, err := io.ReadAll(io.NewSectionReader(l.file, max(0, info.Size()-limit), limit))
	if err != nil {
		return "no log: " + err.Error()
	}
	return strings.TrimSpace(string(text))
}

// keepSmall rotates the log when it is large, until ctx ends.
func (l *serverLog) keepSmall(ctx context.Context) {
	tick := time.NewTicker(rotateEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = l.rotate(maxLog) // tried again after the next tick
		case <-ctx.Done():
			return
		}
	}
}

// rotate copies a log of limit bytes or more to the old one and empties it: the server
// has the file open, and appends. Lines that it writes meanwhile may be lost.
func (l *serverLog) rotate(limit int64) error {
	info, err := l.file.Stat()
	if err != nil || info.Size() < limit {
		return err
	}
	if err := l.dir.Remove(oldName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	old, err := l.create(oldName, os.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = io.Copy(old, io.NewSectionReader(l.file, max(0, info.Size()-maxLog), maxLog))
	return errors.Join(err, old.Close(), l.file.Truncate(0))
}
