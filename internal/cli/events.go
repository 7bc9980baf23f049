package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/wake"
)

const (
	// eventsPause is how long events waits before it connects again.
	eventsPause = time.Second
	// eventsPatience is how long it tries without a connection.
	eventsPatience = time.Minute
)

type eventsCommand struct {
	Follow   bool              `short:"f" help:"Follow; it always does."`
	All      bool              `short:"a" help:"Begin with the sandboxes that exist."`
	Metadata map[string]string `short:"l" placeholder:"NAME=VALUE" mapsep:"none" help:"Only of sandboxes with this label; may be repeated."`
}

// Help is shown below the usage.
func (*eventsCommand) Help() string {
	return `It prints a line when a sandbox of the team is created, when its state changes, when it
stops answering, and when it ends and why, until Ctrl-C. A state that lasts for less than a
second may be left out. After a break it connects again and prints what has changed
until then. With -o json each line is the sandbox as an object.

  wrenn events -f
  wrenn events -f -l group=ci -o json`
}

// Run prints events until the server refuses, or cannot be reached for a minute.
func (c *eventsCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	f := &eventFeed{eventsCommand: c, s: s, api: api, last: map[string]string{}, heard: time.Now()}
	for {
		err := f.follow(ctx)
		if client.CodeOf(err) != client.Unavailable || time.Since(f.heard) > eventsPatience {
			return err
		}
		if !wake.Sleep(ctx, eventsPause) {
			return context.Cause(ctx)
		}
	}
}

// eventFeed prints what is new of sandboxes.
type eventFeed struct {
	*eventsCommand

	s      *session
	api    *client.Client
	last   map[string]string // what was printed of each sandbox that lives, or would have been
	joined bool              // an earlier connection has brought the sandboxes that exist
	heard  time.Time         // when the server last sent something
}

// follow prints what one connection brings, and returns why that ended.
func (f *eventFeed) follow(ctx context.Context) error {
	again, quiet := f.joined, !f.joined && !f.All
	for changes, err := range f.api.Events(ctx) {
		if err != nil {
			return err
		}
		f.heard, f.joined = time.Now(), true
		if again {
			if err := f.missed(ctx); err != nil {
				return err
			}
			again = false
		}
		for i := range changes.Sandboxes {
			if err := f.show(&changes.Sandboxes[i], changes.Snapshot && quiet); err != nil {
				return err
			}
		}
		for _, id := range changes.Dropped {
			if err := f.dropped(id); err != nil {
				return err
			}
		}
	}
	return nil
}

// missed prints what has ended while there was no connection.
func (f *eventFeed) missed(ctx context.Context) error {
	live := map[string]bool{}
	for sb, err := range f.api.Sandboxes(ctx, client.ListSandboxes{States: living}) {
		if err != nil {
			return err
		}
		live[sb.ID] = true
	}
	for id := range f.last {
		if live[id] {
			continue
		}
		sb, err := f.api.Sandbox(ctx, id)
		switch {
		case err == nil:
			err = f.show(sb, false)
		case client.CodeOf(err) == client.NotFound:
			err = f.dropped(id)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// show prints a sandbox if it is not as it was; a quiet one is only remembered.
func (f *eventFeed) show(sb *client.Sandbox, quiet bool) error {
	for name, value := range f.Metadata {
		if got, ok := sb.Metadata[name]; !ok || got != value {
			return nil
		}
	}
	line := fmt.Sprintf("%s  %-8s  %s", sb.ID, sb.State, details(*sb))
	if sb.Unresponsive != nil { // without how long it lasts
		line = fmt.Sprintf("%s  %-8s  unresponsive: %s", sb.ID, sb.State, sb.Unresponsive.Reason)
	}
	had, known := f.last[sb.ID]
	f.last[sb.ID] = line
	if sb.State == client.Stopped || sb.State == client.Failed {
		delete(f.last, sb.ID)
	}
	if quiet || known && had == line {
		return nil
	}
	return f.print(sb, line)
}

// dropped prints that nothing is known any more of a sandbox.
func (f *eventFeed) dropped(id string) error {
	if _, known := f.last[id]; !known && len(f.Metadata) > 0 {
		return nil
	}
	delete(f.last, id)
	return f.print(map[string]string{"id": id, "status": "gone"}, fmt.Sprintf("%s  %-8s  -", id, "gone"))
}

func (f *eventFeed) print(value any, line string) error {
	if f.s.json() {
		return json.NewEncoder(f.s.Out).Encode(value)
	}
	_, err := fmt.Fprintf(f.s.Out, "%s  %s\n", f.s.paint(f.s.Out, faint, time.Now().Format(time.DateTime)), plain.Line(line))
	return err
}
