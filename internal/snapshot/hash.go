package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/durable"
)

// hashed is the hash of a large file, and the identity of the file that was hashed.
type hashed struct {
	SHA256 string `json:"sha256"`
	// A file with this inode and mtime was not written to since. The ctime would
	// not do: drivers give machines access to a file, which changes it.
	Inode uint64 `json:"inode"`
	Mtime int64  `json:"mtime"` // ns
}

// hashes are those of a snapshot's large files, by path.
type hashes map[string]hashed

// scope selects the files whose content check compares.
type scope int

const (
	// changedFiles are the small files, and the large ones that are not the same
	// file that was hashed: because they were copied from another host or written to.
	changedFiles scope = iota
	allFiles
)

// check compares a snapshot with its manifest and its hashes.
func (s *Store) check(ctx context.Context, snap *Snapshot, want scope) error {
	root, err := os.OpenRoot(snap.dir)
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", snap.ID, err)
	}
	defer func() { _ = root.Close() }() // it was only read
	known := readHashes(snap.dir)
	stale := false
	for _, file := range snap.Files {
		updated, err := checkFile(ctx, root, snap.ID, file, known, want)
		if err != nil {
			return err
		}
		stale = stale || updated
	}
	if stale {
		if err := writeHashes(snap.dir, known); err != nil { // the next Load is slower, but works
			s.log.LogAttrs(ctx, slog.LevelWarn, "cannot write the hashes of a snapshot", slog.String("snapshot", snap.ID), slog.Any("err", err))
		}
	}
	return nil
}

// checkFile checks one file. If it is not the same file as in known, but has the
// same content, checkFile updates known and returns true.
func checkFile(ctx context.Context, root *os.Root, id string, file File, known hashes, want scope) (updated bool, err error) {
	f, err := root.Open(filepath.FromSlash(file.Path))
	if errors.Is(err, fs.ErrNotExist) {
		return false, refuse(id, "its file %s is missing", file.Path)
	}
	if err != nil {
		return false, fmt.Errorf("snapshot %s: %w", id, err)
	}
	defer f.Close()
	now, size, err := identify(f)
	if err != nil {
		return false, err
	}
	if size != file.Size {
		return false, refuse(id, "its file %s has %d bytes and must have %d", file.Path, size, file.Size)
	}
	then, isKnown := known[file.Path]
	sum := then.SHA256
	switch {
	case file.SHA256 != "":
		sum = file.SHA256
	case !isKnown || want == changedFiles && then.Inode == now.Inode && then.Mtime == now.Mtime:
		return false, nil
	}
	if now.SHA256, err = digest(ctx, f); err != nil {
		return false, fmt.Errorf("snapshot %s: %w", id, err)
	}
	if now.SHA256 != sum {
		return false, refuse(id, "the content of its file %s has changed since it was written", file.Path)
	}
	if isKnown {
		known[file.Path] = now
	}
	return isKnown && now != then, nil
}

func identify(f *os.File) (h hashed, size int64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return h, 0, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return h, 0, fmt.Errorf("%s is not a regular file", f.Name())
	}
	return hashed{Inode: st.Ino, Mtime: st.Mtim.Nano()}, st.Size, nil
}

// chunk is the unit of digest.
const chunk = 64 << 10

// digest returns the SHA-256 of a file's size and of the positions and contents
// of the 64 KiB chunks that are not all zero. So it does not depend on which zeros
// are holes.
func digest(ctx context.Context, f *os.File) (string, error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	number := func(n int64) { _, _ = sum.Write(binary.BigEndian.AppendUint64(nil, uint64(n))) } // never fails, see hash.Hash
	number(info.Size())
	buf, zero := make([]byte, chunk), make([]byte, chunk)
	for pos, end := int64(0), int64(0); pos < info.Size(); pos += chunk {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if pos >= end {
			if pos, end, err = nextData(f, pos); err != nil || pos < 0 {
				break
			}
		}
		n, err := f.ReadAt(buf, pos)
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		if !bytes.Equal(buf[:n], zero[:n]) {
			number(pos)
			_, _ = sum.Write(buf[:n])
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), err
}

// nextData returns the position of the chunk in which the next data at or after
// pos begins, and the data's end; from is -1 when there is none.
func nextData(f *os.File, pos int64) (from, to int64, err error) {
	from, err = unix.Seek(int(f.Fd()), pos, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return -1, 0, nil
	}
	if err == nil {
		to, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("seek in %s: %w", f.Name(), err)
	}
	return max(pos, from/chunk*chunk), to, nil
}

// settle is the delay before a new snapshot is hashed. The snapshot of a sandbox
// that is resumed at once is soon garbage, and the resume needs the CPU.
const settle = 5 * time.Second

// Run hashes the large files of new snapshots, one at a time and after a delay,
// until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		id, due := s.unhashed()
		if id == "" {
			select {
			case <-ctx.Done():
			case <-s.work:
			}
			continue
		}
		if wait := time.Until(due); wait > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			continue // it may have been removed
		}
		if err := s.hash(ctx, id); err != nil && ctx.Err() == nil && s.Has(id) { // else it was removed, which is no failure
			s.log.LogAttrs(ctx, slog.LevelWarn, "cannot hash snapshot", slog.String("snapshot", id), slog.Any("err", err))
		}
		s.setHashed(id) // if ctx ended, it is hashed after the next Open
	}
	return nil
}

// unhashed returns the snapshot to hash next, or "", and when to hash it.
func (s *Store) unhashed() (next string, due time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, e := range s.entries {
		if !e.hashed && (next == "" || e.due.Before(due)) {
			next, due = id, e.due
		}
	}
	return next, due
}

func (s *Store) hashLater(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[id]; e != nil {
		e.hashed, e.due = false, time.Now().Add(s.settle)
	}
}

func (s *Store) setHashed(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[id]; e != nil {
		e.hashed = true
	}
}

// hash writes the hashes of a snapshot's large files. Disks have no hash: reading
// one takes too long.
func (s *Store) hash(ctx context.Context, id string) error {
	man, err := readManifest(s.path(id))
	if err != nil {
		return err
	}
	known := hashes{}
	for _, file := range man.Files {
		if file.SHA256 != "" || file.Path == diskName {
			continue
		}
		if known[file.Path], err = hashFile(ctx, filepath.Join(s.path(id), filepath.FromSlash(file.Path))); err != nil {
			return err
		}
	}
	return writeHashes(s.path(id), known)
}

func hashFile(ctx context.Context, path string) (h hashed, err error) {
	f, err := os.Open(path)
	if err != nil {
		return h, err
	}
	defer f.Close()
	if h, _, err = identify(f); err != nil {
		return h, err
	}
	h.SHA256, err = digest(ctx, f)
	return h, err
}

func writeHashes(dir string, known hashes) error {
	data, err := json.MarshalIndent(known, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, hashesName), append(data, '\n'), 0o600)
}

// readHashes returns no hashes if they cannot be read: they are written after the
// snapshot, and check compares the sizes in any case.
func readHashes(dir string) hashes {
	known := hashes{}
	if data, err := readBounded(filepath.Join(dir, hashesName), maxManifest); err == nil {
		_ = json.Unmarshal(data, &known)
	}
	return known
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// blocksOf returns how many bytes a file takes on the disk.
func blocksOf(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return st.Blocks * 512
}
