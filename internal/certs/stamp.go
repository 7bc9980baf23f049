package certs

import (
	"os"
	"syscall"
	"time"
)

// stamp changes when a file does, also when another one takes its place or a
// link leads elsewhere.
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
