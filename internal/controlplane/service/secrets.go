package service

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/wake"
)

const (
	maxSecretPage = 1000
	resealPage    = 100
	// resealRetry is when encrypting secrets with the first key is tried again.
	resealRetry = time.Minute
)

// Secrets are the use cases of secrets: texts of a team that no call returns. A secret
// is named by its name or id; another team's is NotFound.
type Secrets struct {
	*core
}

// NewSecret is a secret to store.
type NewSecret struct {
	Name     string // see wrenn.ParseSecretName
	Value    string // 1 byte to 32 KiB
	Metadata map[string]string
}

// belongsTo is what a value is encrypted with, so that it opens in no other row.
func belongsTo(team wrenn.TeamID, id wrenn.SecretID) string { return string(team) + "/" + string(id) }

func (s *Secrets) seal(team wrenn.TeamID, id wrenn.SecretID, value []byte) (postgres.Sealed, error) {
	sealed, err := s.vault.Seal(belongsTo(team, id), value)
	return postgres.Sealed{ID: id, Team: team, Value: sealed, KeyID: s.vault.KeyID()}, err
}

// CreateSecret stores a secret. AlreadyExists when the team has one of that name,
// Exhausted at its limit, FailedPrecondition when this server has no key.
func (s *Secrets) CreateSecret(ctx context.Context, c Caller, req NewSecret) (*wrenn.Secret, error) {
	name, err := wrenn.ParseSecretName(req.Name)
	if err == nil {
		err = wrenn.CheckSecret(req.Value, req.Metadata)
	}
	if err != nil {
		return nil, err
	}
	id := wrenn.NewSecretID()
	sealed, err := s.seal(c.Team, id, []byte(req.Value))
	if err != nil {
		return nil, err
	}
	defer s.notifyHosts() // sandboxes may wait for it
	return s.store.CreateSecret(ctx, wrenn.Secret{ID: id, Name: name, Metadata: req.Metadata}, sealed, s.limits.Limits)
}

// UpdateSecret gives a secret another value; metadata nil leaves that as it is.
func (s *Secrets) UpdateSecret(ctx context.Context, c Caller, name, value string, metadata map[string]string) (*wrenn.Secret, error) {
	if err := wrenn.CheckSecret(value, metadata); err != nil {
		return nil, err
	}
	found, err := s.Secret(ctx, c, name)
	if err != nil {
		return nil, err
	}
	sealed, err := s.seal(c.Team, found.ID, []byte(value))
	if err != nil {
		return nil, err
	}
	defer s.notifyHosts()
	return s.store.UpdateSecret(ctx, sealed, metadata)
}

// SetSecret is CreateSecret, or UpdateSecret if there is one of that name. It reports
// whether it is new.
func (s *Secrets) SetSecret(ctx context.Context, c Caller, req NewSecret) (secret *wrenn.Secret, created bool, err error) {
	for range 3 { // another caller may delete or create it in between
		secret, err = s.CreateSecret(ctx, c, req)
		if wrenn.CodeOf(err) != wrenn.AlreadyExists {
			return secret, err == nil, err
		}
		secret, err = s.UpdateSecret(ctx, c, req.Name, req.Value, req.Metadata)
		if wrenn.CodeOf(err) != wrenn.NotFound {
			return secret, false, err
		}
	}
	return nil, false, err
}

// Secret returns a secret without its value.
func (s *Secrets) Secret(ctx context.Context, c Caller, name string) (*wrenn.Secret, error) {
	name, err := secretName(name)
	if err != nil {
		return nil, err
	}
	return s.store.Secret(ctx, c.Team, name)
}

// secretName returns a name or an id as rows have it: NotFound for what is neither.
func secretName(text string) (string, error) {
	if id := strings.ToLower(text); wrenn.IsSecretID(id) {
		return id, nil
	}
	name, err := wrenn.ParseSecretName(text)
	if err != nil {
		return "", wrenn.Errorf(wrenn.NotFound, "there is no secret of that name")
	}
	return name, nil
}

