package envdclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

const (
	// connectTimeout bounds one attempt to connect. A SYN that comes before the
	// guest's interface is up is lost, and the kernel would repeat it after 1 s only.
	connectTimeout = 100 * time.Millisecond
	connectTries   = 7 // 12.7 s in all
	// connectSpacing is the pause after a refused attempt. Under emulation each
	// attempt costs the guest time: at 2 ms spacing a restore took 10 ms longer.
	connectSpacing = 20 * time.Millisecond
)

// WaitReady returns when envd answers /health. If the machine ends first, it
// returns the error of gone, which is vm.Machine.Wait; if ctx ends, its cause.
func (c *Client) WaitReady(ctx context.Context, gone func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		err := gone(ctx)
		if err == nil {
			err = errors.New("the guest powered off")
		}
		cancel(err)
	}()
	err := c.pollHealth(ctx)
	cancel(nil)
	<-watched
	return err
}

func (c *Client) pollHealth(ctx context.Context) error {
	for {
		err := c.health(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the guest's agent (%w): %w", err, context.Cause(ctx))
		case <-time.After(connectSpacing):
		}
	}
}

func (c *Client) health(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/health", nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)) // so that the connection can be reused
	if resp.StatusCode >= 300 {
		return fmt.Errorf("health: %s", clean(resp.Status))
	}
	return nil
}

// retrying returns a dial function that tries again after connectTimeout, and
// doubles that each time: an emulated guest that shares its CPU may need seconds.
// It tries connectTries times, because a dial may outlive the request that it is for.
func retrying(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		for limit, try := connectTimeout, 0; try < connectTries; limit, try = 2*limit, try+1 {
			conn, err = dialWithin(ctx, limit, dial, network, address)
			if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
		}
		return conn, err
	}
}

func dialWithin(ctx context.Context, limit time.Duration, dial func(context.Context, string, string) (net.Conn, error), network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return dial(ctx, network, address)
}
