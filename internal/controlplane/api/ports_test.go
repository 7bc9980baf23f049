package api

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
)

// TestPorts: how ports are reached, with a domain and without, and when they are private.
func TestPorts(t *testing.T) {
	s := &stub{}
	server := serve(t, s, nil)
	c, err := client.New(client.Config{URL: "http://" + server.address, Key: testKey})
	testkit.Must(t, err)
	want := func(sb *client.Sandbox, err error, want *client.Ports) {
		t.Helper()
		testkit.Must(t, err)
		if diff := cmp.Diff(want, sb.Ports); diff != "" {
			t.Errorf("ports (-want +got):\n%s", diff)
		}
	}
	sb, err := c.CreateSandbox(t.Context(), client.CreateSandbox{})
	want(sb, err, &client.Ports{URL: "/p/" + testID + "/{port}/"})
	if got, want := c.PortURLOf(sb, 80), "http://"+server.address+"/p/"+testID+"/80/"; got != want {
		t.Errorf("PortURLOf() = %s, want %s", got, want)
	}

	s.ingress = wrenn.Ingress{Private: true, MaskHost: "localhost:${PORT}", HTTPSPorts: []uint16{443}}
	byName := serve(t, s, func(s *Server) { s.domain = "example.com:8443" })
	c, err = client.New(client.Config{URL: "http://" + byName.address, Key: testKey})
	testkit.Must(t, err)
	private := &client.Ports{
		URL: "https://{port}-" + testID + ".example.com:8443/", Private: true, Token: "traffic-token-of-" + testID, MaskHost: "localhost:${PORT}", HTTPS: []uint16{443},
	}
	sb, err = c.CreateSandbox(t.Context(), client.CreateSandbox{Ports: &client.SetPorts{Private: true, MaskHost: "localhost:${PORT}", HTTPS: []uint16{443}}})
	want(sb, err, private)
	if diff := cmp.Diff(s.ingress, s.created.Ingress); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
	if got, want := c.PortURLOf(sb, 80), "https://80-"+testID+".example.com:8443/"; got != want {
		t.Errorf("PortURLOf() = %s, want %s", got, want)
	}
	sb, err = c.Sandbox(t.Context(), testID)
	want(sb, err, private)
	sb, err = c.PauseSandbox(t.Context(), testID)
	want(sb, err, private)
	for sb, err := range c.Sandboxes(t.Context(), client.ListSandboxes{}) {
		want(&sb, err, nil)
	}
	s.box = box(testID, wrenn.Stopped)
	sb, err = c.Sandbox(t.Context(), testID)
	want(sb, err, nil)
}
