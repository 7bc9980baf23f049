package api

import (
	"errors"
	"io"
	"net"
	"testing"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
)

// programOn serves each connection with h, and returns its address.
func programOn(t *testing.T, h func(net.Conn)) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				h(conn)
			}()
		}
	}()
	return l.Addr().String()
}

// TestConnectPort speaks by the SDK: the two ends of the protocol are one package.
func TestConnectPort(t *testing.T) {
	connect := func(t *testing.T, h func(net.Conn)) net.Conn {
		t.Helper()
		server := serve(t, &stub{port: programOn(t, h)}, nil)
		c, err := client.New(client.Config{URL: "http://" + server.address, Key: testKey})
		testkit.Must(t, err)
		conn, err := c.DialPort(t.Context(), testID, 80)
		testkit.Must(t, err)
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	t.Run("both directions, each with its end", func(t *testing.T) {
		conn := connect(t, func(program net.Conn) {
			all, _ := io.ReadAll(program) // to the client's end
			_, _ = program.Write(all)
		})
		content := make([]byte, 3<<20+1)
		for i := range content {
			content[i] = byte(i >> 8)
		}
		_, err := conn.Write(content)
		testkit.Must(t, err)
		testkit.Must(t, conn.(interface{ CloseWrite() error }).CloseWrite())
		if got, err := io.ReadAll(conn); err != nil || string(got) != string(content) {
			t.Errorf("%d bytes came back as %d, other ones or not all, %v", len(content), len(got), err)
		}
	})
	t.Run("a program that breaks", func(t *testing.T) {
		conn := connect(t, func(program net.Conn) {
			_, _ = program.Read(make([]byte, 1))
			_ = program.(*net.TCPConn).SetLinger(0) // its close is a reset
		})
		_, err := conn.Write([]byte("x"))
		testkit.Must(t, err)
		if _, err := io.ReadAll(conn); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v: a cut connection must not look like a whole one", err)
		}
	})
	t.Run("cut by the host", func(t *testing.T) {
		paused := wrenn.Errorf(wrenn.CutByPause, "the sandbox was paused")
		server := serve(t, &stub{port: programOn(t, func(net.Conn) {}), cut: paused}, nil) // its end looks like a whole one
		c, err := client.New(client.Config{URL: "http://" + server.address, Key: testKey})
		testkit.Must(t, err)
		conn, err := c.DialPort(t.Context(), testID, 80)
		testkit.Must(t, err)
		defer conn.Close()
		_, err = io.ReadAll(conn)
		if client.CodeOf(err) != client.CutByPause || err.Error() != paused.Message || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a client that leaves", func(t *testing.T) {
		ended := make(chan error, 1)
		conn := connect(t, func(program net.Conn) {
			_, err := io.Copy(io.Discard, program)
			ended <- err
		})
		conn.Close()
		<-ended // the program hears of it
	})
}
