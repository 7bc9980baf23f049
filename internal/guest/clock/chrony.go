package clock

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Sockets of chronyd(8). It answers to a path only, as chronyc(1) has one.
const (
	chronySocket = "/run/chrony/chronyd.sock"
	ownSocket    = "/run/chrony/envd.sock"
)

// measurements is how often chronyd asks in a burst, 2 s apart: as often as at
// its start.
const measurements = 4

// notifyChrony has chronyd ask its servers now. It sleeps until its next question
// otherwise, which is up to 17 minutes away, and does not notice before that the
// clock was stepped: then it is not synchronized until the question after that.
// Without a chronyd there is an error.
//
// System calls, because package net is cold code after a restore.
func notifyChrony(server, own string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	_ = unix.Unlink(own) // of an agent that was killed here
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: own}); err != nil {
		return fmt.Errorf("bind %s: %w", own, err)
	}
	err = unix.Sendto(fd, burst(), 0, &unix.SockaddrUnix{Name: server})
	// chronyd ignores that its answer cannot be delivered.
	return errors.Join(err, unix.Unlink(own))
}

// burst is a request of chrony's command protocol, version 6, that chrony 2.0 to
// 4 understand: REQ_Burst in candm.h, for all sources.
func burst() []byte {
	const (
		version     = 6
		request     = 1 // PKT_TYPE_CMD_REQUEST
		reqBurst    = 3
		headerSize  = 20
		addressSize = 20 // mask and address; all zeros: any
	)
	b := make([]byte, 0, headerSize+2*addressSize+8)
	b = append(b, version, request, 0, 0)
	b = binary.BigEndian.AppendUint16(b, reqBurst)
	b = append(b, make([]byte, headerSize-len(b)+2*addressSize)...)
	b = binary.BigEndian.AppendUint32(b, measurements) // good ones
	return binary.BigEndian.AppendUint32(b, measurements)
}
