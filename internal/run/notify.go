package run

import (
	"context"
	"io"
	"net"
)

// Notify tells systemd something, such as READY=1, over the socket that
// NOTIFY_SOCKET names, see sd_notify(3). Without a socket there is nobody to tell.
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
