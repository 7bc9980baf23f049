package pgserver

import (
	"context"
	"fmt"
	"net"
	"os/user"
	"strings"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/credentials"
)

// localAdmin is the superuser of the distribution's server: a connection of the user of
// that name needs no password.
const localAdmin = "postgres"

// EnsureLocal makes the role and the database of the URL of a PostgreSQL that listens
// on a Unix socket of this machine, unless they exist, and returns what it made. The
// role is that of the URL, else the given one. It must be called by root or by the
// server's own user. Of a server elsewhere, or a URL with a password, it makes
// nothing: the operator of that server makes them.
func EnsureLocal(ctx context.Context, url, role string) (made []string, err error) {
	return ensureLocal(ctx, url, role, localAdmin)
}

func ensureLocal(ctx context.Context, url, role, admin string) (made []string, err error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, wrenn.Errorf(wrenn.Invalid, "the database's URL cannot be parsed") // pgx's error may show the password
	}
	if !strings.HasPrefix(cfg.Host, "/") || cfg.Password != "" {
		return nil, nil
	}
	if self, err := user.Current(); err != nil || cfg.User != self.Username { // pgx's default
		role = cfg.User
	}
	conn, err := connectAs(ctx, cfg, admin)
	if err != nil {
		return nil, fmt.Errorf("connect to the database of this machine as %s: %w", admin, err)
	}
	defer func() { _ = conn.Close(ctx) }() // all queries have been answered
	owner, name := pgx.Identifier{role}.Sanitize(), pgx.Identifier{cfg.Database}.Sanitize()
	for _, want := range []struct{ what, name, exists, create string }{
		{"role", role, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", "CREATE ROLE " + owner + " LOGIN"},
		{"database", cfg.Database, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", "CREATE DATABASE " + name + " OWNER " + owner},
	} {
		var found bool
		if err := conn.QueryRow(ctx, want.exists, want.name).Scan(&found); err != nil {
			return made, err
		}
		if found {
			continue
		}
		if _, err := conn.Exec(ctx, want.create); err != nil {
			return made, fmt.Errorf("make the %s %s: %w", want.what, want.name, err)
		}
		made = append(made, want.what+" "+want.name)
	}
	return made, nil
}

// connectAs connects to the server of cfg as its superuser, whose process the caller
// seems to be: the server asks the kernel who connected.
func connectAs(ctx context.Context, cfg *pgx.ConnConfig, admin string) (*pgx.Conn, error) {
	owner, err := ownerOf(Config{})
	if err != nil {
		return nil, err
	}
	own := cfg.Copy()
	own.User, own.Database = admin, "postgres"
	own.DialFunc = func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		as := credentials.Credentials{}
		if owner.cred != nil {
			as.UID, as.GID = owner.cred.Uid, owner.cred.Gid
		}
		err = as.Do(func() error {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
	return pgx.ConnectConfig(ctx, own)
}
