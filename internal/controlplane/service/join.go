package service

import (
	"context"
	"log/slog"
	"regexp"
	"time"

	"golang.org/x/time/rate"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/authority"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/hostjoin"
)

const (
	// tokenLife is the default life of a token, and maxTokenLife the longest.
	tokenLife, maxTokenLife = time.Hour, 7 * 24 * time.Hour
	// joinsPerSecond bounds the joins and renewals that this replica works on: they come
	// without an API key. A thousand hosts renew in 20 s.
	joinsPerSecond, joinsAtOnce = 50, 200
	maxHostName                 = 128
)

// joinLimit returns the limit of joins and renewals.
func joinLimit() *rate.Limiter { return rate.NewLimiter(joinsPerSecond, joinsAtOnce) }

// NewHostToken says which host a token is for.
type NewHostToken struct {
	Host   wrenn.HostID // "" makes one up; that of a host that joined lets it join again
	Name   string       // for people; "" is what the host calls itself
	Zone   string
	Labels map[string]string
	TTL    time.Duration // 0 is an hour
}

// HostToken is a token, which is shown once.
type HostToken struct {
	Token     string
	Host      wrenn.HostID
	ExpiresAt time.Time
}

// JoinHost is a host's request to join.
type JoinHost struct {
	Token string
	CSR   string // in PEM, for the host id of the token
	URL   string // where control planes reach the host
	Name  string // for people, if the token has none
}

// RenewHost is a host's request for another certificate.
type RenewHost struct {
	hostjoin.Renewal

	Proof []byte // see hostjoin.Renewal.Sign
}

// HostCertificate is the answer to both.
type HostCertificate struct {
	Host        wrenn.HostID
	Certificate []byte // in PEM
	Authority   []byte // in PEM
	Until, Now  time.Time
}

func noAuthorityError() error {
	return wrenn.Errorf(wrenn.FailedPrecondition, "no host can join: the operator sets authority of [fleet] in the control plane's configuration, to a file that `control-plane authority FILE` makes")
}

// CreateHostToken makes a token with which one host joins, once. It is
// FailedPrecondition for a host of the configuration, and without an authority.
func (s *HostAdmin) CreateHostToken(ctx context.Context, _ Caller, want NewHostToken) (*HostToken, error) {
	if s.hosts.authority == nil {
		return nil, noAuthorityError()
	}
	if want.Host == "" {
		want.Host = wrenn.NewHostID()
	}
	if want.TTL == 0 {
		want.TTL = tokenLife
	}
	if err := want.check(); err != nil {
		return nil, err
	}
	if s.hosts.configured[want.Host] != "" {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "host %s is in the control plane's configuration: remove it there, or use another id", want.Host)
	}
	token := hostjoin.NewToken(want.Host, s.hosts.authority.Fingerprint())
	expires, err := s.store.AddHostToken(ctx, postgres.HostToken{
		Hash: token.Hash(), Host: want.Host, Name: want.Name, Zone: want.Zone, Labels: want.Labels, TTL: want.TTL,
	})
	if err != nil {
		return nil, err
	}
	return &HostToken{Token: token.String(), Host: want.Host, ExpiresAt: expires}, nil
}

func (t NewHostToken) check() error {
	if _, err := wrenn.ParseHostID(string(t.Host)); err != nil {
		return err
	}
	if t.Host == authority.ClientName {
		return wrenn.Errorf(wrenn.Invalid, "%s is the name of control planes: use another id", t.Host)
	}
	if t.TTL < time.Minute || t.TTL > maxTokenLife {
		return wrenn.Errorf(wrenn.Invalid, "a token is valid for a minute to %s", maxTokenLife)
	}
	if err := checkHostName(t.Name); err != nil {
		return err
	}
	if err := wrenn.CheckZone(t.Zone); err != nil {
		return err
	}
	return wrenn.CheckLabels(t.Labels)
}

var hostName = regexp.MustCompile(`^[\pL\pN\pP\pS ]*$`)

func checkHostName(name string) error {
	if len(name) > maxHostName || !hostName.MatchString(name) {
		return wrenn.Errorf(wrenn.Invalid, "the name of a host has at most %d bytes and no control characters", maxHostName)
	}
	return nil
}

// TokenReviewer asks Kubernetes on which node the pod runs that has a service account's
// token, see tokenreview.Reviewer.
type TokenReviewer interface {
	Review(ctx context.Context, token string) (hostjoin.Node, error)
}

