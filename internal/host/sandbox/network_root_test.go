//go:build root

package sandbox

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"

	"wrenn.dev"
	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/netns"
)

var (
	nothing   = wrenn.NetworkPolicy{DenyByDefault: true}
	onlyOne   = wrenn.NetworkPolicy{DenyByDefault: true, Allow: []netip.Prefix{netip.MustParsePrefix("8.8.8.8/32")}}
	butOne    = wrenn.NetworkPolicy{Deny: []netip.Prefix{netip.MustParsePrefix("9.9.9.9/32")}}
	named     = wrenn.NetworkPolicy{DenyByDefault: true, Names: []wrenn.NetworkName{{Domain: "*.example.com", Port: 443}}}
	layered   = wrenn.NetworkPolicy{}.With(butOne, wrenn.NetworkPolicy{Deny: []netip.Prefix{netip.MustParsePrefix("1.1.1.1/32")}})
	inKernel  = map[string]wrenn.NetworkPolicy{"0/1/0": nothing, "0/3/0": onlyOne, "0/4/0": layered, "0/2/0": butOne, "0/0/0": {}, "0/1/1": named}
	byAddress = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
)

// wantPolicy fails unless the sandbox reports the policy, and its slot follows it.
func wantPolicy(t *testing.T, sb *Sandbox, want wrenn.NetworkPolicy) {
	t.Helper()
	if diff := cmp.Diff(want, sb.Info().Network, byAddress); diff != "" {
		t.Errorf("reported (-want +got):\n%s", diff)
	}
	j, err := journal.Read(sb.dir())
	must(t, err)
	if diff := cmp.Diff(want, j.Network, byAddress); diff != "" {
		t.Errorf("in the journal (-want +got):\n%s", diff)
	}
	if sb.instance == nil {
		return
	}
	if got := listens(t, sb.instance.Slot.Namespace(), 53); len(want.Names) > 0 && !got {
		t.Error("nothing answers questions for names")
	}
	sets := elements(t, sb.instance.Slot.Namespace(), "allowed") + "/" + elements(t, sb.instance.Slot.Namespace(), "denied") + "/" + elements(t, sb.instance.Slot.Namespace(), "named")
	if diff := cmp.Diff(want, inKernel[sets], byAddress); diff != "" {
		t.Errorf("in the kernel, %s (-want +got):\n%s", sets, diff)
	}
}

// listens reports whether a socket of the namespace listens at a port, by TCP.
func listens(t *testing.T, namespace string, port int) bool {
	t.Helper()
	var sockets []byte
	must(t, netns.Do(namespace, func() (err error) {
		sockets, err = os.ReadFile("/proc/thread-self/net/tcp")
		return err
	}))
	return strings.Contains(string(sockets), fmt.Sprintf(":%04X 00000000:0000 0A", port))
}

// elements counts the elements of a set of the slot's table. A network that does
// not end with the last address has two.
func elements(t *testing.T, namespace, set string) string {
	t.Helper()
	n := 0
	must(t, netns.Do(namespace, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		found, err := conn.GetSetElements(&nftables.Set{
			Table: &nftables.Table{Family: nftables.TableFamilyINet, Name: "wrenn"}, Name: set, KeyType: nftables.TypeIPAddr, Interval: true,
		})
		n = len(found)
		return err
	}))
	return strconv.Itoa(n)
}

func ensureWith(t *testing.T, m *Manager, policy wrenn.NetworkPolicy) *Sandbox {
	t.Helper()
	spec := poolable
	spec.Network = policy
	return ensure(t, m, spec)
}

func TestNetworkPolicyOfAPooledMachine(t *testing.T) {
	l := newLab(t)
	m := l.pooling(t, 1)
	wantPool(t, m, 1)
	sb := ensureWith(t, m, onlyOne)
	wantHits(t, m, 1, 0)
	wantPolicy(t, sb, onlyOne)
}

// TestNetworkPolicyOfBuilds: the guests in which steps and commands of a build run follow it.
func TestNetworkPolicyOfBuilds(t *testing.T) {
	m := newLab(t).open(t)
	recipe := Recipe{Name: "built", Size: poolable.Size, Network: onlyOne}
	ran := 0
	must(t, m.Work(t.Context(), recipe, func(_ context.Context, s *Sandbox) error {
		ran++
		wantPolicy(t, s, onlyOne)
		return nil
	}))
	recipe.Prepare = func(context.Context, *envdclient.Client) error {
		for _, s := range m.registry.all() {
			ran++
			wantPolicy(t, s, onlyOne)
		}
		return nil
	}
	must(t, m.Build(t.Context(), recipe))
	if ran != 2 {
		t.Errorf("looked at %d guests, want 2", ran)
	}
}

