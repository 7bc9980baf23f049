// Package ntp answers a guest that asks for the time, as RFC 5905 has it: one
// packet in, one packet of the same size out, nothing kept. Sockets are the
// caller's business.
package ntp

import (
	"encoding/binary"
	"time"
)

// PacketSize is the size of a packet without extensions: RFC 5905 §7.3.
const PacketSize = 48

// Port is NTP's.
const Port = 123

// Values of an answer, by RFC 5905 §7.3.
const (
	modeClient = 3
	modeServer = 4
	// stratum is what servers use that have nothing but their own clock, as
	// chrony's "local" does: whether the host follows anybody is not asked.
	stratum = 10
	// precision is log2 of a clock's resolution in seconds: a microsecond.
	precision = -20
	// rootDispersion is the error that is admitted to, 1 ms, in seconds of 16.16 bits.
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

// Answer writes the answer to a request that came at received and is answered
// at now into answer, and reports whether there is one: what is not a client's request
// gets none. Extensions of a request are ignored, so an answer is never longer.
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

// Timestamp is t as NTP counts: seconds since 1900 and a fraction of 32 bits.
// It wraps in 2036, when the next era begins, and clients know.
func Timestamp(t time.Time) uint64 {
	seconds := uint64(uint32(t.Unix() - epoch)) // wraps as it should
	return seconds<<32 | uint64(t.Nanosecond())<<32/uint64(time.Second)
}
