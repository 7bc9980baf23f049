package nodes

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/hostjoin"
	"wrenn.dev/internal/testkit"
)

const uid = "1f0c9d3e-7a52-4b1e-9c88-3f2a6b7c8d9"

// cluster answers lists of nodes, one node a page.
type cluster struct {
	items  []string
	status int
	answer string // in place of a page
}

func (c *cluster) Get(_ context.Context, path string) (*http.Response, error) {
	target, err := url.Parse(path)
	if err != nil || target.Path != "/api/v1/nodes" || target.Query().Get("limit") != "250" {
		return nil, fmt.Errorf("asked for %s", path)
	}
	at := 0
	_, _ = fmt.Sscan(target.Query().Get("continue"), &at)
	next := ""
	if at+1 < len(c.items) {
		next = fmt.Sprint(at + 1)
	}
	items := ""
	if at < len(c.items) {
		items = c.items[at]
	}
	text := fmt.Sprintf(`{"kind": "NodeList", "apiVersion": "v1", "metadata": {"resourceVersion": "7", "continue": %q}, "items": [%s]}`, next, items)
	if c.answer != "" {
		text = c.answer
	}
	return &http.Response{StatusCode: c.status, Body: io.NopCloser(strings.NewReader(text))}, nil
}

func item(n int, spec string) string {
	return fmt.Sprintf(`{"metadata": {"name": "node%d", "uid": "%s%d", "labels": {"a": "b"}}, "spec": %s, "status": {"images": []}}`, n, uid, n, spec)
}

func TestNodes(t *testing.T) {
	t.Parallel()
	c := &cluster{status: http.StatusOK, items: []string{
		item(1, `{"podCIDR": "10.0.0.0/24"}`),
		item(2, `{"unschedulable": true, "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}`),
		item(3, `{"taints": [{"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}]}`),
	}}
	got, err := Reader{c}.Nodes(t.Context())
	testkit.Must(t, err)
	var want []State
	for i := range 3 {
		n, err := hostjoin.NewNode(fmt.Sprintf("node%d", i+1), fmt.Sprintf("%s%d", uid, i+1))
		testkit.Must(t, err)
		want = append(want, State{n, i == 1, i == 2})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
}

// TestNodesRefuses: nothing is decided by an answer that is not whole.
func TestNodesRefuses(t *testing.T) {
	t.Parallel()
	one := item(1, `{}`)
	for text, c := range map[string]*cluster{
		"needs list of nodes": {status: http.StatusForbidden},
		"status 503":          {status: http.StatusServiceUnavailable},
		"lists no nodes":      {status: http.StatusOK},
		"no list of nodes":    {status: http.StatusOK, answer: `{"kind": "Status"}`},
		"unexpected EOF":      {status: http.StatusOK, answer: `{"kind": "NodeList", "items": [` + one},
		"is no node":          {status: http.StatusOK, items: []string{one, `{"metadata": {"name": "x", "uid": "not one"}}`}},
	} {
		if got, err := (Reader{c}).Nodes(t.Context()); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, %v, want %q", got, err, text)
		}
	}
}
