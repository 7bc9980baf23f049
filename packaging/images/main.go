// Command images writes an image of a container with static programs as an OCI layout,
// without a container engine. The same files give the same digest: nothing of the time,
// the machine or the user is in it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"runtime"
	"strings"

	"wrenn.dev/internal/run"
)

func main() { run.Main(start) }

// start writes an image and prints its digest.
func start(_ context.Context, args []string) error {
	var s Settings
	flags := flag.NewFlagSet("images", flag.ContinueOnError)
	out := flags.String("out", "", "directory of the OCI layout; it must not exist")
	authorities := flags.String("authorities", "/etc/ssl/certs/ca-certificates.crt", "certificates of the authorities that the programs trust")
	flags.StringVar(&s.Architecture, "arch", runtime.GOARCH, "architecture of the programs")
	flags.StringVar(&s.User, "user", "65532:65532", "user and group of the program")
	flags.StringVar(&s.Version, "version", "", "version, a label of the image")
	flags.StringVar(&s.Revision, "revision", "", "commit, a label of the image")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("%w: %s", run.ErrUsage, err.Error())
	}
	if *out == "" || flags.NArg() == 0 {
		return fmt.Errorf("%w: give --out and the programs; the first is the entrypoint", run.ErrUsage)
	}
	base, err := Base(*authorities)
	if err != nil {
		return err
	}
	var programs []File
	for _, name := range flags.Args() {
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		programs = append(programs, File{Name: path.Join("usr/bin", path.Base(name)), Mode: programMode, Content: content})
	}
	s.Layers = [][]File{base, programs}
	s.Entrypoint = "/" + programs[0].Name
	digest, err := s.Write(*out)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(os.Stdout, digest)
	return err
}

const (
	programMode = 0o755
	fileMode    = 0o644
	dirMode     = 0o755
	sticky      = 0o1777
)

// Base returns what every image has beside its programs: authorities, and the names of
// the users root and nonroot.
func Base(authorities string) ([]File, error) {
	text, err := os.ReadFile(authorities)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(string(text), "-----BEGIN CERTIFICATE-----") {
		return nil, errors.New(authorities + " has no certificates in PEM")
	}
	return []File{
		{Name: "etc/passwd", Mode: fileMode, Content: []byte("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n")},
		{Name: "etc/group", Mode: fileMode, Content: []byte("root:x:0:\nnonroot:x:65532:\n")},
		{Name: "etc/ssl/certs/ca-certificates.crt", Mode: fileMode, Content: text},
		{Name: "tmp/", Mode: sticky},
	}, nil
}
