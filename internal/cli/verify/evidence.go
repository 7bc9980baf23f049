package verify

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"wrenn.dev/internal/plain"
)

const (
	maxLines = 500 // in a probe's output: guests are not trusted
	maxValue = 300 // bytes of a value
)

// evidence is what was collected from the parent and the copies.
type evidence struct {
	parent  string
	copies  []string
	has     map[string]string // versions of the programs that the guest has, by name
	outside bool              // a connection to the outside was requested
	before  reading           // the parent's clock before the fork
	answers map[string]map[string]string
	clocks  map[string]reading // all clocks after the fork
}

// ids returns the ids of the parent and the copies.
func (e evidence) ids() []string { return append([]string{e.parent}, e.copies...) }

// values returns the value of name by sandbox id, without sandboxes that have none.
func (e evidence) values(name string, ids []string) map[string]string {
	out := map[string]string{}
	for _, id := range ids {
		if value, ok := e.answers[id][name]; ok {
			out[id] = value
		}
	}
	return out
}

// reading is the time of a guest's clock, read between two times of this machine's clock.
type reading struct {
	sent, received, guest time.Time
}

// ahead returns how far the guest's clock is ahead of this machine's, at least and at most.
func (r reading) ahead() (least, most time.Duration) {
	return r.guest.Sub(r.received), r.guest.Sub(r.sent)
}

// parse reads lines of a name and a value. It skips other lines: programs print
// warnings.
func parse(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || value == "" {
			continue
		}
		out[name] = clip(value)
		if len(out) == maxLines {
			break
		}
	}
	return out
}

// clip turns a guest's text into one line of bounded length that is safe for a terminal.
func clip(text string) string {
	return plain.Shorten(plain.Line(strings.TrimSpace(text)), maxValue)
}

// parseTime reads seconds since 1970 with a fraction. Busybox's date has no
// fraction: it prints an N instead, or nothing.
func parseTime(text string) (time.Time, error) {
	seconds, fraction, _ := strings.Cut(text, ".")
	s, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is not a time", clip(text))
	}
	digits := strings.TrimRight(fraction, "N%")
	if digits == "" {
		digits = "0"
	}
	f, err := strconv.ParseFloat("0."+digits, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is not a time", clip(text))
	}
	return time.Unix(s, int64(f*1e9)), nil
}

// certificate returns a new key and its certificate in one PEM file, for the TLS
// server in the guest.
func certificate() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	const day = 24 * time.Hour // more than clocks differ
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "wrenn verify"},
		NotBefore: time.Now().Add(-day), NotAfter: time.Now().Add(day),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return slices.Concat(
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})), nil
}
