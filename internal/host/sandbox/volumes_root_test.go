//go:build root

package sandbox

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/volume"
)

// mountAnswer asks the server of volumes for one, as the sandbox's guest would. It
// returns the status of the answer: 0, or an errno. The error is that of the connection.
func mountAnswer(t *testing.T, sb *Sandbox, id wrenn.VolumeID) (uint32, error) {
	t.Helper()
	inside := sb.instance.Slot.Namespace() + "guest"
	var conn net.Conn
	err := netns.Do(inside, func() (err error) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp4", net.JoinHostPort(network.GatewayAddress, "2049"))
		return err
	})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	const mountProgram, mountVersion, mnt = 100005, 3, 1
	var call []byte
	for _, n := range []uint32{7, 0, 2, mountProgram, mountVersion, mnt, 0, 0, 0, 0, uint32(len(id) + 1)} {
		call = binary.BigEndian.AppendUint32(call, n)
	}
	call = append(append(call, "/"+string(id)...), make([]byte, -(len(id)+1)&3)...)
	_, err = conn.Write(append(binary.BigEndian.AppendUint32(nil, 1<<31|uint32(len(call))), call...))
	must(t, err)
	answer := make([]byte, 4+6*4+4)
	_, err = io.ReadFull(conn, answer)
	must(t, err)
	if !bytes.Equal(answer[4:8], call[:4]) {
		t.Fatalf("answer %x", answer)
	}
	return binary.BigEndian.Uint32(answer[28:]), nil
}

func wantVolume(t *testing.T, sb *Sandbox, id wrenn.VolumeID) {
	t.Helper()
	if status, err := mountAnswer(t, sb, id); status != 0 || err != nil {
		t.Errorf("sandbox %s mounts volume %s: status %d, %v", sb.ID(), id, status, err)
	}
}

// volumesLab is a lab whose hosts store volumes.
func volumesLab(t *testing.T) (*lab, func() wrenn.VolumeID) {
	t.Helper()
	l := newLab(t)
	l.network.Max = 6
	store, err := volume.Open(filepath.Join(l.cfg.StateDir, "volumes"))
	must(t, err)
	l.cfg.Volumes = store
	return l, func() wrenn.VolumeID {
		id := wrenn.NewVolumeID()
		must(t, store.Create(t.Context(), id, 16))
		return id
	}
}

// A sandbox has its volumes however its instance came to be, and no others.
func TestVolumes(t *testing.T) {
	l, newVolume := volumesLab(t)
	mine, other := newVolume(), newVolume()
	m := l.pooling(t, 1)
	wantPool(t, m, 1)
	sb := ensure(t, m, wrenn.SandboxSpec{Template: "base", Size: small, Volumes: []wrenn.VolumeMount{{Volume: mine, Path: "/data"}}})
	wantHits(t, m, 1, 0)
	wantVolume(t, sb, mine)
	if status, err := mountAnswer(t, sb, other); status != uint32(unix.ENOENT) || err != nil {
		t.Errorf("another volume: status %d, %v", status, err)
	}
	without := ensure(t, m, wrenn.SandboxSpec{Template: "base", Size: small})
	if _, err := mountAnswer(t, without, mine); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a sandbox without volumes: %v", err)
	}

	copies, err := sb.Fork(t.Context(), []wrenn.SandboxID{wrenn.NewSandboxID()}, nil)
	must(t, err)
	must(t, copies[0].Err)
	wantVolume(t, copies[0].Sandbox, mine)
	must(t, copies[0].Sandbox.Destroy(t.Context()))
	must(t, sb.Pause(t.Context()))
	must(t, l.cfg.Volumes.Create(t.Context(), mine, 16))
	must(t, sb.Resume(t.Context()))
	wantVolume(t, sb, mine)

	testkit.WantCode(t, l.cfg.Volumes.Delete(mine), wrenn.FailedPrecondition)
	must(t, sb.Destroy(t.Context()))
	must(t, l.cfg.Volumes.Delete(mine))
	_, err = m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Template: "base", Size: small, Volumes: []wrenn.VolumeMount{{Volume: mine, Path: "/data"}}})
	testkit.WantCode(t, err, wrenn.NotFound)
}

// The next agent serves the volumes of the sandboxes that it finds.
func TestVolumesOfAnotherAgent(t *testing.T) {
	l, newVolume := volumesLab(t)
	id := newVolume()
	m := l.open(t)
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Template: "base", Size: small, Volumes: []wrenn.VolumeMount{{Volume: id, Path: "/data"}}})
	must(t, err)
	m = l.restart(t, m)
	wantVolume(t, get(t, m, sb.ID()), id)
	must(t, m.DestroyAll(t.Context()))
	must(t, l.cfg.Volumes.Delete(id))
}
