package wrenn

import (
	"strings"
	"testing"
)

func TestParseDomain(t *testing.T) {
	for text, want := range map[string]string{
		"sandbox.localhost:8443": "sandbox.localhost:8443", "example.com": "example.com", "Example.COM.": "example.com",
		"example.com:443": "example.com", "a-b.c1.example.com:1": "a-b.c1.example.com:1",
	} {
		if d, err := ParseDomain(text); err != nil || d.String() != want {
			t.Errorf("ParseDomain(%q) = %v, %v; want %s", text, d, err, want)
		}
	}
	for _, text := range []string{
		"", "localhost", "com:443", "example.com:0", "example.com:65536", "example.com:x", "127.0.0.1", "[::1]:443", "::1", "a..b", "-a.com", "a-.com",
		"a/../b.com", "../b.com", "*.example.com", "a b.com", strings.Repeat("a", 64) + ".com", strings.Repeat("a.", 120) + "com", "example.com:443:443",
	} {
		if d, err := ParseDomain(text); CodeOf(err) != Invalid {
			t.Errorf("ParseDomain(%q) = %v, %v; want Invalid", text, d, err)
		}
	}
	if d := (Domain{"sandbox.localhost", 8443}); !d.Local() || d.APIURL() != "https://api.sandbox.localhost:8443" {
		t.Errorf("%v: %v %s", d, d.Local(), d.APIURL())
	}
}
