package hostclient

import (
	"cmp"
	"context"
	"io"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/hostwire"
	"wrenn.dev/internal/wire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// Inventory returns every sandbox of the host: the whole inventory or an error.
func (c *Client) Inventory(ctx context.Context) (wrenn.Inventory, error) {
	res, err := call(ctx, c, c.deadlines.Inventory, c.rpc.ListSandboxes, &pb.ListSandboxesRequest{})
	if err != nil {
		return wrenn.Inventory{}, err
	}
	return hostwire.ParseInventory(c.id, res), nil
}

// News is the stream by which a host tells that sandboxes have changed without a
// call. Close it.
type News struct {
	peer   string
	stream *connect.ServerStreamForClient[pb.WatchSandboxesResponse]
	cancel context.CancelFunc
}

// newsSilence is how long a host that lives may send nothing: more than three of its
// keepalives.
const newsSilence = 100 * time.Second

// Watch opens the stream of a host's news, which ends with ctx at the latest. The
// first Next returns at once.
func (c *Client) Watch(ctx context.Context) (*News, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.rpc.WatchSandboxes(ctx, &pb.WatchSandboxesRequest{})
	if err != nil {
		cancel()
		return nil, wire.FromConnect(c.peer, err)
	}
	return &News{peer: c.peer, stream: stream, cancel: cancel}, nil
}

// Next returns when something has changed: Inventory then has what.
func (n *News) Next() error {
	for {
		silence := time.AfterFunc(newsSilence, n.cancel)
		ok := n.stream.Receive()
		silence.Stop()
		if !ok {
			return wire.FromConnect(n.peer, cmp.Or(n.stream.Err(), io.ErrUnexpectedEOF))
		}
		if !n.stream.Msg().GetKeepalive() {
			return nil
		}
	}
}

// Close ends the stream. Twice is allowed.
func (n *News) Close() {
	n.cancel()
	_ = n.stream.Close() // Next has the errors that matter
}
