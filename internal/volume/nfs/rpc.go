package nfs

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"wrenn.dev/internal/credentials"
)

const (
	// transferSize is the most data in one read or write, in bytes. A client of
	// Linux waits for a megabyte to be complete before it shows any of it; 128 KiB
	// keep the memory of a server small.
	transferSize = 128 << 10
	// maxRecord is the most bytes of a call: its data, its arguments and its header.
	maxRecord = transferSize + 4<<10
	// maxAuth is the most bytes of credentials (RFC 5531, section 8.2).
	maxAuth = 400
	// maxGroups is the most groups in AUTH_SYS (RFC 5531, appendix A).
	maxGroups = 16
)

// The values of RFC 5531 that the server uses.
const (
	rpcVersion = 2

	messageCall  = 0
	messageReply = 1

	replyAccepted = 0
	replyDenied   = 1

	acceptSuccess      = 0
	acceptNoProgram    = 1
	acceptMismatch     = 2
	acceptNoProcedure  = 3
	acceptGarbage      = 4
	rejectRPCMismatch  = 0
	rejectAuth         = 1
	authNone           = 0
	authSys            = 1
	authBadCredentials = 1
)

// call is a remote procedure call.
type call struct {
	xid       uint32
	program   uint32
	version   uint32
	procedure uint32
	user      credentials.Credentials
	args      []byte
	flavor    uint32 // of the credentials
	rpc       uint32 // the version of the protocol
}

// readRecord reads one call from a connection: its fragments together (RFC 5531,
// section 11).
func readRecord(r *bufio.Reader) ([]byte, error) {
	var record []byte
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return nil, err
		}
		mark := binary.BigEndian.Uint32(head[:])
		size := int(mark &^ (1 << 31))
		if size > maxRecord-len(record) {
			return nil, fmt.Errorf("a call of more than %d bytes", maxRecord)
		}
		from := len(record)
		record = append(record, make([]byte, size)...)
		if _, err := io.ReadFull(r, record[from:]); err != nil {
			return nil, err
		}
		if mark>>31 == 1 {
			return record, nil
		}
		if size == 0 {
			return nil, errors.New("an empty fragment")
		}
	}
}

// parseCall parses a call. Its arguments are part of record.
func parseCall(record []byte) (*call, error) {
	d := &decoder{rest: record}
	c := &call{xid: d.uint32()}
	if kind := d.uint32(); d.err == nil && kind != messageCall {
		return nil, errors.New("a message that is no call")
	}
	c.rpc, c.program, c.version, c.procedure = d.uint32(), d.uint32(), d.uint32(), d.uint32()
	c.flavor = d.uint32()
	body := d.opaque(maxAuth)
	_ = d.uint32() // the verifier, which neither flavor uses
	_ = d.opaque(maxAuth)
	if d.err != nil {
		return nil, d.err
	}
	c.args = d.rest
	if c.flavor == authSys {
		return c, c.parseUser(body)
	}
	c.user.UID, c.user.GID = anonymous, anonymous
	return c, nil
}

// anonymous is the user and the group of calls without credentials.
const anonymous = 65534

// parseUser parses the credentials of AUTH_SYS.
func (c *call) parseUser(body []byte) error {
	d := &decoder{rest: body}
	_ = d.uint32()    // a stamp
	_ = d.string(255) // the client's name
	c.user.UID, c.user.GID = d.uint32(), d.uint32()
	n := d.uint32()
	if n > maxGroups {
		return errShort
	}
	for range n {
		c.user.Groups = append(c.user.Groups, d.uint32())
	}
	return d.err
}

// replyHead returns a reply up to its result, with room for the record's mark.
func (c *call) replyHead(status uint32) encoder {
	e := make(encoder, 4, 256)
	e.uint32(c.xid, messageReply, replyAccepted, authNone, 0, status)
	return e
}

// deny returns the reply to a call of another protocol version or with other credentials, or nil.
func (c *call) deny() encoder {
	e := make(encoder, 4, 32)
	switch {
	case c.rpc != rpcVersion:
		e.uint32(c.xid, messageReply, replyDenied, rejectRPCMismatch, rpcVersion, rpcVersion)
	case c.flavor != authNone && c.flavor != authSys:
		e.uint32(c.xid, messageReply, replyDenied, rejectAuth, authBadCredentials)
	default:
		return nil
	}
	return e
}

// seal sets the record's mark of a whole reply.
func (e encoder) seal() []byte {
	binary.BigEndian.PutUint32(e, 1<<31|uint32(len(e)-4))
	return e
}
