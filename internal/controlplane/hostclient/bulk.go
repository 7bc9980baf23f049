package hostclient

import (
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// bulkCodec is protobuf that reads chunks of files into reused buffers: with new
// ones a GiB leaves a GiB of garbage, and collecting it took a third of the
// control plane's CPU time. The receiver of a ReadFileStreamResponse returns its
// chunk by recycle.
type bulkCodec struct {
	buffers *sync.Pool // of *[]byte
}

var _ connect.Codec = bulkCodec{}

func (c bulkCodec) clone(b []byte) []byte {
	if buf, ok := c.buffers.Get().(*[]byte); ok && cap(*buf) >= len(b) {
		return append((*buf)[:0], b...)
	}
	return append(make([]byte, 0, max(len(b), maxFrame)), b...)
}

func (c bulkCodec) recycle(b []byte) {
	if cap(b) >= maxFrame {
		c.buffers.Put(&b)
	}
}

// Name is that of protobuf: the peer sees no difference.
func (bulkCodec) Name() string { return "proto" }

// Marshal implements connect.Codec.
func (bulkCodec) Marshal(msg any) ([]byte, error) { return proto.Marshal(msg.(proto.Message)) }

// Unmarshal implements connect.Codec.
func (c bulkCodec) Unmarshal(data []byte, msg any) error {
	if m, ok := msg.(*pb.ReadFileStreamResponse); ok {
		if chunk, ok := onlyChunk(data); ok {
			m.Chunk = c.clone(chunk)
			return nil
		}
	}
	return proto.Unmarshal(data, msg.(proto.Message))
}

// onlyChunk returns the chunk of a message that has no other field.
func onlyChunk(data []byte) ([]byte, bool) {
	const field = 1 // ReadFileStreamResponse.chunk
	number, kind, n := protowire.ConsumeTag(data)
	if n < 0 || number != field || kind != protowire.BytesType {
		return nil, false
	}
	chunk, m := protowire.ConsumeBytes(data[n:])
	return chunk, m > 0 && n+m == len(data)
}
