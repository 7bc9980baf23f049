// Package ntp answers a guest's requests for the time, as RFC 5905 defines: one
// packet in, one packet of the same size out, without state. The caller owns the
// sockets.
//
// It is not a library's because the well-kept ones are clients. A server for
// hostile guests is 40 lines that parse fixed offsets and allocate nothing.
package ntp

import (
	"encoding/binary"
	"time"
)

// PacketSize is the size of a packet without extensions: RFC 5905 §7.3.
const PacketSize = 48

// Port is NTP's UDP port.
const Port = 123

// Values of an answer, by RFC 5905 §7.3.
const (
	modeClient = 3
	modeServer = 4
	// stratum is that of a server with only its local clock, as in chrony's
	// "local": whether the host's clock is synchronized is not checked.
	stratum = 10
	// precision is log2 of a clock's resolution in seconds: a microsecond.
	precision = -20
	// rootDispersion is the claimed error, 1 ms, in seconds of 16.16 bits.
	rootDispersion = 1 << 16 / 1000
	// referenceID of an undisciplined local clock, 127.127.1.1 by custom.
	referenceID = 0x7f7f0101
	// oldest and newest version of a client; an answer has the client's.
	oldest, newest = 3, 4
)

// Offsets in a packet.
const (
	atStratum    = 1
	atPoll       = 2
	atPrecision  = 3
	atDispersion = 8
	atReference  = 12
	atUpdated    = 16
	atOrigin     = 24
	atReceived   = 32
	atTransmit   = 40
)

// Answer writes into answer the reply to a request, which came at received, and
// reports whether there is a reply: only a client's request gets one. now is the
// time of the reply. Extensions of a request are ignored, so a reply is never
// longer than its request.
func Answer(answer *[PacketSize]byte, request []byte, received, now time.Time) bool {
	if len(request) < PacketSize {
		return false
	}
	version, mode := request[0]>>3&7, request[0]&7
	if mode != modeClient || version < oldest || version > newest {
		return false
	}
	clear(answer[:])
	answer[0] = version<<3 | modeServer
	answer[atStratum] = stratum
	answer[atPoll] = request[atPoll]
	answer[atPrecision] = 0x100 + precision
	binary.BigEndian.PutUint32(answer[atDispersion:], rootDispersion)
	binary.BigEndian.PutUint32(answer[atReference:], referenceID)
	copy(answer[atOrigin:atReceived], request[atTransmit:])
	binary.BigEndian.PutUint64(answer[atUpdated:], Timestamp(received))
	binary.BigEndian.PutUint64(answer[atReceived:], Timestamp(received))
	binary.BigEndian.PutUint64(answer[atTransmit:], Timestamp(now))
	return true
}

// epoch is the Unix time of NTP's year 1900.
const epoch = -2208988800

// Timestamp returns t in NTP's format: seconds since 1900 and a fraction of 32
// bits. It wraps in 2036, when the next era begins, as clients expect.
func Timestamp(t time.Time) uint64 {
	seconds := uint64(uint32(t.Unix() - epoch)) // wraps as it should
	return seconds<<32 | uint64(t.Nanosecond())<<32/uint64(time.Second)
}
