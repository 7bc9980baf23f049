package vm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// A driver's manifest says what its snapshot is. The file is a line of JSON and
// a line with the SHA-256 of that, so that no bit of it changes unnoticed.

// manifestLimit bounds a manifest's file; one with the most disks has less than 4 KiB.
const manifestLimit = 64 << 10

// WriteManifest writes a manifest to a new file, which is not yet safe from a
// power cut.
func WriteManifest(path string, manifest any) error {
	data, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(seal(data))
	return errors.Join(err, f.Close())
}

func seal(data []byte) []byte {
	sum := sha256.Sum256(data)
	return fmt.Appendf(nil, "%s\nsha256:%x\n", data, sum)
}

// ReadManifest reads what WriteManifest wrote, and says which file is damaged.
func ReadManifest(path string, manifest any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, manifestLimit+1))
	if err != nil {
		return err
	}
	if err := unseal(data, manifest); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return nil
}

func unseal(data []byte, manifest any) error {
	line, _, found := bytes.Cut(data, []byte("\n"))
	if len(data) > manifestLimit || !found || !bytes.Equal(seal(line), data) {
		return errors.New("it is not what was written")
	}
	return json.Unmarshal(line, manifest)
}

// FileSum describes a file of a snapshot that is small enough to be read each
// time.
type FileSum struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// SumFile describes the file at path.
func SumFile(path string) (FileSum, error) {
	f, err := os.Open(path)
	if err != nil {
		return FileSum{}, err
	}
	defer f.Close()
	return sumOf(f)
}

func sumOf(r io.Reader) (FileSum, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return FileSum{n, hex.EncodeToString(h.Sum(nil))}, err
}

// Open opens the file at path if it is the one that s describes, at its
// beginning. The caller closes it.
func (s FileSum) Open(path string) (*os.File, error) {
	f, err := OpenSized(path, s.Size)
	if err != nil {
		return nil, err
	}
	got, err := sumOf(f)
	if err == nil && got != s {
		err = fmt.Errorf("%s: it is not what was written", filepath.Base(path))
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// OpenSized opens the regular file at path if it has the size. The caller closes it.
func OpenSized(path string, size int64) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() != size) {
		err = fmt.Errorf("%s has %d bytes, not %d", filepath.Base(path), info.Size(), size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
