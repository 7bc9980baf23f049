package buildcache

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

var roomy = Limits{Entries: 10, Bytes: 1 << 30, TeamEntries: 10, TeamBytes: 1 << 30}

func open(t *testing.T, dir string, limits Limits) *Cache {
	t.Helper()
	c, err := Open(dir, limits)
	testkit.Must(t, err)
	return c
}

// put puts a file with the content and releases it.
func put(t *testing.T, c *Cache, team, key, content string) {
	t.Helper()
	e, err := c.Put(t.Context(), team, key, map[string]string{"is": content}, writer(content))
	testkit.Must(t, err)
	e.Release()
}

func writer(content string) WriteFunc {
	return func(path string) (int64, error) { return 0, os.WriteFile(path, []byte(content), 0o600) }
}

// want checks an entry's content; "" is no entry.
func want(t *testing.T, c *Cache, team, key, content string) {
	t.Helper()
	e := c.Get(team, key)
	if e == nil {
		if content != "" {
			t.Errorf("%s of %s does not exist", key, team)
		}
		return
	}
	defer e.Release()
	got, err := os.ReadFile(e.Path)
	var meta map[string]string
	if err != nil || string(got) != content || json.Unmarshal(e.Meta, &meta) != nil || meta["is"] != content {
		t.Errorf("%s of %s has %q and %s, %v; want %q", key, team, got, e.Meta, err, content)
	}
}

func TestEntriesSurviveTheProcess(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, roomy)
	put(t, c, "a", "k", "one")
	put(t, c, "a", "k", "two") // in place of the first
	put(t, c, "b", "other", "three")
	want(t, c, "a", "k", "two")
	want(t, c, "b", "k", "") // another team's
	again := open(t, dir, roomy)
	want(t, again, "a", "k", "two")
	want(t, again, "b", "other", "three")
	if u := again.Use(); u.Entries != 2 || u.Bytes == 0 {
		t.Errorf("Use() = %+v", u)
	}
}

func TestPutIsWholeOrNothing(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, roomy)
	put(t, c, "a", "k", "old")
	failure := errors.New("broken")
	_, err := c.Put(t.Context(), "a", "k", nil, func(path string) (int64, error) {
		testkit.Must(t, os.WriteFile(path, []byte("half"), 0o600))
		return 0, failure
	})
	if !errors.Is(err, failure) {
		t.Errorf("Put() = %v", err)
	}
	want(t, c, "a", "k", "old")
	// What a killed process leaves.
	for _, name := range []string{"x.new/file", "y.data", "z.json"} {
		path := filepath.Join(dir, "a", name)
		testkit.Must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		testkit.Must(t, os.WriteFile(path, []byte("{}"), 0o600))
	}
	again := open(t, dir, roomy)
	want(t, again, "a", "k", "old")
	want(t, again, "a", "z", "")
	left, err := filepath.Glob(filepath.Join(dir, "a", "[xyz].*"))
	testkit.Must(t, err)
	for _, path := range left {
		t.Errorf("%s is left", path)
	}
}

func TestLeastRecentlyUsedGoesFirst(t *testing.T) {
	limits := roomy
	limits.TeamEntries, limits.Entries = 2, 3
	c := open(t, t.TempDir(), limits)
	put(t, c, "a", "one", "1")
	put(t, c, "a", "two", "2")
	want(t, c, "a", "one", "1") // a use
	put(t, c, "a", "three", "3")
	want(t, c, "a", "two", "")
	put(t, c, "b", "four", "4")
	leased := c.Get("a", "one")
	defer leased.Release()
	want(t, c, "a", "three", "3")
	put(t, c, "b", "five", "5") // of all teams one is too many, and the oldest is leased
	want(t, c, "a", "one", "1")
	want(t, c, "b", "four", "")
	for _, more := range []bool{true, true, false} {
		if c.RemoveOldest() != more {
			t.Errorf("RemoveOldest() = %v with %d entries", !more, c.Use().Entries)
		}
	}
}

func TestPutRefuses(t *testing.T) {
	limits := roomy
	limits.TeamBytes = 64 << 10
	c := open(t, t.TempDir(), limits)
	for _, name := range [][2]string{{"..", "k"}, {"a", "../k"}, {"", "k"}, {"a", ""}, {"a", "K"}, {"a", strings.Repeat("k", 81)}, {"a/b", "k"}} {
		_, err := c.Put(t.Context(), name[0], name[1], nil, writer("x"))
		testkit.WantCode(t, err, wrenn.Invalid, "cannot name")
	}
	_, err := c.Put(t.Context(), "a", "k", nil, writer(strings.Repeat("x", 128<<10)))
	testkit.WantCode(t, err, wrenn.Exhausted, "more than")
	want(t, c, "a", "k", "")
}

// A full disk makes room for what is new.
func TestPutMakesRoom(t *testing.T) {
	c := open(t, t.TempDir(), roomy)
	put(t, c, "a", "one", "1")
	put(t, c, "a", "two", "2")
	tries := 0
	e, err := c.Put(t.Context(), "a", "three", map[string]string{"is": "3"}, func(path string) (int64, error) {
		if tries++; tries < 3 {
			return 0, unix.ENOSPC
		}
		return 0, os.WriteFile(path, []byte("3"), 0o600)
	})
	testkit.Must(t, err)
	e.Release()
	want(t, c, "a", "one", "")
	want(t, c, "a", "two", "")
	want(t, c, "a", "three", "3")
	_, err = c.Put(t.Context(), "a", "four", nil, func(string) (int64, error) { return 0, unix.ENOSPC })
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Put() = %v", err)
	}
}
