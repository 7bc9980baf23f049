package auth_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wrenn.dev/internal/controlplane/auth"
)

func TestSecret(t *testing.T) {
	a, b := auth.NewSecret(), auth.NewSecret()
	if a == b {
		t.Error("two secrets are the same")
	}
	if !regexp.MustCompile(`^e2b_[0-9a-f]{40}$`).MatchString(string(a)) {
		t.Errorf("secret %q has not the form that SDKs insist on", string(a))
	}
	if !strings.HasPrefix(string(a), a.Hint()) || len(a.Hint()) != 8 {
		t.Errorf("hint %q", a.Hint())
	}
	if got := fmt.Sprintf("%v %s", a, a); strings.Contains(got, string(a)) {
		t.Errorf("printed as %q", got)
	}
}

func TestHashOf(t *testing.T) {
	good := "e2b_" + strings.Repeat("0a", 20)
	for name, c := range map[string]struct {
		in string
		ok bool
	}{
		"good":         {good, true},
		"empty":        {"", false},
		"no prefix":    {good[4:], false},
		"upper case":   {strings.ToUpper(good), false},
		"too short":    {good[:43], false},
		"too long":     {good + "0", false},
		"not hex":      {good[:43] + "g", false},
		"a NUL inside": {good[:20] + "\x00" + good[21:], false},
	} {
		t.Run(name, func(t *testing.T) {
			if _, ok := auth.HashOf(c.in); ok != c.ok {
				t.Errorf("HashOf(%q) = %v, want %v", c.in, ok, c.ok)
			}
		})
	}
}

func TestCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := auth.NewCache[string](2, time.Minute)
		one, _ := auth.HashOf(string(auth.NewSecret()))
		two, _ := auth.HashOf(string(auth.NewSecret()))
		three, _ := auth.HashOf(string(auth.NewSecret()))
		c.Put(one, "one")
		c.Put(two, "two")
		if got, ok := c.Get(one); !ok || got != "one" {
			t.Errorf("got %q, %v", got, ok)
		}
		c.Forget(func(v string) bool { return v == "one" })
		if _, ok := c.Get(one); ok {
			t.Error("it remembers what it was told to forget")
		}
		time.Sleep(time.Minute)
		if _, ok := c.Get(two); ok {
			t.Error("it remembers for longer than its time")
		}
		for _, h := range []auth.Hash{one, two, three} {
			c.Put(h, "again")
		}
		if _, ok := c.Get(one); ok {
			t.Error("it holds more than its size")
		}
		if _, ok := c.Get(three); !ok {
			t.Error("the last one is not there")
		}
	})
}
