package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/api"
	"wrenn.dev/internal/controlplane/service"
)

func post(t *testing.T, url, media string, body io.Reader) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", testKey)
	req.Header.Set("Content-Type", media)
	return http.DefaultTransport.RoundTrip(req)
}

// zeros is an endless file.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// counting is a service that counts what is written to it, and holds none of it.
type counting struct {
	stub
	bytes int64
	whole bool
}

func (s *counting) WriteFile(_ context.Context, _ service.Caller, _ wrenn.SandboxID, _, _ string, content io.Reader) error {
	n, err := io.Copy(io.Discard, content)
	s.bytes, s.whole = n, err == nil
	return err
}

// upload posts a form whose file has n bytes, with its length known or not.
func upload(t *testing.T, url string, size int64, known bool) (status int) {
	t.Helper()
	form, media := fields("path", "/big", "file", "")
	cut := strings.Index(form, "application/octet-stream\r\n\r\n") + len("application/octet-stream\r\n\r\n")
	body := io.MultiReader(strings.NewReader(form[:cut]), io.LimitReader(zeros{}, size), strings.NewReader(form[cut:]))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	if known {
		req.ContentLength = int64(len(form)) + size
	}
	req.Header.Set("X-API-Key", testKey)
	req.Header.Set("Content-Type", media)
	req.Header.Set("Expect", "100-continue")
	transport := &http.Transport{ExpectContinueTimeout: 10 * time.Second}
	t.Cleanup(transport.CloseIdleConnections)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestUploadLimit(t *testing.T) {
	for name, c := range map[string]struct {
		route  string
		size   int64
		known  bool
		status int
	}{
		"at the limit":                   {"write", maxFile, false, 204},
		"over the limit":                 {"write", maxFile + 1, false, 413},
		"over the limit, and it says so": {"write", 2 * maxFile, true, 413},
		"stream has none":                {"stream/write", maxFile + 1, true, 204},
	} {
		t.Run(name, func(t *testing.T) {
			s := &counting{}
			server := serve(t, s, nil)
			status := upload(t, "http://"+server.address+at+"/files/"+c.route, c.size, c.known)
			if status != c.status {
				t.Fatalf("status = %d, want %d", status, c.status)
			}
			if written := c.status == 204; s.whole != written || written && s.bytes != c.size {
				t.Errorf("the service took %d bytes, whole %v", s.bytes, s.whole)
			}
		})
	}
}

// TestBodyThatStandsStill: the client stops sending and keeps the connection.
func TestBodyThatStandsStill(t *testing.T) {
	form, formMedia := fields("path", "/x", "file", strings.Repeat("x", 10000))
	for route, c := range map[string]struct{ media, body string }{
		"/files/stream/write": {formMedia, form},
		"/exec":               {mediaJSON, `{"cmd":"echo","args":["hello"]}`},
	} {
		t.Run(route, func(t *testing.T) {
			s := &counting{}
			server := serve(t, s, func(s *Server) { s.times.idle, s.times.request = 200*time.Millisecond, 200*time.Millisecond })
			conn, err := net.Dial("tcp", server.address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "POST %s%s HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
				at, route, testKey, c.media, len(c.body), c.body[:len(c.body)/2])
			answer, err := io.ReadAll(conn)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(answer, []byte("400 Bad Request")) || !bytes.Contains(answer, []byte("no byte of the body")) {
				t.Errorf("answer = %s", answer)
			}
			if s.whole || s.ran.Cmd != "" {
				t.Error("the service took half a body for a whole one")
			}
		})
	}
}

// TestUploadOutlivesTheReadTimeout: an upload with progress may last longer than other requests.
func TestUploadOutlivesTheReadTimeout(t *testing.T) {
	s := &counting{}
	server := serve(t, s, func(s *Server) { s.times.request = 50 * time.Millisecond })
	form, media := fields("path", "/x", "file", strings.Repeat("x", 100))
	piped, w := io.Pipe()
	go func() {
		for _, b := range []byte(form[:len(form)/2]) {
			_, _ = w.Write([]byte{b})
		}
		<-time.After(200 * time.Millisecond) // longer than the timeout; the length is not asserted on
		_, err := io.WriteString(w, form[len(form)/2:])
		w.CloseWithError(err)
	}()
	resp, err := post(t, "http://"+server.address+at+"/files/stream/write", media, piped)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 204 || s.bytes != 100 {
		t.Errorf("%s, %d bytes", resp.Status, s.bytes)
	}
}

// TestWorkOutlivesTheReadTimeout: the read timeout does not end a request that was read.
func TestWorkOutlivesTheReadTimeout(t *testing.T) {
	s := &slow{hold: 300 * time.Millisecond}
	server := serve(t, s, func(s *Server) { s.times.request = 50 * time.Millisecond })
	for method, path := range map[string]string{"POST": at + "/pause", "GET": at} {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+server.address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-API-Key", testKey)
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("%s %s = %s", method, path, resp.Status)
		}
	}
}

// slow is a service whose calls take hold.
type slow struct {
	stub
	hold time.Duration
}

func (s *slow) wait(ctx context.Context, c service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	select {
	case <-time.After(s.hold):
		return s.find(c, id)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *slow) PauseSandboxBy(ctx context.Context, c service.Caller, id wrenn.SandboxID, _ wrenn.PauseOptions) (*wrenn.Sandbox, error) {
	return s.wait(ctx, c, id)
}

func (s *slow) Sandbox(ctx context.Context, c service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return s.wait(ctx, c, id)
}

// TestDownloadThatBreaks: the client must not mistake a part for the file.
func TestDownloadThatBreaks(t *testing.T) {
	for _, route := range []string{"read", "stream/read"} {
		t.Run(route, func(t *testing.T) {
			cut := wrenn.Errorf(wrenn.Unavailable, "the host hung up")
			s := &stub{read: func(string) (io.ReadCloser, error) {
				return io.NopCloser(io.MultiReader(strings.NewReader("half"), failing{cut})), nil
			}}
			server := serve(t, s, nil)
			resp, err := post(t, "http://"+server.address+at+"/files/"+route, mediaJSON, strings.NewReader(`{"path":"/x"}`))
			if err != nil {
				return // broken before a byte of it was sent
			}
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("read %q and no error", body)
			}
		})
	}
}

