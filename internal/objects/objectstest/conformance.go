// Package objectstest has the conformance suite of object stores, a real S3 server and
// a store that fails, for tests.
package objectstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/testkit"
)

// Conformance checks that s, which must be empty, is a store as objects.Store says.
func Conformance(t *testing.T, s objects.Store) {
	t.Helper()
	for name, test := range map[string]func(suite){
		"content": suite.content, "conditional": suite.conditional, "race": suite.race, "large": suite.large,
		"list": suite.list, "missing": suite.missing, "keys": suite.keys, "canceled": suite.canceled, "unreadable": suite.unreadable,
	} {
		t.Run(name, func(t *testing.T) { test(suite{t, s}) })
	}
}

// suite is one test of a store.
type suite struct {
	*testing.T
	store objects.Store
}

// Put puts an object.
func Put(tb testing.TB, s objects.Store, key, content string) {
	tb.Helper()
	testkit.Must(tb, put(tb.Context(), s, key, content, false))
}

func put(ctx context.Context, s objects.Store, key, content string, ifAbsent bool) error {
	return s.Put(ctx, key, bytes.NewReader([]byte(content)), int64(len(content)), ifAbsent)
}

func get(ctx context.Context, s objects.Store, key string, offset, length int64) (string, error) {
	r, err := s.Get(ctx, key, offset, length)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(r)
	return string(text), errors.Join(err, r.Close())
}

func (t suite) want(key, content string) {
	t.Helper()
	got, err := get(t.Context(), t.store, key, 0, int64(len(content)))
	if err != nil || got != content {
		t.Errorf("%s is %.40q, %v; want %.40q", key, got, err, content)
	}
}

func (t suite) content() {
	s := t.store
	Put(t, s, "content/a", "hello")
	t.want("content/a", "hello")
	if got, err := get(t.Context(), s, "content/a", 1, 3); err != nil || got != "ell" {
		t.Errorf("a range is %q, %v", got, err)
	}
	Put(t, s, "content/a", "other")
	t.want("content/a", "other")
	Put(t, s, "content/empty", "")
	info, err := s.Head(t.Context(), "content/empty")
	if err != nil || info.Size != 0 || info.Key != "content/empty" || info.Modified.IsZero() {
		t.Errorf("Head() = %+v, %v", info, err)
	}
	if text, err := objects.ReadAll(t.Context(), s, "content/empty", 1); err != nil || len(text) != 0 {
		t.Errorf("ReadAll() = %q, %v", text, err)
	}
	if text, err := objects.ReadAll(t.Context(), s, "content/a", 5); err != nil || string(text) != "other" {
		t.Errorf("ReadAll() = %q, %v", text, err)
	}
	_, err = objects.ReadAll(t.Context(), s, "content/a", 4)
	testkit.WantCode(t, err, wrenn.Invalid)
	for _, r := range [][2]int64{{0, 6}, {4, 2}, {5, 1}, {100, 1}} {
		_, err := get(t.Context(), s, "content/a", r[0], r[1])
		testkit.WantCode(t, err, wrenn.FailedPrecondition, "content/a", "shorter")
	}
}

func (t suite) conditional() {
	s := t.store
	testkit.Must(t, put(t.Context(), s, "conditional/a", "first", true))
	testkit.WantCode(t, put(t.Context(), s, "conditional/a", "second", true), wrenn.AlreadyExists, "conditional/a")
	t.want("conditional/a", "first")
}

func (t suite) race() {
	s := t.store
	const writers = 8
	errs := make([]error, writers)
	var work sync.WaitGroup
	for i := range writers {
		work.Go(func() { errs[i] = put(t.Context(), s, "race/a", fmt.Sprintf("writer %d", i), true) })
	}
	work.Wait()
	won := -1
	for i, err := range errs {
		switch {
		case err == nil && won >= 0:
			t.Errorf("%d and %d have both put the object", won, i)
		case err == nil:
			won = i
		default:
			testkit.WantCode(t, err, wrenn.AlreadyExists)
		}
	}
	if won >= 0 {
		t.want("race/a", fmt.Sprintf("writer %d", won))
	}
}

