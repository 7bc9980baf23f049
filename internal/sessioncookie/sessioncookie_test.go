package sessioncookie_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/sessioncookie"
)

func TestNew(t *testing.T) {
	until := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	for overTLS, want := range map[bool]string{
		false: "wrenn_session=a; Path=/v1; Expires=Fri, 02 Jan 2026 15:04:05 GMT; HttpOnly; SameSite=Strict",
		true:  "__Secure-wrenn_session=a; Path=/v1; Expires=Fri, 02 Jan 2026 15:04:05 GMT; HttpOnly; Secure; SameSite=Strict",
	} {
		if got := sessioncookie.New("a", until, overTLS).String(); got != want {
			t.Errorf("over TLS %v: %s, want %s", overTLS, got, want)
		}
	}
}

func TestOf(t *testing.T) {
	for line, want := range map[string]string{
		"": "", "other=a": "", "wrenn_session=a": "a", "x=y; __Secure-wrenn_session=a": "a",
		"wrenn_session=a; wrenn_session=a": "a",
		"wrenn_session=a; wrenn_session=b": "", // one was planted
	} {
		r := &http.Request{Header: http.Header{"Cookie": {line}}}
		if got := sessioncookie.Of(r); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func TestRemove(t *testing.T) {
	for _, c := range []struct{ in, want []string }{
		{[]string{"a=b;c=d", "e=f"}, []string{"a=b;c=d", "e=f"}},
		{[]string{"a=b; wrenn_session=x;c=d"}, []string{"a=b; c=d"}},
		{[]string{"wrenn_session=x", "a=b"}, []string{"a=b"}},
		{[]string{"__Secure-wrenn_session=x"}, nil},
		{[]string{`a=b; WRENN_SESSION ="x"`}, []string{"a=b"}},
	} {
		h := http.Header{"Cookie": c.in}
		sessioncookie.Remove(h)
		if diff := cmp.Diff(c.want, h["Cookie"]); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.in, diff)
		}
	}
}

func TestRefuse(t *testing.T) {
	h := http.Header{"Set-Cookie": {"a=b; Path=/", " wrenn_session=x; Path=/v1", "__SECURE-wrenn_session=x; Secure"}}
	sessioncookie.Refuse(h)
	if diff := cmp.Diff([]string{"a=b; Path=/"}, h["Set-Cookie"]); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	h = http.Header{"Set-Cookie": {"wrenn_session=x"}}
	sessioncookie.Refuse(h)
	if len(h) != 0 {
		t.Errorf("left: %v", h)
	}
}
