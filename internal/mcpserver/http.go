package mcpserver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/auth"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"wrenn.dev/client"
	"wrenn.dev/internal/recent"
)

// Path is where the handler serves.
const Path = "/mcp"

const (
	maxSessions = 500
	maxBody     = 4 << 20 // more than the longest arguments
	sessionIdle = time.Hour
	maxKey      = 256
	// A key is checked again after keyTTL. Until then calls with a key that was revoked
	// are refused by the control plane.
	keyTTL  = time.Minute
	maxKeys = 1000

	tokenClient   = "client" // in TokenInfo.Extra: a *client.Client with the caller's key
	headerSession = "Mcp-Session-Id"
)

// HTTPConfig says how callers reach the server.
type HTTPConfig struct {
	// URL is the control plane's address, to which the callers' keys are sent.
	URL string
	// Hosts are names by which callers reach the server, besides localhost and addresses.
	Hosts []string
	// UserAgent names this program to the control plane.
	UserAgent string
}

// Handler serves sessions over streamable HTTP at Path. Each request needs an API key
// of the control plane as bearer token, by which its calls are made; a session takes
// requests with the key alone with which it began. A web page of another host cannot use it.
func (s *Server) Handler(cfg HTTPConfig) http.Handler {
	keys := &keys{cfg: cfg, known: recent.New[[sha256.Size]byte, *auth.TokenInfo](maxKeys, keyTTL)}
	streams := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return s.mcp }, &mcp.StreamableHTTPOptions{
		Logger: s.cfg.Log, SessionTimeout: sessionIdle, MaxRequestBodyBytes: maxBody, PropagateRequestCancellation: true,
		DisableLocalhostProtection: true, // guard does that, also behind a proxy
	})
	mux := http.NewServeMux()
	mux.Handle(Path, auth.RequireBearerToken(keys.verify, &auth.RequireBearerTokenOptions{AllowMissingExpiration: true})(s.bounded(streams)))
	return guard{cfg.Hosts, mux}
}

// bounded refuses more sessions than the server can have.
func (s *Server) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(headerSession) == "" && s.sessions() >= maxSessions {
			w.Header().Set("Retry-After", "60")
			http.Error(w, fmt.Sprintf("there are %d sessions already: end some, or repeat later", maxSessions), http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) sessions() (n int) {
	for range s.mcp.Sessions() {
		n++
	}
	return n
}

// keys checks the keys of callers.
type keys struct {
	cfg   HTTPConfig
	known *recent.Cache[[sha256.Size]byte, *auth.TokenInfo]
}

// verify is an auth.TokenVerifier. The control plane decides which keys are valid.
func (k *keys) verify(ctx context.Context, key string, _ *http.Request) (*auth.TokenInfo, error) {
	hash := sha256.Sum256([]byte(key))
	if info, ok := k.known.Get(hash, time.Now()); ok {
		return info, nil
	}
	if len(key) > maxKey {
		return nil, fmt.Errorf("%w: this is no API key", auth.ErrInvalidToken)
	}
	api, err := client.New(client.Config{URL: k.cfg.URL, Key: key, UserAgent: k.cfg.UserAgent})
	if err != nil {
		return nil, err
	}
	_, err = api.Templates(ctx) // every scope may read them
	switch {
	case client.CodeOf(err) == client.Unauthorized:
		return nil, fmt.Errorf("%w: the API key is unknown or revoked", auth.ErrInvalidToken)
	case err != nil:
		return nil, errors.New("the API key cannot be checked: " + err.Error())
	}
	info := &auth.TokenInfo{UserID: hex.EncodeToString(hash[:]), Extra: map[string]any{tokenClient: api}}
	k.known.Put(hash, info, time.Now())
	return info, nil
}

// guard refuses requests of web pages of other hosts, also if their name was made to
// lead here (DNS rebinding).
type guard struct {
	hosts []string
	next  http.Handler
}

func (g guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host := hostname(r.Host)
	if _, err := netip.ParseAddr(host); err != nil && !g.named(host) { // an address is no name that could be rebound
		http.Error(w, fmt.Sprintf("this server is not %.100q: start it with --host if it is reached by that name", host), http.StatusMisdirectedRequest)
		return
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		from, err := url.Parse(origin)
		if err != nil || !g.named(from.Hostname()) && !loopback(from.Hostname()) {
			http.Error(w, fmt.Sprintf("pages of %.100q may not use this server: start it with --host if they may", origin), http.StatusForbidden)
			return
		}
	}
	g.next.ServeHTTP(w, r)
}

func (g guard) named(host string) bool {
	return strings.EqualFold(host, "localhost") || slices.ContainsFunc(g.hosts, func(h string) bool { return strings.EqualFold(h, host) })
}

func loopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return err == nil && address.IsLoopback()
}

// hostname returns a Host header without its port.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}
