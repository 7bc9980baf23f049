// Package tokenreview asks Kubernetes whose a service account's token is, so that a host
// can join by the token of its pod. It needs one call of Kubernetes' API, and therefore
// none of its libraries. Other packages read from the API by Reviewer.Get.
package tokenreview

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/hostjoin"
	"wrenn.dev/internal/untrusted"
)

const (
	// DefaultAudience is the audience of the tokens that hosts join by.
	DefaultAudience = "wrenn-join"

	mounted      = "/var/run/secrets/kubernetes.io/serviceaccount/"
	path         = "/apis/authentication.k8s.io/v1/tokenreviews"
	callTimeout  = 10 * time.Second
	maxAnswer    = 1 << 20
	maxReason    = 300 // characters
	accountUser  = "system:serviceaccount:"
	nodeNameInfo = "authentication.kubernetes.io/node-name"
	nodeUIDInfo  = "authentication.kubernetes.io/node-uid"
)

// Config says which service accounts' pods are hosts, and where Kubernetes' API is.
type Config struct {
	// ServiceAccounts may join, each as NAMESPACE/NAME. Without one no host joins by Kubernetes.
	ServiceAccounts []string `toml:"service_accounts"`
	// Audience must be one of the token's; "" is DefaultAudience.
	Audience string `toml:"audience,omitempty"`
	// FollowNodes has hosts follow their nodes: drained when these are cordoned, lost when
	// they are deleted or out of service.
	FollowNodes bool `toml:"follow_nodes"`
	// API is the url of Kubernetes' API; "" is that of the cluster in which this program runs.
	API string `toml:"api,omitempty"`
	// CA is the authority of its certificate, and Token the file with this program's own
	// token, which may change; "" are those that Kubernetes mounts in pods.
	CA    string `toml:"ca,omitempty"`
	Token string `toml:"token,omitempty"`
}

// Enabled reports whether any service account may join.
func (c Config) Enabled() bool { return len(c.ServiceAccounts) > 0 }

// Reviewer asks one cluster. It is safe for concurrent use and needs no closing.
type Reviewer struct {
	accounts             []string
	audience, base, file string
	http                 *http.Client
}

