//go:build root

package server_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm/vmfake"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// earlier is the state directory of an agent of the version before package wrenn
// had the words of hosts, whose machine was then shut down. That agent built a
// template and made a sandbox from it, wrote 'a' in its memory and on its disk and took a
// checkpoint, wrote 'b', paused it, forked it, and wrote 'c' in the copy. One more
// sandbox has ended, and one ran. Nothing of it may ever become unusable.
const earlier = "testdata/earlier"

func TestStateOfAnEarlierVersion(t *testing.T) {
	c := call(t, agenttest.Config{StateDir: earlier, Slots: 4})
	c.wantEarlier(t)
	if diff := cmp.Diff([]string{"t0template00000000000"}, c.builds(t)); diff != "" {
		t.Errorf("templates (-want +got):\n%s", diff)
	}

	const paused, copied = "i0paused0000000000000", "i0fork000000000000000"
	for id, mark := range map[string]byte{paused: 'b', copied: 'c'} {
		_, err := c.ResumeSandbox(t.Context(), &pb.ResumeSandboxRequest{SandboxId: id})
		testkit.Must(t, err)
		c.wantMark(t, id, mark)
	}
	list, err := c.ListCheckpoints(t.Context(), &pb.ListCheckpointsRequest{SandboxId: paused})
	if err != nil || list.GetHead() != "first" || len(list.GetCheckpoints()) != 1 || list.GetCheckpoints()[0].GetName() != "before the upgrade" {
		t.Fatalf("checkpoints: %v, %v", list, err)
	}
	_, err = c.RestoreCheckpoint(t.Context(), &pb.RestoreCheckpointRequest{SandboxId: paused, CheckpointId: "first"})
	testkit.Must(t, err)
	c.wantMark(t, paused, 'a')
	_, err = c.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: string(wrenn.NewSandboxID()), Template: "mine", Generation: "t0template00000000000"})
	testkit.Must(t, err)

	// What this version writes, the next agent finds.
	_, err = c.PauseSandbox(t.Context(), &pb.PauseSandboxRequest{SandboxId: paused})
	testkit.Must(t, err)
	c.agent.Stop(t)
	c.agent.Start(t)
	c = connectTo(t, c.agent)
	_, err = c.ResumeSandbox(t.Context(), &pb.ResumeSandboxRequest{SandboxId: paused})
	testkit.Must(t, err)
	c.wantMark(t, paused, 'a')
}

// wantEarlier fails unless the host lists the sandboxes of the earlier version.
func (c caller) wantEarlier(t *testing.T) {
	t.Helper()
	res, err := c.ListSandboxes(t.Context(), &pb.ListSandboxesRequest{})
	testkit.Must(t, err)
	got := map[string]string{}
	for _, info := range res.GetSandboxes() {
		got[info.GetSandboxId()] = strings.ToLower(strings.TrimPrefix(info.GetStatus().String(), "SANDBOX_STATUS_")) + " " + info.GetTemplate() + " " + info.GetReason()
		if info.GetMemoryMb() != 64 || info.GetVcpus() != 1 {
			t.Errorf("a sandbox of 64 MiB is listed as %v", info)
		}
	}
	want := map[string]string{
		"i0paused0000000000000": "paused mine ", "i0fork000000000000000": "paused mine ", "i0ended00000000000000": "stopped base not used for 50ms",
		"i0running000000000000": "failed base its machine ended while the host's agent was down, as when the host restarts",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sandboxes (-want +got):\n%s", diff)
	}
}

// wantMark fails unless the sandbox has the mark in its memory and on its disk.
func (c caller) wantMark(t *testing.T, id string, mark byte) {
	t.Helper()
	var guest *vmfake.Guest
	for _, ref := range c.agent.World.Running() {
		if strings.HasPrefix(ref.ID, id) {
			guest = c.agent.World.GuestOf(ref)
		}
	}
	if guest == nil {
		t.Fatalf("sandbox %s has no machine", id)
	}
	disk, err := guest.ReadDisk(t.Context())
	testkit.Must(t, err)
	if same, err := guest.Filled(t.Context(), "mark", mark); err != nil || !same || disk != string(mark) {
		t.Errorf("sandbox %s has %q on its disk; its memory has %q: %t, %v", id, disk, mark, same, err)
	}
}