// TestStreamReadSendsEachPiece: the second piece does not exist before the first arrived.
func TestStreamReadSendsEachPiece(t *testing.T) {
	file, w := io.Pipe()
	s := &stub{read: func(string) (io.ReadCloser, error) { return file, nil }}
	server := serve(t, s, nil)
	go func() { _, _ = io.WriteString(w, "one") }()
	resp, err := post(t, "http://"+server.address+at+"/files/stream/read", mediaJSON, strings.NewReader(`{"path":"/x"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	piece := make([]byte, 3)
	if _, err := io.ReadFull(resp.Body, piece); err != nil || string(piece) != "one" {
		t.Fatalf("first piece = %q, %v", piece, err)
	}
	go func() {
		_, err := io.WriteString(w, "two")
		w.CloseWithError(err)
	}()
	if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "two" {
		t.Errorf("rest = %q, %v", rest, err)
	}
}

func FuzzForm(f *testing.F) {
	c, err := loadContract(api.V1)
	if err != nil {
		f.Fatal(err)
	}
	const boundary = "b"
	for _, body := range []string{
		"--b\r\nContent-Disposition: form-data; name=\"path\"\r\n\r\n/x\r\n--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nhi\r\n--b--\r\n",
		"--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nhi\r\n--b--\r\n",
		"--b\r\nContent-Disposition: form-data; name=\"path\"\r\n\r\n/x\r\n--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nhi",
		"--b\r\n\r\n\r\n--b--", "", "--b--",
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		up, err := c.readForm(multipart.NewReader(bytes.NewReader(body), boundary), 64)
		if err != nil {
			if failureOf(t.Context(), err).status != 400 {
				t.Errorf("readForm(%q) = %v, which is not told as the client's fault", body, err)
			}
			return
		}
		if up.path == "" || len(up.path) > maxField || strings.ContainsRune(up.path, 0) {
			t.Errorf("readForm(%q) took the path %q", body, up.path)
		}
		content, err := io.ReadAll(up.file)
		if err == nil && (len(content) > 64 || !bytes.Contains(body, []byte("--b--"))) {
			t.Errorf("form %q ended as if it were whole, with %d bytes", body, len(content))
		}
		if err != nil && !errors.Is(up.file.err, err) {
			t.Errorf("Read = %v, kept %v", err, up.file.err)
		}
	})
}

// TestSplitter: whatever the pieces, the bytes survive, and text is never cut within a character.
func TestSplitter(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	alphabet := []string{"a", "é", "€", "𝄞", "\xff", "\xc3", "\xe2\x82", "\x00", "\xf0\x9d\x84", "\x80"}
	for range 2000 {
		var in, out []byte
		for range random.IntN(30) {
			in = append(in, alphabet[random.IntN(len(alphabet))]...)
		}
		var e encoder
		for rest := in; len(rest) > 0; {
			n := 1 + random.IntN(len(rest))
			for _, m := range e.encode(wrenn.ExecOutput{Stdout: rest[:n]}) {
				out = append(out, dataOf(t, m, frameStdout)...)
			}
			if len(e.stdout.held) > 3 {
				t.Fatalf("holds %d bytes", len(e.stdout.held))
			}
			rest = rest[n:]
		}
		for _, m := range e.flush() {
			out = append(out, dataOf(t, m, frameStdout)...)
		}
		if !bytes.Equal(in, out) {
			t.Fatalf("in %q, out %q", in, out)
		}
	}
}

func TestSplitterHoldsACharacterBack(t *testing.T) {
	var e encoder
	if got := e.encode(wrenn.ExecOutput{PTY: []byte("\xe2\x82")}); len(got) != 0 {
		t.Errorf("half a character was sent: %s", got[0].bytes)
	}
	got := e.encode(wrenn.ExecOutput{PTY: []byte("\xac!")})
	if len(got) != 1 || string(got[0].bytes) != `{"type":"pty","data":"€!"}` {
		t.Errorf("the whole was sent as %v", got)
	}
}

// TestHangUp: a call ends when its client disconnects.
func TestHangUp(t *testing.T) {
	s := &waiting{begun: make(chan struct{}), ended: make(chan error, 1)}
	server := serve(t, s, nil)
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+server.address+at+"/exec", strings.NewReader(`{"cmd":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", testKey)
	req.Header.Set("Content-Type", mediaJSON)
	go func() {
		<-s.begun
		cancel()
	}()
	if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
		resp.Body.Close()
		t.Errorf("answered with %s", resp.Status)
	}
	if err := wait(t, s.ended, "the end of the work"); !errors.Is(err, context.Canceled) {
		t.Errorf("the work ended with %v", err)
	}
}

// waiting is a service whose command runs until its context ends.
type waiting struct {
	stub
	begun chan struct{}
	ended chan error
}

func (s *waiting) Exec(ctx context.Context, _ service.Caller, _ wrenn.SandboxID, _ wrenn.ExecCommand) (*wrenn.ExecResult, error) {
	close(s.begun)
	<-ctx.Done()
	s.ended <- ctx.Err()
	return nil, ctx.Err()
}
