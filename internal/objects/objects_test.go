package objects_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"wrenn.dev"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/objects/objectstest"
	"wrenn.dev/internal/testkit"
)

func openDir(t *testing.T) *objects.Dir {
	t.Helper()
	d, err := objects.OpenDir(t.TempDir())
	testkit.Must(t, err)
	return d
}

func open(t *testing.T, url, credentials string, p objects.Policy) objects.Store {
	t.Helper()
	s, err := objects.Open(url, credentials, p)
	testkit.Must(t, err)
	return s
}

// quick is a policy that gives up soon.
func quick() objects.Policy {
	return objects.Policy{Attempts: 3, First: time.Millisecond, Longest: time.Millisecond}
}

func TestDir(t *testing.T) {
	dir := t.TempDir()
	objectstest.Conformance(t, open(t, "file://"+dir, "", objects.Policy{}))
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || left != nil {
		t.Errorf("left are %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "list")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty directory is left: %v", err)
	}
}

func TestS3(t *testing.T) {
	server := objectstest.StartServer(t)
	for name, prefix := range map[string]string{"prefix": "/some/prefix", "bucket": ""} {
		t.Run(name, func(t *testing.T) {
			url := strings.Replace(server.URL(), "?", prefix+"?", 1)
			objectstest.Conformance(t, open(t, url, server.Credentials, objects.Policy{}))
		})
	}
}

func TestS3Refuses(t *testing.T) {
	server := objectstest.StartServer(t)
	wrong := filepath.Join(t.TempDir(), "credentials")
	testkit.Must(t, os.WriteFile(wrong, []byte("[default]\naws_access_key_id = test\naws_secret_access_key = wrong-secret\n"), 0o600))
	put := func(url, credentials string) error {
		return open(t, url, credentials, quick()).Put(t.Context(), "a", bytes.NewReader(nil), 0, false)
	}
	err := put(server.URL(), wrong)
	testkit.WantCode(t, err, wrenn.PermissionDenied, "credentials")
	if strings.Contains(err.Error(), "wrong-secret") {
		t.Errorf("the error has the secret: %v", err)
	}
	testkit.WantCode(t, put(strings.Replace(server.URL(), "wrenn", "other", 1), server.Credentials), wrenn.FailedPrecondition, "bucket other does not exist")
	server.Kill(t)
	err = put(server.URL(), server.Credentials)
	testkit.WantCode(t, err, wrenn.Unavailable, "cannot be reached")
	if strings.Contains(err.Error(), server.Secret) {
		t.Errorf("the error has the secret: %v", err)
	}
}

// TestS3ServerReturns: a call survives that the server ends and another one starts.
func TestS3ServerReturns(t *testing.T) {
	server := objectstest.StartServer(t)
	s := open(t, server.URL(), server.Credentials, objects.Policy{Attempts: 1000, First: 10 * time.Millisecond, Longest: 100 * time.Millisecond})
	objectstest.Put(t, s, "a", "before")
	server.Kill(t)
	done := make(chan error, 1)
	go func() { done <- s.Put(t.Context(), "b", strings.NewReader("after"), 5, false) }()
	server.Start(t)
	testkit.Must(t, <-done)
	if diff := cmp.Diff([]string{"a", "b"}, objectstest.List(t, s, "")); diff != "" {
		t.Error(diff)
	}
}

// TestS3Stalls: a connection on which nothing passes is given up and made again.
func TestS3Stalls(t *testing.T) {
	server := objectstest.StartServer(t)
	proxy := startProxy(t, server.Address)
	s := open(t, "s3://wrenn?insecure=true&endpoint="+proxy.address, server.Credentials, objects.Policy{
		Attempts: 1000, First: time.Millisecond, Longest: time.Millisecond, Stall: 300 * time.Millisecond,
	})
	content := strings.Repeat("0123456789abcdef", 1<<16)
	objectstest.Put(t, s, "a", content)
	proxy.stall.Store(true)
	done := make(chan error, 1)
	go func() {
		r, err := s.Get(t.Context(), "a", 0, int64(len(content)))
		if err == nil {
			var got []byte
			if got, err = io.ReadAll(r); err == nil && string(got) != content {
				err = errors.New("the content is another")
			}
			err = errors.Join(err, r.Close())
		}
		done <- err
	}()
	testkit.WaitUntil(t, "attempts are given up", func() bool { return proxy.opened.Load() > 2 })
	proxy.stall.Store(false)
	testkit.Must(t, <-done)
}

// proxy passes connections on; while stall is set it passes only the first bytes of an answer.
type proxy struct {
	address string
	stall   atomic.Bool
	opened  atomic.Int32
}

func startProxy(t *testing.T, target string) *proxy {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	p := &proxy{address: l.Addr().String()}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.opened.Add(1)
			go p.pass(context.WithoutCancel(t.Context()), conn, target)
		}
	}()
	return p
}

