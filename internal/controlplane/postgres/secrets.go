package postgres

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// Sealed is the encrypted value of a secret.
type Sealed struct {
	ID      wrenn.SecretID
	Team    wrenn.TeamID
	Version int
	Value   []byte
	KeyID   string // of the key that encrypts it; only written
}

// CreateSecret writes a new secret. It takes Name, ID and Metadata of the first, and the
// value of the second. AlreadyExists when the team has one of that name, Exhausted at its limit.
func (s secretStore) CreateSecret(ctx context.Context, secret wrenn.Secret, sealed Sealed, limits Limits) (*wrenn.Secret, error) {
	var out *wrenn.Secret
	err := s.inTx(ctx, "create a secret", func(ctx context.Context, q *dbsqlc.Queries) error {
		if err := lockTeam(ctx, q, sealed.Team); err != nil {
			return err
		}
		now, err := q.CountSecrets(ctx, secret.Name, string(sealed.Team))
		switch {
		case err != nil:
			return err
		case now.Named > 0:
			return wrenn.Errorf(wrenn.AlreadyExists, "the team has a secret %s already", secret.Name)
		case int(now.Secrets) >= limits.Secrets:
			return wrenn.Errorf(wrenn.Exhausted, "the team is at its limit of %d secrets: delete one first; the operator sets the limit as limits.secrets", limits.Secrets)
		}
		row, err := q.InsertSecret(ctx, dbsqlc.InsertSecretParams{
			ID: string(secret.ID), TeamID: string(sealed.Team), Name: secret.Name, Metadata: orEmpty(secret.Metadata), Sealed: sealed.Value, KeyID: sealed.KeyID,
		})
		out = secretOf(dbsqlc.FindSecretRow(row))
		return err
	})
	return out, err
}

// UpdateSecret gives a secret another value, and another metadata unless it is nil.
// NotFound when it was deleted.
func (s secretStore) UpdateSecret(ctx context.Context, sealed Sealed, metadata map[string]string) (*wrenn.Secret, error) {
	var out *wrenn.Secret
	err := s.call(ctx, "update a secret", func(ctx context.Context) error {
		row, err := s.queries.UpdateSecret(ctx, dbsqlc.UpdateSecretParams{
			ID: string(sealed.ID), TeamID: string(sealed.Team), Sealed: sealed.Value, KeyID: sealed.KeyID, KeepMetadata: metadata == nil, Metadata: orEmpty(metadata),
		})
		out = secretOf(dbsqlc.FindSecretRow(row))
		return secretError(err, string(sealed.ID))
	})
	return out, err
}

func secretError(err error, name string) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return wrenn.Errorf(wrenn.NotFound, "there is no secret %.128s", name)
	}
	return err
}

// Secret returns a secret by its name or id, without its value.
func (s secretStore) Secret(ctx context.Context, team wrenn.TeamID, name string) (*wrenn.Secret, error) {
	var out *wrenn.Secret
	err := s.call(ctx, "read a secret", func(ctx context.Context) error {
		row, err := s.queries.FindSecret(ctx, string(team), name)
		out = secretOf(row)
		return secretError(err, name)
	})
	return out, err
}

// Secrets returns a page of a team's secrets in the order of their names, those after a name.
func (s secretStore) Secrets(ctx context.Context, team wrenn.TeamID, after string, limit int) ([]wrenn.Secret, error) {
	var out []wrenn.Secret
	err := s.call(ctx, "list secrets", func(ctx context.Context) error {
		rows, err := s.queries.ListSecrets(ctx, string(team), after, clampInt32(limit))
		for _, row := range rows {
			out = append(out, *secretOf(dbsqlc.FindSecretRow(row)))
		}
		return err
	})
	return out, err
}

// DeleteSecret deletes a secret by its name or id.
func (s secretStore) DeleteSecret(ctx context.Context, team wrenn.TeamID, name string) error {
	return s.call(ctx, "delete a secret", func(ctx context.Context) error {
		n, err := s.queries.DeleteSecret(ctx, string(team), name)
		if err == nil && n == 0 {
			err = pgx.ErrNoRows
		}
		return secretError(err, name)
	})
}

// SealedSecret returns the encrypted value of a secret, by its name or id.
func (s secretStore) SealedSecret(ctx context.Context, team wrenn.TeamID, name string) (*Sealed, error) {
	var out *Sealed
	err := s.call(ctx, "read the value of a secret", func(ctx context.Context) error {
		row, err := s.queries.SealedSecret(ctx, string(team), name)
		out = &Sealed{ID: wrenn.SecretID(row.ID), Team: team, Version: int(row.Version), Value: row.Sealed}
		return secretError(err, name)
	})
	return out, err
}

