package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"

	"github.com/alecthomas/kong"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
)

// nameLabel is the label that --name sets, and by which commands find a sandbox.
const nameLabel = "name"

// maxEnded is how many of the sandboxes that ended last are searched for an id.
const maxEnded = 500

// A sandbox may be called by its id, the beginning of its id, or its name.
var (
	prefixForm = regexp.MustCompile(`^i[a-z0-9]{0,20}$`)
	nameForm   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)
	// calledForm is a file of a sandbox that is not given by its whole id. A path of this machine that looks so is written ./a:b.
	calledForm = regexp.MustCompile(`(?s)^([A-Za-z0-9][A-Za-z0-9_.-]{0,62}):(.*)$`)
)

// resolve replaces what the command line calls sandboxes by their ids.
func (s *session) resolve(ctx context.Context, path []*kong.Path) error {
	done := map[reflect.Value]bool{}
	for _, at := range path {
		value := at.Positional
		if at.Flag != nil {
			value = at.Flag.Value
		}
		if value == nil || done[value.Target] {
			continue
		}
		done[value.Target] = true
		replace := map[string]func(context.Context, string) (string, error){"sandbox": s.sandboxID, "file": s.fileOf}[value.Tag.Get("complete")]
		if replace == nil {
			continue
		}
		if err := each(value.Target, func(text string) (string, error) { return replace(ctx, text) }); err != nil {
			return err
		}
	}
	return nil
}

// each replaces a text, or each of several.
func each(target reflect.Value, replace func(string) (string, error)) error {
	switch {
	case target.Kind() == reflect.String:
		text, err := replace(target.String())
		target.SetString(text)
		return err
	case target.Kind() == reflect.Slice:
		for i := range target.Len() {
			if err := each(target.Index(i), replace); err != nil {
				return err
			}
		}
	}
	return nil
}

// fileOf replaces the sandbox in NAME:PATH.
func (s *session) fileOf(ctx context.Context, text string) (string, error) {
	m := calledForm.FindStringSubmatch(text)
	if m == nil {
		return text, nil
	}
	if _, err := os.Lstat(text); err == nil { // a file of this machine
		return text, nil
	}
	id, err := s.sandboxID(ctx, m[1])
	return id + ":" + m[2], err
}

// sandboxID returns the id of the sandbox that is called so.
func (s *session) sandboxID(ctx context.Context, called string) (string, error) {
	if _, err := wrenn.ParseSandboxID(called); err == nil || called == "" {
		s.given = append(s.given, called)
		return called, nil
	}
	api, err := s.client()
	if err != nil {
		return "", err
	}
	found, err := search(ctx, api, called)
	if err != nil {
		return "", err
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("there is no sandbox %s: wrenn sandbox list --all shows their ids", plain.Line(called))
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%d sandboxes are called %s: %s", len(found), plain.Line(called), strings.Join(found[:min(len(found), 10)], " "))
}

// search returns the ids of the sandboxes with that name, else of those whose ids begin
// so: of those that live, else of those that ended last.
func search(ctx context.Context, api *client.Client, called string) (found []string, err error) {
	if nameForm.MatchString(called) {
		found, err = matching(ctx, api, client.ListSandboxes{States: living, Metadata: map[string]string{nameLabel: called}}, "")
	}
	if err != nil || len(found) > 0 || !prefixForm.MatchString(called) {
		return found, err
	}
	found, err = matching(ctx, api, client.ListSandboxes{States: living}, called)
	if err != nil || len(found) > 0 {
		return found, err
	}
	return matching(ctx, api, client.ListSandboxes{States: []client.State{client.Stopped, client.Failed}}, called)
}

func matching(ctx context.Context, api *client.Client, list client.ListSandboxes, prefix string) (found []string, err error) {
	seen := 0
	for sb, err := range api.Sandboxes(ctx, list) {
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(sb.ID, prefix) {
			found = append(found, sb.ID)
		}
		if seen++; seen == maxEnded && list.States[0] == client.Stopped {
			break
		}
	}
	return found, nil
}

// named returns the labels of a new sandbox with the name, which no other one that
// lives may have. "" is no name.
func named(ctx context.Context, api *client.Client, name string, labels map[string]string) (map[string]string, error) {
	if name == "" {
		return labels, nil
	}
	if !nameForm.MatchString(name) {
		return nil, errors.New("a name has up to 63 of A-Z a-z 0-9 _ . and -, and begins with a letter or a digit")
	}
	others, err := matching(ctx, api, client.ListSandboxes{States: living, Metadata: map[string]string{nameLabel: name}}, "")
	if err != nil {
		return nil, err
	}
	if len(others) > 0 {
		return nil, fmt.Errorf("sandbox %s has the name %s: kill it, or choose another name", others[0], name)
	}
	out := map[string]string{nameLabel: name}
	for label, value := range labels {
		if label != nameLabel {
			out[label] = value
		}
	}
	return out, nil
}
