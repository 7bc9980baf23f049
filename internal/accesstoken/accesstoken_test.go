package accesstoken

import (
	"net/url"
	"strings"
	"testing"
	"time"
)

// The vector is the protocol's own.
func TestSignVector(t *testing.T) {
	got := Sign([]string{"hello.txt", "read", "user", "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0"})
	if want := "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E"; got != want {
		t.Errorf("Sign() = %s, want %s", got, want)
	}
}

// TestFor holds the tokens that clients have: they outlive the programs that made them.
func TestFor(t *testing.T) {
	seed := []byte(strings.Repeat("s", 32))
	got := For(seed, "i00000000000000000000")
	if want := "fe0adecc76dc2710490ca2a5b0625b7eda447713cc2def7a69fd5af8388cffcb"; got != want {
		t.Errorf("For() = %s, want %s", got, want)
	}
	if For(seed, "i00000000000000000001") == got || For([]byte("other"), "i00000000000000000000") == got {
		t.Error("another sandbox, or another seed, has the same token")
	}
}

func TestForTraffic(t *testing.T) {
	seed := []byte(strings.Repeat("s", 32))
	if got := ForTraffic(seed, "i00000000000000000000"); len(got) != 64 || got == For(seed, "i00000000000000000000") {
		t.Errorf("ForTraffic() = %s", got)
	}
}

func FuzzCheckSignature(f *testing.F) {
	f.Add("GET", "path=hello.txt&username=user&signature=v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E", "x")
	f.Add("POST", "path=a&signature=v1_&signature_expiration=-1", "")
	f.Fuzz(func(t *testing.T, method, query, token string) {
		values, _ := url.ParseQuery(query)
		signed, reason := ParseSigned(method, values)
		if reason == "" && signed.Refuse(token+"-a", time.Unix(0, 0)) == "" && signed.Refuse(token+"-b", time.Unix(0, 0)) == "" {
			t.Fatalf("%q is signed with two tokens", query)
		}
	})
}
