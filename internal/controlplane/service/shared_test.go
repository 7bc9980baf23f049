package service_test

import (
	"context"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

// builtAndStored builds a template and waits until its row says that it is stored.
func builtAndStored(t *testing.T, w *world, s *service.Service, name string) *wrenn.Build {
	t.Helper()
	id := built(t, s, w.caller, service.BuildTemplate{Name: name}).ID
	var g *wrenn.Build
	testkit.WaitUntil(t, "the template is stored", func() bool {
		found, err := s.Template(t.Context(), w.caller, name)
		testkit.Must(t, err)
		g = found.Current
		return g != nil && g.Stored.Key != ""
	})
	if g.ID != id || g.Stored.Key != hosttest.TemplateKey(w.caller.Team, id) || g.Stored.At.IsZero() {
		t.Errorf("stored: %+v", g)
	}
	return g
}

func sharing() *hosttest.Agent {
	return &hosttest.Agent{HasStore: true, SharesTemplates: true, Platform: wrenn.Platform{Driver: "qemu", Version: "8"}}
}

func createOf(t *testing.T, w *world, s *service.Service, template string) (*wrenn.Sandbox, error) {
	t.Helper()
	return s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{Template: template}})
}

// TestStoredTemplate: sandboxes of a stored template prefer the hosts that have it, and
// start on any other when these are gone. When it is deleted its objects go.
func TestStoredTemplate(t *testing.T) {
	t.Parallel()
	agents := map[wrenn.HostID]*hosttest.Agent{"h1": sharing(), "h2": sharing()}
	w := newWorld(t, agents["h1"], agents["h2"])
	s, _ := w.replica(t, func(c *service.Config) { c.ReconcileEvery = secondly })
	g := builtAndStored(t, w, s, "py")
	near, err := createOf(t, w, s, "py")
	testkit.Must(t, err)
	if near.Host != g.Host {
		t.Errorf("it is on %s, although %s has the template", near.Host, g.Host)
	}
	other := map[wrenn.HostID]wrenn.HostID{"h1": "h2", "h2": "h1"}[g.Host]
	w.servers[g.Host[1]-'1'].Stop()
	var far *wrenn.Sandbox
	testkit.WaitUntil(t, "the host is known to be gone", func() bool {
		far, err = createOf(t, w, s, "py")
		return err == nil
	})
	if far.Host != other || far.Build != g.ID {
		t.Errorf("%+v", far)
	}
	testkit.WaitUntil(t, "the host is declared lost", func() bool {
		_, err := s.LoseHost(t.Context(), w.caller, g.Host)
		return err == nil
	})
	if _, err := createOf(t, w, s, "py"); err != nil {
		t.Errorf("after its host was lost: %v", err)
	}
	derived := built(t, s, w.caller, service.BuildTemplate{Name: "derived", FromTemplate: "py"})
	if derived.State != wrenn.BuildReady || derived.Host != other {
		t.Errorf("a template of it: %+v", derived)
	}
	testkit.Must(t, s.DeleteTemplate(t.Context(), w.caller, "py"))
	if agents[other].Purged(w.caller.Team, g.ID) {
		t.Error("its objects were deleted while creates may need them")
	}
	w.sql(t, `UPDATE template_generations SET updated_at = now() - interval '1 hour' WHERE id = $1`, string(g.ID))
	testkit.WaitUntil(t, "the objects are deleted", func() bool { return agents[other].Purged(w.caller.Team, g.ID) })
}

// TestTemplateThatIsNotStored stays where it is: on a host without a store, or of an
// agent that cannot share it.
func TestTemplateThatIsNotStored(t *testing.T) {
	t.Parallel()
	agents := map[wrenn.HostID]*hosttest.Agent{"h1": {HasStore: true}, "h2": {HasStore: true}}
	w := newWorld(t, agents["h1"], agents["h2"])
	s, _ := w.replica(t, nil)
	g := built(t, s, w.caller, service.BuildTemplate{Name: "py"})
	w.servers[g.Host[1]-'1'].Stop()
	testkit.WaitUntil(t, "the host is known to be gone", func() bool {
		_, err := createOf(t, w, s, "py")
		return wrenn.CodeOf(err) == wrenn.Unavailable
	})
}

// TestHostThatCannotFetch: a host that cannot use what is stored is passed over; if all
// are, the error has the reason.
func TestHostThatCannotFetch(t *testing.T) {
	t.Parallel()
	agents := map[wrenn.HostID]*hosttest.Agent{"h1": sharing(), "h2": sharing(), "h3": sharing()}
	w := newWorld(t, agents["h1"], agents["h2"], agents["h3"])
	s, _ := w.replica(t, nil)
	g := builtAndStored(t, w, s, "py")
	_, err := s.CordonHost(t.Context(), w.caller, g.Host)
	testkit.Must(t, err)
	var good wrenn.HostID
	for id, a := range agents {
		if id == g.Host {
			continue
		}
		if good == "" {
			good = id
			continue
		}
		a.Before = func(_ context.Context, method, _ string) error {
			if method == "CreateSandbox" {
				return wrenn.Errorf(wrenn.FailedPrecondition, "the stored snapshot cannot be used: it is damaged")
			}
			return nil
		}
	}
	for range 3 {
		var sb *wrenn.Sandbox
		testkit.WaitUntil(t, "the host is cordoned", func() bool {
			sb, err = createOf(t, w, s, "py")
			testkit.Must(t, err)
			return sb.Host != g.Host
		})
		if sb.Host != good {
			t.Errorf("it is on %s", sb.Host)
		}
	}
}
