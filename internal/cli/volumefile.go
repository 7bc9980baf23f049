package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
)

// volumeFile is a file of a volume. Paths begin at the volume's root.
type volumeFile struct{ volume, path string }

var volumeFileForm = regexp.MustCompile(`(?s)^([a-zA-Z0-9_-]{1,63}):(.*)$`)

// parseVolumeFile reads "NAME:PATH"; ok is false for a name on this machine.
func parseVolumeFile(name string) (f volumeFile, ok bool) {
	m := volumeFileForm.FindStringSubmatch(name)
	if m == nil {
		return volumeFile{}, false
	}
	return volumeFile{m[1], m[2]}, true
}

// needVolumeFile reads "NAME:PATH".
func needVolumeFile(name string) (volumeFile, error) {
	f, ok := parseVolumeFile(name)
	if !ok || f.path == "" {
		return volumeFile{}, fmt.Errorf("%.80q is not a file of a volume: write VOLUME:PATH", name)
	}
	return f, nil
}

// listVolumeFiles prints the entries of a directory of a volume.
func listVolumeFiles(ctx context.Context, s *session, api *client.Client, name string, levels int) error {
	f, ok := parseVolumeFile(name)
	if !ok {
		f.volume = name
	}
	if f.path == "" {
		f.path = "/"
	}
	entries, err := api.VolumeFiles(ctx, f.volume, f.path, levels)
	if err != nil {
		return err
	}
	return s.print(entries, func(w io.Writer) {
		rows := [][]string{{"MODE", "OWNER", "SIZE", "AGE", "PATH"}}
		for _, e := range entries {
			rows = append(rows, []string{modeText(e), fmt.Sprintf("%d:%d", e.UID, e.GID), fmt.Sprint(e.Size), age(e.ModifiedAt), pathText(e)})
		}
		table(w, rows)
	})
}

// modeText is the type and permissions of an entry, as ls -l shows them.
func modeText(e client.VolumeEntry) string {
	kind := map[string]string{"file": "-", "directory": "d", "symlink": "l"}[e.Type]
	if kind == "" {
		kind = "?"
	}
	return kind + os.FileMode(e.Mode & 0o777).String()[1:]
}

func pathText(e client.VolumeEntry) string {
	if e.Type == "symlink" {
		return plain.Line(e.Path) + " -> " + plain.Line(e.Target)
	}
	return plain.Line(e.Path)
}

// deleteVolumeFile deletes a file or directory, and refuses to delete all of a volume.
func deleteVolumeFile(ctx context.Context, api *client.Client, name string) error {
	f, err := needVolumeFile(name)
	if err != nil {
		return err
	}
	return api.DeleteVolumeFile(ctx, f.volume, f.path)
}

type volumeMkdirCommand struct {
	Parents bool     `short:"p" help:"Make the directories above it, too; it may exist."`
	Paths   []string `arg:"" name:"path" complete:"volume-file" help:"The directories, as VOLUME:PATH."`
}

// Run makes them one by one.
func (c *volumeMkdirCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	return s.each(ctx, "making", c.Paths, func(ctx context.Context, name string) error {
		f, err := needVolumeFile(name)
		if err != nil {
			return err
		}
		_, err = api.CreateVolumeDirectory(ctx, f.volume, f.path, client.VolumeFileOptions{Parents: c.Parents})
		return err
	})
}

type volumeCatCommand struct {
	Files []string `arg:"" name:"file" complete:"volume-file" help:"The files, as VOLUME:PATH."`
}

// Run writes the files to standard output.
func (c *volumeCatCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	for _, name := range c.Files {
		f, err := needVolumeFile(name)
		if err != nil {
			return err
		}
		in, err := api.ReadVolumeFile(ctx, f.volume, f.path)
		if err != nil {
			return err
		}
		_, err = io.Copy(s.Out, in)
		in.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

type volumeCopyCommand struct {
	From string `arg:"" complete:"volume-file" help:"The source: VOLUME:PATH, PATH on this machine, or - for standard input."`
	To   string `arg:"" complete:"volume-file" help:"The destination: VOLUME:PATH, PATH on this machine, or - for standard output. A path that ends with / is a directory."`
}

// Help is shown below the usage.
func (*volumeCopyCommand) Help() string {
	return `One file, which is replaced as a whole. Directories above it are made. For a
directory, mount the volume into a sandbox and use "wrenn cp -r". A file on this
machine whose name has a colon is written as ./NAME.

  wrenn volume cp model.bin data:/models/
  wrenn volume cp data:/results.csv .`
}

// Run copies a file, completely or not at all.
func (c *volumeCopyCommand) Run(ctx context.Context, s *session) error {
	from, fromVolume := parseVolumeFile(c.From)
	to, toVolume := parseVolumeFile(c.To)
	api, err := s.client()
	switch {
	case err != nil:
		return err
	case !fromVolume && !toVolume:
		return fmt.Errorf("neither %s nor %s is in a volume: write VOLUME:PATH", c.From, c.To)
	case fromVolume && strings.Trim(from.path, "/") == "":
		return fmt.Errorf("%s is a directory: copy one file", c.From)
	}
	in, base, err := c.open(ctx, s, api, from, fromVolume)
	if err != nil {
		return err
	}
	defer in.Close()
	meter := &meter{r: in}
	defer s.progress(meter.what("copying to " + c.To))()
	switch {
	case toVolume:
		return putVolumeFile(ctx, api, to, base, meter)
	case c.To == standard:
		_, err := io.Copy(s.Out, meter)
		return err
	}
	return receive(localName(c.To, base), meter)
}

// open returns the source, which the caller closes, and its name without directories;
// "" is standard input's.
func (c *volumeCopyCommand) open(ctx context.Context, s *session, api *client.Client, from volumeFile, inVolume bool) (io.ReadCloser, string, error) {
	switch {
	case inVolume:
		in, err := api.ReadVolumeFile(ctx, from.volume, from.path)
		return in, path.Base(from.path), err
	case c.From == standard:
		return io.NopCloser(s.In), "", nil
	}
	f, err := openRegular(c.From)
	return f, filepath.Base(c.From), err
}

// openRegular opens a file of this machine that is not a directory.
func openRegular(name string) (*os.File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = fmt.Errorf("%s is a directory: copy one file", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// putVolumeFile writes a file. A destination that is a directory gets a file of the
// source's name.
func putVolumeFile(ctx context.Context, api *client.Client, to volumeFile, base string, content io.Reader) error {
	name := under(to.path, base)
	if name == "" || strings.HasSuffix(name, "/") {
		return fmt.Errorf("the file needs a name in the volume: write %s:PATH", to.volume)
	}
	_, err := api.WriteVolumeFile(ctx, to.volume, name, content, client.VolumeFileOptions{Parents: true})
	return err
}

// localName is where a file named base goes on this machine.
func localName(to, base string) string {
	if info, err := os.Stat(to); err == nil && info.IsDir() {
		return filepath.Join(to, base)
	}
	return under(to, base)
}