// SecretKey names a secret of a team.
type SecretKey struct {
	Team wrenn.TeamID
	Name string
}

// SecretVersion is the version that a secret has now.
type SecretVersion struct {
	SecretKey
	ID      wrenn.SecretID
	Version int
}

// SecretVersions returns the versions of all secrets of teams.
func (s secretStore) SecretVersions(ctx context.Context, teams []wrenn.TeamID) ([]SecretVersion, error) {
	var out []SecretVersion
	err := s.call(ctx, "read the versions of secrets", func(ctx context.Context) error {
		ids := make([]string, len(teams))
		for i, t := range teams {
			ids[i] = string(t)
		}
		rows, err := s.queries.SecretVersions(ctx, ids)
		for _, row := range rows {
			out = append(out, SecretVersion{SecretKey{wrenn.TeamID(row.TeamID), row.Name}, wrenn.SecretID(row.ID), int(row.Version)})
		}
		return err
	})
	return out, err
}

// SecretsOfOtherKeys returns secrets of all teams that another key encrypts, in the
// order of their ids, those after an id.
func (s secretStore) SecretsOfOtherKeys(ctx context.Context, keyID string, after wrenn.SecretID, limit int) ([]Sealed, error) {
	var out []Sealed
	err := s.call(ctx, "look for secrets of other keys", func(ctx context.Context) error {
		rows, err := s.queries.SecretsOfOtherKeys(ctx, keyID, string(after), clampInt32(limit))
		for _, row := range rows {
			out = append(out, Sealed{ID: wrenn.SecretID(row.ID), Team: wrenn.TeamID(row.TeamID), Version: int(row.Version), Value: row.Sealed})
		}
		return err
	})
	return out, err
}

// ResealSecret writes the same value, encrypted by another key, unless the secret has changed.
func (s secretStore) ResealSecret(ctx context.Context, sealed Sealed) error {
	return s.call(ctx, "encrypt a secret again", func(ctx context.Context) error {
		_, err := s.queries.ResealSecret(ctx, dbsqlc.ResealSecretParams{ID: string(sealed.ID), Version: clampInt32(sealed.Version), Sealed: sealed.Value, KeyID: sealed.KeyID})
		return err
	})
}

// SealedProxy is the encrypted password of the egress proxy of a sandbox.
type SealedProxy struct {
	Sandbox wrenn.SandboxID
	Team    wrenn.TeamID
	Sealed  []byte
}

// ProxiesOfOtherKeys returns the passwords of egress proxies of all teams that another key
// encrypts, of sandboxes that have not ended, in the order of their ids, those after an id.
func (s secretStore) ProxiesOfOtherKeys(ctx context.Context, keyID string, after wrenn.SandboxID, limit int) ([]SealedProxy, error) {
	var out []SealedProxy
	err := s.call(ctx, "look for passwords of proxies of other keys", func(ctx context.Context) error {
		rows, err := s.queries.ProxiesOfOtherKeys(ctx, keyID, string(after), clampInt32(limit))
		for _, row := range rows {
			sealed, err := base64.StdEncoding.DecodeString(row.Sealed) // as encoding/json writes bytes
			if err != nil {
				return fmt.Errorf("sandbox %s: %w", row.ID, err)
			}
			out = append(out, SealedProxy{Sandbox: wrenn.SandboxID(row.ID), Team: wrenn.TeamID(row.TeamID), Sealed: sealed})
		}
		return err
	})
	return out, err
}

// ResealProxy writes the same password, encrypted by another key, unless the proxy has changed.
func (s secretStore) ResealProxy(ctx context.Context, old SealedProxy, sealed []byte, keyID string) error {
	return s.call(ctx, "encrypt the password of a proxy again", func(ctx context.Context) error {
		text := base64.StdEncoding.EncodeToString
		_, err := s.queries.ResealProxy(ctx, dbsqlc.ResealProxyParams{ID: string(old.Sandbox), Old: text(old.Sealed), Sealed: text(sealed), KeyID: keyID})
		return err
	})
}

func secretOf(row dbsqlc.FindSecretRow) *wrenn.Secret {
	return &wrenn.Secret{
		ID: wrenn.SecretID(row.ID), Name: row.Name, Version: int(row.Version), Metadata: row.Metadata, CreatedAt: row.CreatedAt.UTC(), UpdatedAt: row.UpdatedAt.UTC(),
	}
}
