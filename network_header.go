package wrenn

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Bounds of the header rules of a NetworkPolicy. Those of one rule are E2B's.
const (
	MaxHeaderRules = 64
	maxHeaders     = 20
	maxHeaderName  = 64
	maxHeaderText  = 2048
	// headerPort is the port of a rule that names none.
	headerPort = 443
)

// HeaderRule has headers that requests of a sandbox to a host get on their way out,
// over TLS alone. The guest sees neither them nor the secrets in them.
type HeaderRule struct {
	Host    NetworkName `json:"host"` // a Port of 0 is 443
	Headers []Header    `json:"headers"`
}

// Header replaces all headers of its name in a request. In Text ${secrets.NAME} stands
// for the value of a secret of the sandbox's team; ${e2b.secrets.NAME} is the same.
type Header struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// Port returns the port of the connections that the rule is about.
func (r HeaderRule) Port() uint16 {
	if r.Host.Port == 0 {
		return headerPort
	}
	return r.Host.Port
}

// secretInText matches what stands for a secret.
var secretInText = regexp.MustCompile(`\$\{(?:e2b\.)?secrets\.([^{}]+)\}`)

// Fill returns the text with the values of its secrets, by canonical name. Missing is the
// name of the first one that there is no value of; text is "" then.
func (h Header) Fill(values map[string]string) (text, missing string) {
	text = secretInText.ReplaceAllStringFunc(h.Text, func(found string) string {
		name := strings.ToLower(secretInText.FindStringSubmatch(found)[1])
		value, ok := values[name]
		if !ok && missing == "" {
			missing = name
		}
		return value
	})
	if missing != "" {
		return "", missing
	}
	return text, ""
}

// secrets returns the names of the secrets in the text.
func (h Header) secrets() (names []string) {
	for _, found := range secretInText.FindAllStringSubmatch(h.Text, -1) {
		names = append(names, strings.ToLower(found[1]))
	}
	return names
}

// SecretNames returns the names of the secrets that the policy's header rules need, each
// once, in order.
func (p NetworkPolicy) SecretNames() (names []string) {
	for _, r := range p.Headers {
		for _, h := range r.Headers {
			names = append(names, h.secrets()...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// HeaderRule returns the rule for TLS connections to a host, given by its canonical
// name, at a port: the one for that name, else the one for the most of its labels.
func (p NetworkPolicy) HeaderRule(host string, port uint16) (best HeaderRule, ok bool) {
	for _, r := range p.Headers {
		if r.Port() != port || !r.Host.Matches(host) {
			continue
		}
		if r.Host.Domain == host {
			return r, true
		}
		if !ok || len(r.Host.Domain) > len(best.Host.Domain) {
			best, ok = r, true
		}
	}
	return best, ok
}

// HeaderPorts returns the ports that header rules are about, each once, in order.
func (p NetworkPolicy) HeaderPorts() (ports []uint16) {
	for _, r := range p.Headers {
		ports = append(ports, r.Port())
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// checkHeaders returns an Invalid error unless a host can follow the header rules.
func (p NetworkPolicy) checkHeaders() error {
	if len(p.Headers) > MaxHeaderRules {
		return Errorf(Invalid, "a network policy has header rules for at most %d hosts, not %d", MaxHeaderRules, len(p.Headers))
	}
	seen := map[NetworkName]bool{}
	for _, r := range p.Headers {
		if err := r.check(); err != nil {
			return err
		}
		key := NetworkName{Domain: r.Host.Domain, Port: r.Port()}
		if seen[key] {
			return Errorf(Invalid, "a network policy has two header rules for %s: write one with all headers", r.Host)
		}
		seen[key] = true
	}
	return nil
}

func (r HeaderRule) check() error {
	if err := r.Host.check(); err != nil {
		return err
	}
	if len(r.Headers) == 0 || len(r.Headers) > maxHeaders {
		return Errorf(Invalid, "the header rule for %s has %d headers: use 1 to %d", r.Host, len(r.Headers), maxHeaders)
	}
	seen := map[string]bool{}
	for _, h := range r.Headers {
		if err := h.check(); err != nil {
			return fmt.Errorf("header rule for %s: %w", r.Host, err)
		}
		if name := strings.ToLower(h.Name); seen[name] {
			return Errorf(Invalid, "the header rule for %s has two headers %q", r.Host, name)
		} else {
			seen[name] = true
		}
	}
	return nil
}

// notForRules are headers that belong to the connection or name its host.
var notForRules = []string{
	"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "expect",
	"proxy-connection", "proxy-authenticate", "proxy-authorization",
}

func (h Header) check() error {
	name := strings.ToLower(h.Name)
	switch {
	case len(name) == 0 || len(name) > maxHeaderName || strings.Trim(name, headerNameCharacters) != "":
		return Errorf(Invalid, "%.80q is not the name of a header, which has 1 to %d letters, digits and hyphens", h.Name, maxHeaderName)
	case slices.Contains(notForRules, name):
		return Errorf(Invalid, "the header %s belongs to the connection: no rule sets it", name)
	case len(h.Text) > maxHeaderText || !ValidHeaderText(h.Text):
		return Errorf(Invalid, "the text of header %s has at most %d bytes, without control characters", name, maxHeaderText)
	}
	rest := secretInText.ReplaceAllString(h.Text, "")
	if strings.Contains(rest, "${") {
		return Errorf(Invalid, "header %s: only ${secrets.NAME} and ${e2b.secrets.NAME} can stand in its text for something else", name)
	}
	for _, secret := range h.secrets() {
		if _, err := ParseSecretName(secret); err != nil && !IsSecretID(secret) {
			return err
		}
	}
	return nil
}

// headerNameCharacters are those of a token in RFC 9110, in lower case.
const headerNameCharacters = "abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~"

// ValidHeaderText reports whether a text can be the value of a header.
func ValidHeaderText(text string) bool {
	return !strings.ContainsFunc(text, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f })
}

// equal reports whether both rules have the same headers in the same order.
func (r HeaderRule) equal(o HeaderRule) bool {
	return r.Host == o.Host && slices.Equal(r.Headers, o.Headers)
}

// SecretValues are values of secrets for the header rules of a sandbox. They must never
// be written to a disk or a log, nor reach a guest.
type SecretValues struct {
	// Tag tells these values from others; they cannot be told from it. It is "" when there are none.
	Tag    string
	Values map[string]string // by canonical name, or by id if the rule has that
}

// String hides the values.
func (v SecretValues) String() string { return fmt.Sprintf("%d secrets", len(v.Values)) }

// GoString hides the values.
func (v SecretValues) GoString() string { return v.String() }

// SecretsTag returns the Tag of secrets by their names and versions; a version is any
// text that changes with the value. Without secrets it is "".
func SecretsTag(versions map[string]string) string {
	if len(versions) == 0 {
		return ""
	}
	sum := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(versions)) {
		fmt.Fprintf(sum, "%q=%q,", name, versions[name])
	}
	return hex.EncodeToString(sum.Sum(nil)[:16])
}