// ListSecrets returns a page of the team's secrets in the order of their names, those
// after a name; "" is from the first. A limit of 0 is 1,000, which is the most.
func (s *Secrets) ListSecrets(ctx context.Context, c Caller, after string, limit int) ([]wrenn.Secret, error) {
	if limit <= 0 || limit > maxSecretPage {
		limit = maxSecretPage
	}
	return s.store.Secrets(ctx, c.Team, after, limit)
}

// DeleteSecret deletes a secret with its value.
func (s *Secrets) DeleteSecret(ctx context.Context, c Caller, name string) error {
	name, err := secretName(name)
	if err != nil {
		return err
	}
	defer s.notifyHosts()
	return s.store.DeleteSecret(ctx, c.Team, name)
}

// SecretValue decrypts the value of a secret, for what puts it into requests of a
// team's sandboxes on their way out. It must never be in an answer of an API, in a log
// or in a guest. FailedPrecondition when this server has not the secret's key.
func (s *Secrets) SecretValue(ctx context.Context, team wrenn.TeamID, name string) (value []byte, version int, err error) {
	if name, err = secretName(name); err != nil {
		return nil, 0, err
	}
	sealed, err := s.store.SealedSecret(ctx, team, name)
	if err != nil {
		return nil, 0, err
	}
	value, err = s.vault.Open(belongsTo(team, sealed.ID), sealed.Value)
	return value, sealed.Version, err
}

// runReseal encrypts with the first key what other keys encrypt, so that their files can be
// removed. It ends when that is done, and tries again after errors. Twice is allowed.
func (s *Secrets) runReseal(ctx context.Context) error {
	if s.vault.KeyID() == "" {
		return nil
	}
	for {
		changed, failed, err := s.resealAll(ctx)
		if changed > 0 {
			s.log.LogAttrs(ctx, slog.LevelInfo, "encrypted secrets with the first key", slog.Int("secrets", changed))
		}
		if err == nil && failed == 0 {
			return nil
		}
		if ctx.Err() == nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "cannot encrypt all secrets with the first key; will retry", slog.Int("secrets", failed), slog.Any("err", err))
		}
		if !wake.Sleep(ctx, resealRetry) {
			return nil
		}
	}
}

// resealAll returns how many values were encrypted again, and how many have a key that is
// not here.
func (s *Secrets) resealAll(ctx context.Context) (changed, failed int, err error) {
	for _, kind := range []func(context.Context) (int, int, error){s.resealSecrets, s.resealWebhooks, s.resealProxies} {
		again, unread, err := kind(ctx)
		changed, failed = changed+again, failed+unread
		if err != nil {
			return changed, failed, err
		}
	}
	return changed, failed, nil
}

// resealSecrets returns how many secrets were encrypted again, and how many have a key that
// is not here.
func (s *Secrets) resealSecrets(ctx context.Context) (changed, failed int, err error) {
	page := func(after postgres.Sealed) ([]postgres.Sealed, error) {
		return s.store.SecretsOfOtherKeys(ctx, s.vault.KeyID(), after.ID, resealPage)
	}
	return resealEach(s.vault, page,
		func(old postgres.Sealed) (string, []byte) { return belongsTo(old.Team, old.ID), old.Value },
		func(old postgres.Sealed, sealed []byte) error {
			old.Value, old.KeyID = sealed, s.vault.KeyID()
			return s.store.ResealSecret(ctx, old)
		})
}

// resealEach encrypts with the first key everything that page returns, which continues after
// what it gets, until that is nothing: what of returns, the owner and the encrypted value,
// is passed encrypted again to write. It counts what was written, and that whose key is not here.
func resealEach[T any](
	keys *vault.Vault, page func(after T) ([]T, error), of func(T) (owner string, sealed []byte), write func(old T, sealed []byte) error,
) (changed, failed int, err error) {
	var last T
	for {
		all, err := page(last)
		if err != nil || len(all) == 0 {
			return changed, failed, err
		}
		for _, last = range all {
			owner, sealed := of(last)
			value, err := keys.Open(owner, sealed)
			if err != nil {
				failed++ // its key is not here
				continue
			}
			if sealed, err = keys.Seal(owner, value); err == nil {
				err = write(last, sealed)
			}
			if err != nil {
				return changed, failed, err
			}
			changed++
		}
	}
}