func (p *proxy) pass(ctx context.Context, client net.Conn, target string) {
	defer client.Close()
	var d net.Dialer
	server, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.Close()
	}()
	buf := make([]byte, 4096)
	for passed := 0; ; passed++ {
		n, err := server.Read(buf)
		if err != nil {
			return
		}
		if p.stall.Load() && passed > 3 {
			_, _ = client.Read(buf) // until the client gives up; it has sent its request
			return
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}

func TestRetry(t *testing.T) {
	for name, tc := range map[string]struct {
		code  wrenn.Code
		calls int
	}{
		"busy": {wrenn.Unavailable, 3}, "full": {wrenn.Exhausted, 1}, "read-only": {wrenn.PermissionDenied, 1},
	} {
		t.Run(name, func(t *testing.T) {
			faulty := objectstest.NewFaulty(openDir(t))
			s := objects.Retry(faulty, quick())
			faulty.Set(objectstest.Faults{Before: func(context.Context, string, string) error { return wrenn.Errorf(tc.code, "no") }})
			testkit.WantCode(t, s.Put(t.Context(), "a", strings.NewReader("x"), 1, false), tc.code)
			_, err := s.Get(t.Context(), "a", 0, 1)
			testkit.WantCode(t, err, tc.code)
			_, err = s.Head(t.Context(), "a")
			testkit.WantCode(t, err, tc.code)
			testkit.WantCode(t, s.Delete(t.Context(), "a"), tc.code)
			for _, err := range s.List(t.Context(), "") {
				testkit.WantCode(t, err, tc.code)
			}
			for _, method := range []string{"Put", "Get", "Head", "Delete", "List"} {
				if n := faulty.Calls(method); n != tc.calls {
					t.Errorf("%s was called %d times, want %d", method, n, tc.calls)
				}
			}
			faulty.Set(objectstest.Faults{})
			if left := objectstest.List(t, s, ""); left != nil {
				t.Errorf("left are %v", left)
			}
		})
	}
}

// TestReadContinues: a reader that breaks off every few bytes returns the whole object.
func TestReadContinues(t *testing.T) {
	faulty := objectstest.NewFaulty(openDir(t))
	s := objects.Retry(faulty, quick())
	objectstest.Put(t, s, "a", "0123456789")
	faulty.Set(objectstest.Faults{Body: func(_ string, r io.ReadCloser) io.ReadCloser {
		return struct {
			io.Reader
			io.Closer
		}{io.MultiReader(io.LimitReader(r, 3), failing{}), r}
	}})
	r, err := s.Get(t.Context(), "a", 1, 8)
	testkit.Must(t, err)
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "12345678" {
		t.Errorf("%q, %v", got, err)
	}
	if n := faulty.Calls("Get"); n != 3 {
		t.Errorf("it was opened %d times, want 3", n)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, wrenn.Errorf(wrenn.Unavailable, "broken") }

// TestStalledPut: an attempt in which nothing happens is given up.
func TestStalledPut(t *testing.T) {
	faulty := objectstest.NewFaulty(openDir(t))
	p := quick()
	p.Stall = time.Millisecond
	s := objects.Retry(faulty, p)
	faulty.Set(objectstest.Faults{Before: func(ctx context.Context, _, _ string) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}})
	testkit.WantCode(t, s.Put(t.Context(), "a", strings.NewReader("x"), 1, false), wrenn.Unavailable, "does not answer")
}

// TestBandwidth: bodies pass whole under a bound that is smaller than they are.
func TestBandwidth(t *testing.T) {
	s := objects.Retry(openDir(t), objects.Policy{BytesPerSecond: 64 << 20})
	content := strings.Repeat("0123456789abcdef", 1<<15)
	objectstest.Put(t, s, "a", content)
	if got, err := objects.ReadAll(t.Context(), s, "a", 1<<20); err != nil || string(got) != content {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestURLs(t *testing.T) {
	for _, url := range []string{
		"file:///srv/objects", "s3://bucket", "s3://bucket/a/prefix?endpoint=minio.example:9000&region=eu-1&insecure=true",
	} {
		testkit.Must(t, objects.CheckURL(url))
	}
	for url, says := range map[string]string{
		"":                         "file:///DIRECTORY or s3://BUCKET",
		"/srv/objects":             "file:///DIRECTORY or s3://BUCKET",
		"http://bucket":            "http:",
		"file://srv/objects":       "absolute path",
		"file:///srv?x=1":          "no parameters",
		"s3:///prefix":             "no bucket",
		"s3://bucket/../x":         "../x",
		"s3://bucket?regoin=x":     "regoin",
		"s3://bucket?insecure=yes": "true or false",
		"s3://key:hunter2@bucket":  "credentials",
		"s3://key:hunter2@%zz":     "malformed",
	} {
		err := objects.CheckURL(url)
		testkit.WantCode(t, err, wrenn.Invalid, says)
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error has the password: %v", err)
		}
	}
	_, err := objects.Open("file:///no/such/directory", "", objects.Policy{})
	testkit.WantCode(t, err, wrenn.FailedPrecondition, "create or mount")
}

// TestUnfinishedInDirectory removes what killed programs have left, and nothing else.
func TestUnfinishedInDirectory(t *testing.T) {
	dir := t.TempDir()
	s := open(t, "file://"+dir, "", quick())
	now := time.Now()
	objectstest.Put(t, s, "teams/a", "whole")
	for name, age := range map[string]time.Duration{".put-old": 2 * time.Hour, ".put-new": 0, ".other": 2 * time.Hour} {
		path := filepath.Join(dir, name)
		testkit.Must(t, os.WriteFile(path, []byte("half"), 0o600))
		testkit.Must(t, os.Chtimes(path, now, now.Add(-age)))
	}
	testkit.Must(t, os.Chtimes(filepath.Join(dir, "teams/a"), now, now.Add(-2*time.Hour)))
	for _, want := range []int{1, 0} { // twice is allowed
		if n, err := s.DeleteUnfinished(t.Context(), "", now.Add(-time.Hour)); n != want || err != nil {
			t.Errorf("DeleteUnfinished() = %d, %v; want %d", n, err, want)
		}
	}
	for name, want := range map[string]bool{".put-old": false, ".put-new": true, ".other": true, "teams/a": true} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s exists: %t, want %t", name, err == nil, want)
		}
	}
}