var accountForm = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-.a-z0-9]*[a-z0-9])?$`)

// Open returns the reviewer of an enabled configuration. getenv tells where the API of
// the cluster is.
func (c Config) Open(getenv func(string) string) (*Reviewer, error) {
	for _, account := range c.ServiceAccounts {
		if !accountForm.MatchString(account) {
			return nil, fmt.Errorf("service_accounts %q: write NAMESPACE/NAME", account)
		}
	}
	if c.API == "" {
		host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
		if host == "" || port == "" {
			return nil, errors.New("api: set it, because this program does not run in a pod of Kubernetes")
		}
		c.API = "https://" + net.JoinHostPort(host, port)
	}
	base, err := url.Parse(c.API)
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("api %.100q: use https://", c.API)
	}
	trusted, err := authorities(cmp.Or(c.CA, mounted+"ca.crt"))
	if err != nil {
		return nil, err
	}
	r := &Reviewer{
		accounts: c.ServiceAccounts, audience: cmp.Or(c.Audience, DefaultAudience), file: cmp.Or(c.Token, mounted+"token"),
		base: strings.TrimSuffix(c.API, "/"),
		http: untrusted.Client(&http.Transport{
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: trusted}, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute,
		}),
	}
	_, err = hostjoin.ReadToken(r.file)
	return r, err
}

func authorities(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("ca: %s holds no certificate in PEM", file)
	}
	return pool, nil
}

// review is a TokenReview of authentication.k8s.io/v1, as far as it is needed.
type review struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		Token     string   `json:"token"`
		Audiences []string `json:"audiences"`
	} `json:"spec"`
	Status status `json:"status,omitzero"`
}

type status struct {
	Authenticated bool     `json:"authenticated"`
	Audiences     []string `json:"audiences"`
	Error         string   `json:"error"`
	User          struct {
		Username string              `json:"username"`
		Extra    map[string][]string `json:"extra"`
	} `json:"user"`
}

// Review returns the node on which the pod runs that has the token. It is
// Unauthenticated for a token that Kubernetes does not accept for the audience or that is
// bound to no node, PermissionDenied for another service account, and Unavailable or
// FailedPrecondition when Kubernetes cannot be asked.
func (r *Reviewer) Review(ctx context.Context, token string) (hostjoin.Node, error) {
	got, err := r.ask(ctx, token)
	if err != nil {
		return hostjoin.Node{}, err
	}
	if !got.Authenticated {
		return hostjoin.Node{}, wrenn.Errorf(wrenn.Unauthenticated, "Kubernetes does not accept the service account's token for the audience %s: %s", r.audience, reason(got.Error))
	}
	if !slices.Contains(got.Audiences, r.audience) {
		return hostjoin.Node{}, wrenn.Errorf(wrenn.Unauthenticated, "the service account's token is not for the audience %s: project one with that audience into the pod", r.audience)
	}
	account := strings.Replace(strings.TrimPrefix(got.User.Username, accountUser), ":", "/", 1)
	if !strings.HasPrefix(got.User.Username, accountUser) || !slices.Contains(r.accounts, account) {
		return hostjoin.Node{}, wrenn.Errorf(wrenn.PermissionDenied, "%.100q is no service account by which hosts may join: the operator lists them in service_accounts of [fleet.kubernetes]", got.User.Username)
	}
	name, uid := got.User.Extra[nodeNameInfo], got.User.Extra[nodeUIDInfo]
	if len(name) != 1 || len(uid) != 1 {
		return hostjoin.Node{}, wrenn.Errorf(wrenn.Unauthenticated, "the service account's token is not bound to a pod on a node: use the one that Kubernetes, 1.32 or newer, projects into the pod")
	}
	return hostjoin.NewNode(name[0], uid[0])
}

// reason is what Kubernetes says, in bounds and without control characters.
func reason(text string) string {
	if text == "" {
		return "it gives no reason"
	}
	text = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, text)
	return fmt.Sprintf("%.*s", maxReason, text)
}

func (r *Reviewer) ask(ctx context.Context, token string) (*status, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	question := review{APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview"}
	question.Spec.Token, question.Spec.Audiences = token, []string{r.audience}
	body, err := json.Marshal(question)
	if err != nil {
		return nil, err
	}
	resp, err := r.call(ctx, http.MethodPost, path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return answer(resp)
}

// Get asks Kubernetes' API for a path, as the service account of this program. The answer
// may have any status; the caller closes its body, and bounds its time by ctx.
func (r *Reviewer) Get(ctx context.Context, path string) (*http.Response, error) {
	return r.call(ctx, http.MethodGet, path, nil)
}

// call sends a request to Kubernetes' API.
func (r *Reviewer) call(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	own, err := hostjoin.ReadToken(r.file) // again, because Kubernetes replaces it
	if err != nil {
		return nil, wrenn.Errorf(wrenn.Unavailable, "cannot read the control plane's own service account: %v", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, r.base+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+own)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	resp, err := r.http.Do(req)
	if err != nil {
		return nil, wrenn.Errorf(wrenn.Unavailable, "Kubernetes does not answer: %v", err)
	}
	return resp, nil
}

// answer reads the answer of Kubernetes.
func answer(resp *http.Response) (*status, error) {
	switch resp.StatusCode {
	case http.StatusOK, http.StatusCreated:
	case http.StatusUnauthorized, http.StatusForbidden:
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "the control plane may not ask Kubernetes whose a token is (status %d): its service account needs create of tokenreviews in authentication.k8s.io", resp.StatusCode)
	default:
		return nil, wrenn.Errorf(wrenn.Unavailable, "Kubernetes answered a token review with status %d", resp.StatusCode)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, wrenn.Errorf(wrenn.Unavailable, "read Kubernetes' answer: %v", err)
	}
	var got review
	if err := json.Unmarshal(text, &got); err != nil || got.Kind != "TokenReview" {
		return nil, wrenn.Errorf(wrenn.Unavailable, "Kubernetes' answer is no token review: is api of [fleet.kubernetes] right?")
	}
	return &got.Status, nil
}