// JoinHost makes the owner of a token a host, and returns its certificate. It is
// Unauthenticated for a token that does not exist, has expired or was used. A token of a
// service account of Kubernetes may be used again, and the host's id is its node's.
func (s *HostAdmin) JoinHost(ctx context.Context, req JoinHost) (*HostCertificate, error) {
	if err := s.mayJoin(); err != nil {
		return nil, err
	}
	if hostjoin.IsAccountToken(req.Token) {
		return s.joinNode(ctx, req)
	}
	token, err := hostjoin.ParseToken(req.Token)
	if err != nil {
		return nil, err
	}
	if token.Authority != s.hosts.authority.Fingerprint() {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "the token is for the authority %.32s and this control plane has the authority %s: all control planes must have the same file, or the token is of another fleet", token.Authority, s.hosts.authority.Fingerprint())
	}
	if err := hostjoin.CheckURL(req.URL); err != nil {
		return nil, err
	}
	if err := checkHostName(req.Name); err != nil {
		return nil, err
	}
	signed, err := s.hosts.authority.Sign(token.Host, []byte(req.CSR))
	if err != nil {
		return nil, err
	}
	row, err := s.store.JoinHost(ctx, token.Hash(), postgres.JoinedHost{ID: token.Host, URL: req.URL, Name: req.Name, Serial: signed.Serial, Until: signed.Until})
	if err != nil {
		return nil, err
	}
	s.log.LogAttrs(ctx, slog.LevelInfo, "host joined", slog.String("host", string(row.ID)), slog.String("url", row.URL))
	return s.issued(ctx, row.ID, signed), nil
}

// joinNode makes a node of Kubernetes a host. Its name is the node's.
func (s *HostAdmin) joinNode(ctx context.Context, req JoinHost) (*HostCertificate, error) {
	if s.reviewer == nil {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "no host can join by a service account: the operator sets service_accounts of [fleet.kubernetes] in the control plane's configuration")
	}
	if err := hostjoin.CheckURL(req.URL); err != nil {
		return nil, err
	}
	node, err := s.reviewer.Review(ctx, req.Token)
	if err != nil {
		return nil, err
	}
	if s.hosts.configured[node.Host] != "" {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "host %s is in the control plane's configuration: remove it there", node.Host)
	}
	signed, err := s.hosts.authority.Sign(node.Host, []byte(req.CSR))
	if err != nil {
		return nil, err
	}
	row, err := s.store.JoinHostOfNode(ctx, postgres.JoinedHost{ID: node.Host, URL: req.URL, Name: node.Name[:min(len(node.Name), maxHostName)], Serial: signed.Serial, Until: signed.Until})
	if err != nil {
		return nil, err
	}
	s.log.LogAttrs(ctx, slog.LevelInfo, "node of Kubernetes joined as host", slog.String("host", string(row.ID)), slog.String("node", node.Name), slog.String("url", row.URL))
	return s.issued(ctx, row.ID, signed), nil
}

// RenewHost returns another certificate of a host that has one. It is PermissionDenied
// for a host that was removed, and for a certificate that was replaced.
func (s *HostAdmin) RenewHost(ctx context.Context, req RenewHost) (*HostCertificate, error) {
	if err := s.mayJoin(); err != nil {
		return nil, err
	}
	if err := hostjoin.CheckURL(req.URL); err != nil {
		return nil, err
	}
	host, key, serial, err := s.hosts.authority.Verify([]byte(req.Certificate))
	if err != nil {
		return nil, err
	}
	if !req.Proven(key, req.Proof) {
		return nil, wrenn.Errorf(wrenn.Unauthenticated, "the renewal is not signed with the key of the host's certificate")
	}
	signed, err := s.hosts.authority.Sign(host, []byte(req.CSR))
	if err != nil {
		return nil, err
	}
	err = s.store.RenewHost(ctx, serial, postgres.JoinedHost{ID: host, URL: req.URL, Serial: signed.Serial, Until: signed.Until})
	if err != nil {
		return nil, err
	}
	return s.issued(ctx, host, signed), nil
}

func (s *HostAdmin) mayJoin() error {
	if s.hosts.authority == nil {
		return noAuthorityError()
	}
	if !s.joins.Allow() {
		return wrenn.Errorf(wrenn.Exhausted, "too many hosts join or renew at once; try again in a moment")
	}
	return nil
}

func (s *HostAdmin) issued(ctx context.Context, host wrenn.HostID, signed authority.Signed) *HostCertificate {
	s.hosts.refreshOrLog(ctx) // so that this replica knows the certificate at once
	return &HostCertificate{Host: host, Certificate: signed.PEM, Authority: s.hosts.authority.Certificate(), Until: signed.Until, Now: time.Now()}
}
