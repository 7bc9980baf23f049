package service

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
)

const (
	// maxTags bounds the tags in one request.
	maxTags = 32
	// uploadTTL is how long a token for an upload is valid. Clients upload for an hour at most.
	uploadTTL = 2 * time.Hour
)

// RequestBuild is a template that will be built when its client has uploaded the
// files of its steps.
type RequestBuild struct {
	Name     string   // or name:tag
	MoreTags []string // of the name, which shall refer to the build, too
	wrenn.Size
	DiskMiB        int // 0 is that of the source
	MinFreeDiskMiB int // of the disk, at the end of the build
}

// RequestBuild records a build, which StartRequestedBuild starts. It is forgotten
// after a day, or when a hundred others of the team have been requested since.
func (s *Templates) RequestBuild(ctx context.Context, c Caller, req RequestBuild) (*wrenn.Build, error) {
	name, err := buildName(BuildTemplate{Name: req.Name})
	if err != nil {
		return nil, err
	}
	g := wrenn.Build{ID: wrenn.NewBuildID(), Team: c.Team, Template: name, State: wrenn.BuildRequested, Spec: wrenn.TemplateSpec{
		Size: req.OrDefault(), DiskMiB: req.DiskMiB, MinFreeDiskMiB: req.MinFreeDiskMiB,
	}}
	if err := cmp.Or(s.limits.checkSize(g.Spec.Size), s.limits.checkDisk(req.DiskMiB), s.limits.checkDisk(req.MinFreeDiskMiB)); err != nil {
		return nil, err
	}
	if g.MoreTags, err = tagsOf(name.Name, req.MoreTags); err != nil {
		return nil, err
	}
	return &g, s.store.RequestBuild(ctx, g)
}

// tagsOf checks tags of a name.
func tagsOf(name string, tags []string) ([]string, error) {
	if len(tags) > maxTags {
		return nil, wrenn.Errorf(wrenn.Invalid, "a request has at most %d tags", maxTags)
	}
	for _, tag := range tags {
		if _, err := wrenn.ParseTemplateName(name + ":" + tag); err != nil {
			return nil, err
		}
	}
	return tags, nil
}

// StartRequestedBuild starts a build that was requested, once. The name and the size
// of req are those of the request. FailedPrecondition when it has started before.
func (s *Templates) StartRequestedBuild(ctx context.Context, c Caller, template string, id wrenn.BuildID, req BuildTemplate) error {
	g, _, err := s.BuildProgress(ctx, c, template, id, 0, 1)
	switch {
	case err != nil:
		return err
	case g.State != wrenn.BuildRequested:
		return wrenn.Errorf(wrenn.FailedPrecondition, "build %s was started before: request another one", id)
	}
	req.Name, req.Spec.Size, req.id, req.moreTags = g.Template.String(), g.Spec.Size, id, g.MoreTags
	req.Spec.DiskMiB, req.Spec.MinFreeDiskMiB = g.Spec.DiskMiB, g.Spec.MinFreeDiskMiB
	_, err = s.beginBuild(ctx, c, req, nil)
	return err
}

// LogLine is a line of a build's log.
type LogLine = postgres.Line

// BuildProgress returns a build, also one that was requested and has not started, and
// at most limit lines of its log from a number on. Lines that were dropped are left out.
func (s *Templates) BuildProgress(ctx context.Context, c Caller, template string, id wrenn.BuildID, from int64, limit int) (*wrenn.Build, []LogLine, error) {
	name, err := wrenn.ParseTemplateName(template)
	if err != nil {
		return nil, nil, err
	}
	requested, err := s.store.RequestedBuild(ctx, c.Team, id)
	if wrenn.CodeOf(err) == wrenn.NotFound { // it has started, or never was
		return s.store.Build(ctx, c.Team, name, id, from, limit)
	}
	if err == nil && requested.Template != name {
		err = wrenn.Errorf(wrenn.NotFound, "template %s has no build %s", name, id)
	}
	return requested, nil, err
}

// TagTemplate makes tags of a template's name refer to the build that the template
// refers to now, and returns the build's id. The template has a tag or not.
func (s *Templates) TagTemplate(ctx context.Context, c Caller, template string, tags []string) (wrenn.BuildID, error) {
	name, err := wrenn.ParseTemplateName(template)
	if err == nil {
		tags, err = tagsOf(name.Name, tags)
	}
	if err != nil {
		return "", err
	}
	return s.store.TagBuild(ctx, c.Team, name, tags, s.limits.Limits)
}

// UntagTemplate removes tags of a template's name. A build without any tag is deleted.
func (s *Templates) UntagTemplate(ctx context.Context, c Caller, name string, tags []string) error {
	parsed, err := wrenn.ParseTemplateName(name)
	if err == nil {
		tags, err = tagsOf(parsed.Name, tags)
	}
	if err != nil {
		return err
	}
	return s.store.UntagBuild(ctx, c.Team, parsed.Name, tags)
}

// UploadToken returns a token which stands for the caller in an upload of the files of
// a COPY step, for two hours. It is for clients that upload without a key.
func (s *Templates) UploadToken(ctx context.Context, c Caller, hash string) (string, error) {
	if err := wrenn.CheckFilesHash(hash); err != nil {
		return "", err
	}
	return s.signUpload(ctx, c.Team, hash, strconv.FormatInt(time.Now().Add(uploadTTL).Unix(), 10))
}

// signUpload returns the token of an upload: the team, the time when it expires, and
// what proves both.
func (s *Templates) signUpload(ctx context.Context, team wrenn.TeamID, hash, expires string) (string, error) {
	seed, err := s.tokens.readSeed(ctx)
	if err != nil {
		return "", err
	}
	mac := hmac.New(sha256.New, seed)
	_, _ = fmt.Fprintf(mac, "upload of build files\x00%s\x00%s\x00%s", team, hash, expires) // never fails; no sandbox has such an id
	return string(team) + "." + expires + "." + hex.EncodeToString(mac.Sum(nil)), nil
}

// CheckUpload returns the caller whose UploadToken made the token for the hash. Other
// tokens are Unauthenticated.
func (s *Templates) CheckUpload(ctx context.Context, token, hash string) (Caller, error) {
	refused := wrenn.Errorf(wrenn.Unauthenticated, "the URL is not valid for this upload, or has expired: ask for another one")
	team, rest, _ := strings.Cut(token, ".")
	expires, _, _ := strings.Cut(rest, ".")
	until, err := strconv.ParseInt(expires, 10, 64)
	if err != nil || time.Now().Unix() > until {
		return Caller{}, refused
	}
	want, err := s.signUpload(ctx, wrenn.TeamID(team), hash, expires)
	if err != nil {
		return Caller{}, err
	}
	if !hmac.Equal([]byte(want), []byte(token)) {
		return Caller{}, refused
	}
	return Caller{Team: wrenn.TeamID(team)}, nil
}
