// Package webhook sends events to URLs of teams, signed as the Standard Webhooks
// specification 1.0 defines it (https://www.standardwebhooks.com).
//
// URLs are hostile: a connection is made only to addresses of the public internet that are
// not this machine's, which is checked after the name was resolved; redirects are not
// followed; of an answer only the status counts, and little of it is read.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/publicnet"
)

const (
	// secretPrefix begins each secret, whose rest is base64.
	secretPrefix = "whsec_"
	secretBytes  = 32
	// maxAnswer is what is read of an answer, so that its connection can be used again.
	maxAnswer       = 16 << 10
	maxAnswerHeader = 16 << 10
	maxError        = 200
	defaultTimeout  = 15 * time.Second
)

// Config says where a Sender sends to. The zero value is for the public internet, with TLS.
type Config struct {
	Allow     []netip.Prefix // addresses that are dialed although they are not public
	Deny      []netip.Prefix // public addresses that are not dialed; Allow wins
	PlainHTTP bool           // allows URLs without TLS
	Timeout   time.Duration  // of one attempt; default 15 s
}

// Sender sends messages. It is safe for concurrent use. Make one by New.
type Sender struct {
	cfg    Config
	client *http.Client
}

// New returns a Sender.
func New(cfg Config) *Sender {
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	s := &Sender{cfg: cfg}
	s.client = &http.Client{
		Timeout: cfg.Timeout,
		Transport: &http.Transport{ // without a proxy: that would dial for users
			DialContext:            (&net.Dialer{Timeout: cfg.Timeout, ControlContext: s.control}).DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
			DisableCompression:     true,
			MaxIdleConns:           100,
			MaxIdleConnsPerHost:    2,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: maxAnswerHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s
}

// CheckURL returns an Invalid error for a URL to which nothing can be sent, as far as that
// is known without resolving its name.
func (s *Sender) CheckURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || len(text) > wrenn.MaxWebhookURL || !wrenn.IsText(text) || u.Hostname() == "" || u.Opaque != "":
		return wrenn.Errorf(wrenn.Invalid, "the URL of a webhook is https://HOST/PATH of at most %d bytes", wrenn.MaxWebhookURL)
	case u.Scheme == "http" && !s.cfg.PlainHTTP:
		return wrenn.Errorf(wrenn.Invalid, "the URL of a webhook begins with https://: the operator of this server does not allow http")
	case u.Scheme != "https" && u.Scheme != "http":
		return wrenn.Errorf(wrenn.Invalid, "the URL of a webhook begins with https://")
	case u.User != nil || u.Fragment != "":
		return wrenn.Errorf(wrenn.Invalid, "the URL of a webhook has no user, password or fragment: receivers check the signature")
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		if err := s.check(ip); err != nil {
			return &wrenn.Error{Code: wrenn.Invalid, Message: errNotPublic.Error(), Err: err}
		}
	}
	return nil
}

var errNotPublic = errors.New("the address of the webhook is not public: the operator of this server can allow it in allow_addresses of [webhooks]")

// control refuses an address right before the connection, after the name was resolved.
func (s *Sender) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address of a webhook: %w", err)
	}
	return s.check(at.Addr())
}

func (s *Sender) check(ip netip.Addr) error {
	ip = ip.Unmap().WithZone("")
	if slices.ContainsFunc(s.cfg.Allow, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return nil
	}
	public, err := publicnet.IsPublic(ip, s.cfg.Deny)
	if err == nil && !public {
		err = errNotPublic
	}
	return err
}

// NewSecret returns a random secret, as receivers get it.
func NewSecret() string {
	key := make([]byte, secretBytes)
	rand.Read(key) // never fails, see crypto/rand
	return secretPrefix + base64.StdEncoding.EncodeToString(key)
}

// Message is an event for a webhook.
type Message struct {
	ID     string // receivers drop a second message with it
	URL    string
	Secret string // as NewSecret returned it
	Body   []byte
}

// Result is what became of one attempt.
type Result struct {
	Status int    // of the answer; 0 is none
	Error  string // for the owner of the webhook; "" if it was delivered
}

// Gone reports whether the receiver wants no more.
func (r Result) Gone() bool { return r.Status == http.StatusGone }

// Send sends a message once. It returns within the time limit, or when ctx ends.
func (s *Sender) Send(ctx context.Context, m Message) Result {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	req, err := request(ctx, m)
	if err != nil {
		return Result{Error: "the URL or the secret is not valid: delete the webhook and make another"}
	}
	answer, err := s.client.Do(req)
	if err != nil {
		return Result{Error: s.explain(err)}
	}
	defer answer.Body.Close()
	_, _ = io.CopyN(io.Discard, answer.Body, maxAnswer) // the status counts
	switch {
	case answer.StatusCode >= 200 && answer.StatusCode < 300:
		return Result{Status: answer.StatusCode}
	case answer.StatusCode >= 300 && answer.StatusCode < 400:
		return Result{Status: answer.StatusCode, Error: "the receiver redirects, which is not followed: set the URL that it names"}
	}
	return Result{Status: answer.StatusCode, Error: "the receiver answered " + strconv.Itoa(answer.StatusCode)}
}

func request(ctx context.Context, m Message) (*http.Request, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Secret, secretPrefix))
	if err != nil {
		return nil, errors.New("the secret is not base64") // without repeating it
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.URL, bytes.NewReader(m.Body))
	if err != nil {
		return nil, err
	}
	at := strconv.FormatInt(time.Now().Unix(), 10)
	mac := hmac.New(sha256.New, key)
	_, _ = fmt.Fprintf(mac, "%s.%s.%s", m.ID, at, m.Body) // never fails
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "wrenn-webhook/1")
	req.Header.Set("Webhook-Id", m.ID)
	req.Header.Set("Webhook-Timestamp", at)
	req.Header.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return req, nil
}

// explain returns an error for the owner of a webhook. It names no address and no server
// of the operator's network, and not the URL, which may hold a token.
func (s *Sender) explain(err error) string {
	if u, ok := errors.AsType[*url.Error](err); ok {
		if u.Timeout() {
			return fmt.Sprintf("no answer within %v", s.cfg.Timeout)
		}
		err = u.Err
	}
	if errors.Is(err, errNotPublic) {
		return errNotPublic.Error()
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		if dns.IsNotFound {
			return "the host of the URL does not exist"
		}
		return "the host of the URL cannot be resolved"
	}
	if certificate, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return plain.Shorten(plain.Line("the receiver's certificate is not valid: "+certificate.Err.Error()), maxError)
	}
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		return "cannot connect to the receiver: " + number.Error()
	}
	return "the receiver's answer is not HTTP, is too long, or the connection broke"
}