// TestUnfinishedInBucket is the same for the multipart uploads of a bucket, which other
// programs use too.
func TestUnfinishedInBucket(t *testing.T) {
	server := objectstest.StartServer(t)
	s := open(t, strings.Replace(server.URL(), "?", "/some?", 1), server.Credentials, quick())
	core, err := minio.NewCore(server.Address, &minio.Options{Creds: credentials.NewStaticV4("test", server.Secret, "")})
	testkit.Must(t, err)
	begin := func(key string) {
		t.Helper()
		id, err := core.NewMultipartUpload(t.Context(), "wrenn", key, minio.PutObjectOptions{})
		testkit.Must(t, err)
		_, err = core.PutObjectPart(t.Context(), "wrenn", key, id, 1, strings.NewReader("half"), 4, minio.PutObjectPartOptions{})
		testkit.Must(t, err)
	}
	objectstest.Put(t, s, "teams/whole", "whole")
	for _, key := range []string{"some/teams/a", "some/teams/a", "some/teams/b/c", "some/teams/whole", "some/shared/d", "teams/a", "other"} {
		begin(key)
	}
	early, late := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	for _, step := range []struct {
		before time.Time
		want   int
	}{{early, 0}, {late, 4}, {late, 0}} {
		if n, err := s.DeleteUnfinished(t.Context(), "teams/", step.before); n != step.want || err != nil {
			t.Errorf("DeleteUnfinished() = %d, %v; want %d", n, err, step.want)
		}
	}
	left, err := core.ListMultipartUploads(t.Context(), "wrenn", "", "", "", "", 1000)
	testkit.Must(t, err)
	var keys []string
	for _, u := range left.Uploads {
		keys = append(keys, u.Key)
	}
	if diff := cmp.Diff([]string{"other", "some/shared/d", "teams/a"}, keys); diff != "" {
		t.Errorf("the uploads that are left (-want +got):\n%s", diff)
	}
	if text, err := objects.ReadAll(t.Context(), s, "teams/whole", 5); string(text) != "whole" || err != nil {
		t.Errorf("the object is %q, %v", text, err)
	}
}

// endsUploads is a body whose first read at or behind the offset removes all unfinished uploads.
type endsUploads struct {
	io.ReaderAt
	offset int64
	once   sync.Once
	end    func()
}

func (b *endsUploads) ReadAt(p []byte, off int64) (int, error) {
	if off >= b.offset {
		b.once.Do(b.end)
	}
	return b.ReaderAt.ReadAt(p, off)
}

// TestUnfinishedAtWork: an upload that is taken for one of a killed program is repeated,
// whether it ends before a part is sent or in the middle of one.
func TestUnfinishedAtWork(t *testing.T) {
	server := objectstest.StartServer(t)
	s := open(t, server.URL(), server.Credentials, quick())
	content := bytes.Repeat([]byte("0123456789abcdef"), 40<<16)
	for name, offset := range map[string]int64{"between": 16 << 20, "middle": 20 << 20} {
		t.Run(name, func(t *testing.T) {
			removed := 0
			body := &endsUploads{ReaderAt: bytes.NewReader(content), offset: offset, end: func() {
				n, err := s.DeleteUnfinished(t.Context(), "teams/", time.Now().Add(time.Hour))
				removed += n
				testkit.Must(t, err)
			}}
			testkit.Must(t, s.Put(t.Context(), "teams/"+name, body, int64(len(content)), false))
			got, err := objects.ReadAll(t.Context(), s, "teams/"+name, int64(len(content)))
			if err != nil || !bytes.Equal(got, content) || removed != 1 {
				t.Errorf("%d bytes, %v; %d uploads were removed, want 1", len(got), err, removed)
			}
		})
	}
}
