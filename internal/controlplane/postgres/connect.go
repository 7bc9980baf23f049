package postgres

import (
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	connectTimeout = 3 * time.Second // of one server; less than that of a call, so that an address that drops packets fails in time
	connectWithin  = 4 * time.Second // of all servers of a URL, one after the other: the last one is reached within a call
)

// parseURL reads the URL of a database. It may name several servers, of which one is the
// primary now: connections to others are refused, because on a standby reads would be
// late and writes would fail.
func parseURL(url string) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, badURL(err, url)
	}
	prepare(cfg)
	return cfg, nil
}

func prepare(cfg *pgx.ConnConfig) {
	servers := map[string]bool{cfg.Host: true}
	for _, other := range cfg.Fallbacks {
		servers[other.Host] = true
	}
	cfg.ConnectTimeout = min(connectTimeout, connectWithin/time.Duration(len(servers)))
	if cfg.ValidateConnect == nil { // target_session_attrs is not set
		cfg.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	// A connection that only waits for notifications must find out that the server's machine is gone.
	cfg.DialFunc = (&net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 2}}).DialContext
}
