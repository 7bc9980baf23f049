package run

import (
	"context"
	"io"
	"net"
)

// Notify sends a state, such as READY=1, to systemd over socket, the value of
// NOTIFY_SOCKET, see sd_notify(3). If socket is empty it does nothing.
func Notify(ctx context.Context, socket, state string) error {
	if socket == "" {
		return nil
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unixgram", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = io.WriteString(conn, state)
	return err
}
