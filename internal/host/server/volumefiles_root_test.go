//go:build root

package server_test

import (
	"bytes"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/wire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// writeVolume sends a file in pieces.
func (c caller) writeVolume(t *testing.T, id, path string, pieces ...[]byte) error {
	t.Helper()
	stream, err := c.WriteVolumeFile(t.Context())
	testkit.Must(t, err)
	_ = stream.Send(&pb.WriteFileStreamRequest{Part: &pb.WriteFileStreamRequest_Volume{Volume: &pb.WriteVolumeFileMeta{VolumeId: id, Path: path}}})
	for _, piece := range pieces {
		if stream.Send(&pb.WriteFileStreamRequest{Part: &pb.WriteFileStreamRequest_Chunk{Chunk: piece}}) != nil {
			break // the answer says why
		}
	}
	_, err = stream.CloseAndReceive()
	return wire.FromConnect("agent", err)
}

func (c caller) readVolume(t *testing.T, id, path string) (content []byte) {
	t.Helper()
	stream, err := c.ReadVolumeFile(t.Context(), &pb.VolumeFileRequest{VolumeId: id, Path: path})
	testkit.Must(t, err)
	for stream.Receive() {
		content = append(content, stream.Msg().GetChunk()...)
	}
	testkit.Must(t, stream.Err())
	return content
}

// TestVolumeFiles: files of a real volume, up to its size.
func TestVolumeFiles(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := string(wrenn.NewVolumeID())
	if _, err := c.CreateVolume(t.Context(), &pb.CreateVolumeRequest{VolumeId: id, SizeMib: 16}); err != nil {
		t.Fatal(err)
	}
	piece := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	testkit.Must(t, c.writeVolume(t, id, "/one", piece, piece))
	full := make([][]byte, 20)
	for i := range full {
		full[i] = piece
	}
	testkit.WantCode(t, c.writeVolume(t, id, "/one", full...), wrenn.NoSpace)
	if got := c.readVolume(t, id, "one"); !bytes.Equal(got, bytes.Repeat(piece, 2)) {
		t.Errorf("after a write that did not fit the file has %d bytes", len(got))
	}
	testkit.Must(t, c.writeVolume(t, id, "/two", full[:8]...)) // what did not fit takes no room
	list, err := c.ListVolumeFiles(t.Context(), &pb.ListVolumeFilesRequest{VolumeId: id, Path: "/"})
	if err != nil || len(list.GetEntries()) != 2 || list.GetEntries()[1].GetSize() != 8<<20 {
		t.Errorf("the volume has %v, %v", list, err)
	}
	stream, err := c.WriteVolumeFile(t.Context())
	testkit.Must(t, err)
	testkit.Must(t, stream.Send(&pb.WriteFileStreamRequest{Part: &pb.WriteFileStreamRequest_Chunk{Chunk: piece}}))
	if _, err := stream.CloseAndReceive(); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("without its first message: %v", err)
	}
	for _, bad := range []string{"", "../x", string(wrenn.NewSandboxID()), strings.Repeat("v", 21), string(wrenn.NewVolumeID())} {
		if _, err := c.StatVolumeFile(t.Context(), &pb.VolumeFileRequest{VolumeId: bad, Path: "/"}); connect.CodeOf(err) != connect.CodeInvalidArgument && connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("volume %q: %v", bad, err)
		}
	}
	if _, err := c.DeleteVolume(t.Context(), &pb.DeleteVolumeRequest{VolumeId: id}); err != nil { // nothing holds it
		t.Error(err)
	}
}
