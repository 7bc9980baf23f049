package sandbox

import (
	"context"
	"net"
	"time"
)

// DialPort connects to a TCP port of the sandbox; see envdclient.Client.DialPort.
// A paused sandbox with AutoResume is resumed first. The connection breaks when
// the sandbox is paused or ends. It does not count as use by itself: call Touch
// when something goes through it.
func (s *Sandbox) DialPort(ctx context.Context, port uint16) (net.Conn, error) {
	release, err := s.Use(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return s.Guest().DialPort(ctx, port)
}

// Touch records that the sandbox was used now.
func (s *Sandbox) Touch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life.active = time.Now()
}
