package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// HostToken is a token with which a host joins.
type HostToken struct {
	Hash       []byte
	Host       wrenn.HostID
	Name, Zone string
	Labels     map[string]string
	TTL        time.Duration
}

// JoinedHost is a host that joins or renews.
type JoinedHost struct {
	ID     wrenn.HostID
	URL    string
	Name   string // if the token has none
	Serial string // of its new certificate
	Until  time.Time
}

// AddHostToken writes a token, and returns when it expires by the database's clock.
func (s *Store) AddHostToken(ctx context.Context, t HostToken) (expires time.Time, err error) {
	err = s.inTx(ctx, "write the token", func(ctx context.Context, q *dbsqlc.Queries) error {
		if err := q.DropHostTokens(ctx); err != nil {
			return err
		}
		var err error
		expires, err = q.AddHostToken(ctx, dbsqlc.AddHostTokenParams{
			Hash: t.Hash, HostID: string(t.Host), Name: t.Name, Zone: t.Zone, Labels: orEmpty(t.Labels), Seconds: t.TTL.Seconds(),
		})
		return err
	})
	return expires.UTC(), err
}

// JoinHost uses up a token and makes the row of its host. It is Unauthenticated, with the
// reason, when the token cannot be used.
func (s *Store) JoinHost(ctx context.Context, hash []byte, host JoinedHost) (*wrenn.HostRecord, error) {
	var out wrenn.HostRecord
	err := s.inTx(ctx, "join", func(ctx context.Context, q *dbsqlc.Queries) error {
		token, err := q.UseHostToken(ctx, hash)
		if errors.Is(err, pgx.ErrNoRows) {
			return whyNoToken(ctx, q, hash)
		}
		if err != nil {
			return err
		}
		if token.Name == "" {
			token.Name = host.Name
		}
		row, err := q.JoinHost(ctx, dbsqlc.JoinHostParams{
			ID: string(host.ID), URL: host.URL, Name: token.Name, Zone: token.Zone, Labels: token.Labels, Serial: host.Serial, CertificateUntil: &host.Until,
		})
		out = hostRecord(row)
		return err
	})
	return &out, err
}

// JoinHostOfNode makes or changes the row of a host that Kubernetes vouches for. It is
// PermissionDenied for a host whose use an operator has ended.
func (s *Store) JoinHostOfNode(ctx context.Context, host JoinedHost) (*wrenn.HostRecord, error) {
	var out wrenn.HostRecord
	err := s.inTx(ctx, "join", func(ctx context.Context, q *dbsqlc.Queries) error {
		row, err := q.JoinHostOfNode(ctx, dbsqlc.JoinHostOfNodeParams{
			ID: string(host.ID), URL: host.URL, Name: host.Name, Serial: host.Serial, CertificateUntil: &host.Until,
		})
		if errors.Is(err, pgx.ErrNoRows) {
			return wrenn.Errorf(wrenn.PermissionDenied, "an operator has ended the use of host %s, and its node does not undo that: make a token with `wrenn host token --id %[1]s` and join by it on the node, or register the node again, which makes it another host", host.ID)
		}
		out = hostRecord(row)
		return err
	})
	return &out, err
}

// whyNoToken is the error of a token that cannot be used.
func whyNoToken(ctx context.Context, q *dbsqlc.Queries, hash []byte) error {
	token, err := q.FindHostToken(ctx, hash)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return wrenn.Errorf(wrenn.Unauthenticated, "the token is unknown: it was not made by this fleet, or it expired more than a week ago; make another one with `wrenn host token`")
	case err != nil:
		return err
	case token.UsedAt != nil:
		return wrenn.Errorf(wrenn.Unauthenticated, "the token was used at %s, and works once: make another one with `wrenn host token --id %s`", token.UsedAt.UTC().Format(time.RFC3339), token.HostID)
	}
	return wrenn.Errorf(wrenn.Unauthenticated, "the token expired at %s: make another one with `wrenn host token --id %s`", token.ExpiresAt.UTC().Format(time.RFC3339), token.HostID)
}

// RenewHost writes the new certificate of a host that presented the one with that serial
// number. It is PermissionDenied, with the reason, when the host may not use that.
func (s *Store) RenewHost(ctx context.Context, presented string, host JoinedHost) error {
	return s.inTx(ctx, "renew a certificate", func(ctx context.Context, q *dbsqlc.Queries) error {
		n, err := q.RenewHost(ctx, dbsqlc.RenewHostParams{
			URL: host.URL, Serial: host.Serial, Presented: presented, CertificateUntil: &host.Until, ID: string(host.ID),
		})
		if err != nil || n > 0 {
			return err
		}
		row, err := q.FindHost(ctx, string(host.ID))
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return wrenn.Errorf(wrenn.PermissionDenied, "there is no host %s in this fleet: make a token with `wrenn host token`, and join", host.ID)
		case err != nil:
			return err
		case row.Status == string(wrenn.HostRemoved) || row.Status == string(wrenn.HostLost):
			return wrenn.Errorf(wrenn.PermissionDenied, "host %s is %s: its certificate is revoked; to use it again make a token with `wrenn host token --id %[1]s`, and join", host.ID, row.Status)
		}
		return wrenn.Errorf(wrenn.PermissionDenied, "the certificate of host %s was replaced by a newer one: does another machine use its files? Make a token with `wrenn host token --id %[1]s`, and join", host.ID)
	})
}
