package certs

import (
	"os"
	"syscall"
	"time"
)

// stamp identifies the content of a file: it differs after a write, and also when
// the file was replaced or a link on its path was changed.
type stamp struct {
	dev, ino uint64
	size     int64
	changed  time.Time
}

type stamps struct{ certificate, key, ca stamp }

func stampsOf(files Files) (s stamps, err error) {
	for path, at := range map[string]*stamp{files.Certificate: &s.certificate, files.Key: &s.key, files.CA: &s.ca} {
		if path == "" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return stamps{}, err
		}
		*at = stamp{size: info.Size(), changed: info.ModTime()}
		if sys, ok := info.Sys().(*syscall.Stat_t); ok {
			at.dev, at.ino = sys.Dev, sys.Ino
		}
	}
	return s, nil
}
