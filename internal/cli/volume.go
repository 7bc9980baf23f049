package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"wrenn.dev/client"
)

type volumeCommands struct {
	Create volumeCreateCommand `cmd:"" help:"Create an empty volume and print its name."`
	List   volumeListCommand   `cmd:"" aliases:"ls" help:"List volumes, or the files of one."`
	Delete volumeDeleteCommand `cmd:"" aliases:"rm" help:"Delete volumes, or files in them."`
	Cp     volumeCopyCommand   `cmd:"" help:"Copy a file into a volume or out of it, without a sandbox."`
	Cat    volumeCatCommand    `cmd:"" help:"Print files of volumes."`
	Mkdir  volumeMkdirCommand  `cmd:"" help:"Make directories in volumes."`
}

type volumeCreateCommand struct {
	Name string    `arg:"" help:"Its name: a-z, A-Z, 0-9, _ and -."`
	Size mebibytes `placeholder:"SIZE" help:"The most that its files may take, as 512M or 20G; default: 10G."`
}

// Help is shown below the usage.
func (*volumeCreateCommand) Help() string {
	return `Sandboxes mount it, several at once, and it outlives them:

  wrenn volume create data --size 20G
  wrenn sandbox create --volume data:/data`
}

// mebibytes is a size.
type mebibytes int

// UnmarshalText reads "512M" or "20G".
func (m *mebibytes) UnmarshalText(text []byte) error {
	number, gib := strings.CutSuffix(string(text), "G")
	number, mib := strings.CutSuffix(number, "M")
	n, err := strconv.ParseUint(number, 10, 20)
	if err != nil || n == 0 || gib == mib {
		return fmt.Errorf("%.40q is not a size: write 512M or 20G", text)
	}
	if gib {
		n <<= 10
	}
	*m = mebibytes(n)
	return nil
}

// Run prints the name alone, for scripts.
func (c *volumeCreateCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	v, err := api.CreateVolume(ctx, c.Name, int(c.Size))
	if err != nil {
		return err
	}
	return s.print(v, func(w io.Writer) { fmt.Fprintln(w, v.Name) })
}

type volumeListCommand struct {
	Depth int    `default:"1" placeholder:"LEVELS" help:"How many levels of directories to list, 1 to 128; default: ${default}."`
	In    string `arg:"" optional:"" name:"volume" complete:"volume-file" help:"List the files of this volume, VOLUME or VOLUME:PATH."`
}

// Run prints a table, or an array of JSON.
func (c *volumeListCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	if c.In != "" {
		return listVolumeFiles(ctx, s, api, c.In, c.Depth)
	}
	volumes, err := api.Volumes(ctx)
	if err != nil {
		return err
	}
	return s.print(volumes, func(w io.Writer) {
		rows := [][]string{{"NAME", "SIZE", "AGE", "ID"}}
		for _, v := range volumes {
			rows = append(rows, []string{v.Name, fmt.Sprintf("%dM", v.SizeMiB), age(v.CreatedAt), v.ID})
		}
		table(w, rows)
	})
}

type volumeDeleteCommand struct {
	Names []string `arg:"" name:"name" complete:"volume" help:"The volumes with all of their files, by their names or ids; VOLUME:PATH is a file or directory in one."`
}

// Run deletes them one by one.
func (c *volumeDeleteCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	return s.each(ctx, "deleting", c.Names, func(ctx context.Context, name string) error {
		if strings.Contains(name, ":") { // no name or id has one
			return deleteVolumeFile(ctx, api, name)
		}
		return api.DeleteVolume(ctx, name)
	})
}

// mountFlag is a volume in a new sandbox.
type mountFlag client.VolumeMount

// UnmarshalText reads "NAME:/PATH".
func (m *mountFlag) UnmarshalText(text []byte) error {
	name, path, ok := strings.Cut(string(text), ":")
	if !ok || name == "" || !strings.HasPrefix(path, "/") {
		return fmt.Errorf("%.80q is not a volume and where to mount it: write NAME:/PATH", text)
	}
	*m = mountFlag{Volume: name, Path: path}
	return nil
}

func mountsOf(flags []mountFlag) []client.VolumeMount {
	var out []client.VolumeMount
	for _, m := range flags {
		out = append(out, client.VolumeMount(m))
	}
	return out
}

// mountsLine is the volumes of a sandbox in one line of "sandbox get".
func mountsLine(mounts []client.VolumeMount) string {
	var out []string
	for _, m := range mounts {
		out = append(out, m.Volume+":"+m.Path)
	}
	return strings.Join(out, " ")
}