func TestNetworkPolicyIsKept(t *testing.T) {
	l := newLab(t)
	l.network.Max = 4
	m := l.open(t)
	sb := ensureWith(t, m, nothing)
	wantPolicy(t, sb, nothing)
	must(t, sb.SetNetwork(t.Context(), onlyOne, wrenn.SecretValues{}))
	wantPolicy(t, sb, onlyOne)
	must(t, sb.SetNetwork(t.Context(), layered, wrenn.SecretValues{}))
	wantPolicy(t, sb, layered)

	copies, err := sb.Fork(t.Context(), []wrenn.SandboxID{wrenn.NewSandboxID()}, nil)
	must(t, err)
	must(t, copies[0].Err)
	destroyLater(t, copies[0].Sandbox)
	wantPolicy(t, copies[0].Sandbox, layered)

	must(t, sb.Pause(t.Context()))
	wantPolicy(t, sb, layered)
	must(t, sb.SetNetwork(t.Context(), named, wrenn.SecretValues{})) // while it has no slot
	wantPolicy(t, sb, named)
	must(t, sb.Resume(t.Context()))
	wantPolicy(t, sb, named)
	must(t, sb.SetNetwork(t.Context(), butOne, wrenn.SecretValues{}))
	wantPolicy(t, sb, butOne)

	cp, err := sb.Checkpoint(t.Context(), "cp", "")
	must(t, err)
	must(t, sb.SetNetwork(t.Context(), nothing, wrenn.SecretValues{}))
	must(t, sb.RestoreCheckpoint(t.Context(), cp.ID))
	wantPolicy(t, sb, nothing) // it is the sandbox's, not the moment's
	must(t, sb.SetNetwork(t.Context(), wrenn.NetworkPolicy{}, wrenn.SecretValues{}))
	wantPolicy(t, sb, wrenn.NetworkPolicy{})
	err = sb.SetNetwork(t.Context(), wrenn.NetworkPolicy{Deny: []netip.Prefix{netip.MustParsePrefix("fd00::/8")}}, wrenn.SecretValues{})
	if wrenn.CodeOf(err) != wrenn.Invalid {
		t.Errorf("SetNetwork() = %v", err)
	}
}

// The next agent obeys the journal, also when the last one died between writing a
// policy and obeying it.
func TestNetworkPolicyOfAnAdoptedSandbox(t *testing.T) {
	l := newLab(t)
	l.cfg.Adopt = true
	m := l.open(t)
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Size: small, Network: onlyOne})
	must(t, err)
	must(t, sb.journal.commit("network policy", func(j *journal.Journal) { j.Network = named }))
	m.Close()
	l.crash(t)
	m = l.open(t)
	adopted, err := m.Get(sb.ID())
	must(t, err)
	destroyLater(t, adopted)
	wantPolicy(t, adopted, named)
}

func TestNetworkPolicyThatCannotBeObeyed(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb := ensureWith(t, m, nothing)
	must(t, sb.Destroy(t.Context()))
	if err := sb.SetNetwork(t.Context(), onlyOne, wrenn.SecretValues{}); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("SetNetwork of one that ended = %v", err)
	}
	l.wantClean(t, m)
}

// The log of a sandbox outlives its instances.
func TestEgressLog(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb := ensureWith(t, m, wrenn.NetworkPolicy{})
	sb.egress.Record(wrenn.EgressEvent{Name: "example.com"})
	first := sb.Egress(t.Context(), 0)
	if len(first.Events) != 1 || first.Events[0].Name != "example.com" {
		t.Fatalf("read %+v", first)
	}
	must(t, sb.Pause(t.Context()))
	must(t, sb.Resume(t.Context()))
	sb.egress.Record(wrenn.EgressEvent{Name: "example.org"})
	if next := sb.Egress(t.Context(), first.Events[0].Seq); len(next.Events) != 1 || next.Events[0].Name != "example.org" || next.Dropped != 0 {
		t.Errorf("read %+v", next)
	}
}

func TestExplainEgress(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb := ensureWith(t, m, onlyOne)
	for host, want := range map[string]string{"8.8.8.8": "allow 8.8.8.8", "9.9.9.9": "default deny", "10.1.1.1": "closed 10.0.0.0/8"} {
		e, err := sb.ExplainEgress(t.Context(), host, 0)
		if err != nil || e.Rule != want || e.Allowed != (host == "8.8.8.8") {
			t.Errorf("%s: %+v, %v, want %s", host, e, err, want)
		}
	}
}