// large puts an object that S3 gets in three parts.
func (t suite) large() {
	s := t.store
	large := bytes.Repeat([]byte("0123456789abcde\n"), 33<<16)
	testkit.Must(t, s.Put(t.Context(), "large/a", bytes.NewReader(large), int64(len(large)), false))
	t.want("large/a", string(large))
	if got, err := get(t.Context(), s, "large/a", 32<<20-3, 6); err != nil || got != "de\n012" {
		t.Errorf("a range is %q, %v", got, err)
	}
}

func (t suite) list() {
	s := t.store
	keys := []string{"list/a-b/c", "list/a.b", "list/a/b", "list/a/c/d", "list/ab", "list/b"}
	for _, key := range slices.Backward(keys) {
		Put(t, s, key, key)
	}
	for prefix, want := range map[string][]string{
		"list/": keys, "list/a/": {"list/a/b", "list/a/c/d"}, "list/a": keys[:5], "list/a/c/d": {"list/a/c/d"}, "list/none": nil,
	} {
		if diff := cmp.Diff(want, List(t, s, prefix)); diff != "" {
			t.Errorf("prefix %s (-want +got):\n%s", prefix, diff)
		}
	}
	for info, err := range s.List(t.Context(), "list/") { // the caller may stop
		if err != nil || info.Size != int64(len(info.Key)) || info.Modified.IsZero() {
			t.Errorf("%+v, %v", info, err)
		}
		break
	}
	for _, key := range keys {
		testkit.Must(t, s.Delete(t.Context(), key))
	}
	if left := List(t, s, "list/"); left != nil {
		t.Errorf("left are %v", left)
	}
}

// List returns the keys with the prefix.
func List(tb testing.TB, s objects.Store, prefix string) (keys []string) {
	tb.Helper()
	for info, err := range s.List(tb.Context(), prefix) {
		testkit.Must(tb, err)
		keys = append(keys, info.Key)
	}
	return keys
}

func (t suite) missing() {
	s := t.store
	_, err := s.Head(t.Context(), "missing/a")
	testkit.WantCode(t, err, wrenn.NotFound, "missing/a")
	_, err = get(t.Context(), s, "missing/a", 0, 1)
	testkit.WantCode(t, err, wrenn.NotFound, "missing/a")
	testkit.Must(t, s.Delete(t.Context(), "missing/a"))
}

func (t suite) keys() {
	s := t.store
	for _, key := range []string{"", "/", "/a", "a/", "a//b", "..", "a/../b", ".hidden", "a b", "ä", "a\x00", string(make([]byte, 2000))} {
		testkit.WantCode(t, put(t.Context(), s, key, "x", false), wrenn.Invalid)
		_, err := s.Head(t.Context(), key)
		testkit.WantCode(t, err, wrenn.Invalid)
		_, err = s.Get(t.Context(), key, 0, 1)
		testkit.WantCode(t, err, wrenn.Invalid)
		testkit.WantCode(t, s.Delete(t.Context(), key), wrenn.Invalid)
	}
}

func (t suite) canceled() {
	s := t.store
	errGone := errors.New("the caller is gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errGone)
	if err := put(ctx, s, "canceled/a", "x", false); !errors.Is(err, errGone) {
		t.Errorf("Put() = %v", err)
	}
	if left := List(t, s, "canceled/"); left != nil {
		t.Errorf("left are %v", left)
	}
}

// unreadable puts a body that cannot be read: nothing of it becomes an object.
func (t suite) unreadable() {
	s := t.store
	for _, size := range []int64{10, 20 << 20} {
		if err := s.Put(t.Context(), "unreadable/a", bytes.NewReader([]byte("short")), size, false); err == nil {
			t.Errorf("a body that is shorter than %d was put", size)
		}
	}
	if left := List(t, s, "unreadable/"); left != nil {
		t.Errorf("left are %v", left)
	}
}
