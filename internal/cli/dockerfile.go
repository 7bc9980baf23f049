package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"wrenn.dev/client"
	"wrenn.dev/internal/dockerfile"
	"wrenn.dev/internal/plain"
)

// addDockerfile adds to a build what its Dockerfile asks for, and uploads the files
// that its steps copy.
func (c *templateBuildCommand) addDockerfile(ctx context.Context, s *session, api *client.Client, build *client.BuildTemplate) (err error) {
	if c.From != "" || c.FromOCI != "" || c.FromSandbox != "" {
		return errors.New("a Dockerfile has its own FROM; only --from-template can take its place")
	}
	dir := c.Context
	if dir == "" {
		dir = "."
	}
	plan, files, err := c.openDockerfile(s, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, files.Close()) }()
	for _, notice := range plan.Notices {
		fmt.Fprintln(s.Err, s.paint(s.Err, faint, plain.Line(notice)))
	}
	if build.FromTemplate == "" {
		build.FromOCI = plan.From
	}
	if build.StartCmd == "" {
		build.StartCmd = plan.StartCmd
	}
	build.NoCache = c.NoCache
	for _, step := range plan.Steps {
		if step.Source != "" {
			if step.Files, err = s.uploadFiles(ctx, api, files, step); err != nil {
				return err
			}
		}
		build.Steps = append(build.Steps, step.BuildStep)
	}
	return nil
}

// openDockerfile reads the Dockerfile and opens its context.
func (c *templateBuildCommand) openDockerfile(s *session, dir string) (*dockerfile.Plan, *dockerfile.Context, error) {
	name := c.File
	if name == "" {
		name = filepath.Join(dir, "Dockerfile")
	}
	text, ignore := s.In, io.Reader(nil)
	if name != standard {
		f, err := os.Open(name)
		if err != nil {
			return nil, nil, fmt.Errorf("the Dockerfile: %w", err)
		}
		defer f.Close()
		text = f
		if own, err := os.Open(name + ".dockerignore"); err == nil { // takes the place of the context's
			defer own.Close()
			ignore = own
		}
	}
	plan, err := dockerfile.Parse(text, c.BuildArgs)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	files, err := dockerfile.OpenContext(dir, ignore)
	return plan, files, err
}

// uploadFiles uploads the files of a COPY step unless the host has them, and returns
// their hash.
func (s *session) uploadFiles(ctx context.Context, api *client.Client, files *dockerfile.Context, step dockerfile.Step) (string, error) {
	found, err := files.Files(step)
	if err != nil {
		return "", err
	}
	present, err := api.HasBuildFiles(ctx, found.Hash)
	if err != nil || present {
		return found.Hash, err
	}
	fmt.Fprintln(s.Err, s.paint(s.Err, faint, "uploading "+plain.Line(step.Source)))
	out, in := io.Pipe()
	go func() { _ = in.CloseWithError(found.Archive(in)) }() // never fails
	err = api.PutBuildFiles(ctx, found.Hash, out)
	_ = out.Close() // never fails
	return found.Hash, err
}
