package objectstest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"wrenn.dev/internal/child"
	"wrenn.dev/internal/filelock"
	"wrenn.dev/internal/testkit"
)

// serverModule is the S3 server of the tests, with the version that is built.
const serverModule = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"

// Server is a running S3 server with an empty bucket "wrenn".
type Server struct {
	Address     string // host:port of HTTP on loopback
	Credentials string // the path of the file with its credentials
	Dir         string // an object is the file of its key below DIR/wrenn
	Secret      string // of the credentials

	program string
	process *child.Process
}

// StartServer starts versitygw, which it builds once if PATH does not have it, and stops
// it when the test ends. It skips the test where it cannot be built, but not with
// WRENN_CI=1.
func StartServer(tb testing.TB) *Server {
	tb.Helper()
	program, err := serverProgram(tb)
	if err != nil && os.Getenv("WRENN_CI") == "1" {
		tb.Fatalf("there is no S3 server: %v", err)
	}
	if err != nil {
		tb.Skipf("there is no S3 server: %v", err)
	}
	dir := tb.TempDir()
	s := &Server{program: program, Dir: filepath.Join(dir, "data"), Credentials: filepath.Join(dir, "credentials"), Secret: "the-secret-of-the-test"}
	testkit.Must(tb, os.MkdirAll(filepath.Join(s.Dir, "wrenn"), 0o700))
	testkit.Must(tb, os.WriteFile(s.Credentials, fmt.Appendf(nil, "[default]\naws_access_key_id = test\naws_secret_access_key = %s\n", s.Secret), 0o600))
	s.Address = testkit.FreeAddress(tb)
	s.Start(tb)
	tb.Cleanup(func() { s.Kill(tb) })
	return s
}

// URL returns the URL of the bucket, for objects.Open.
func (s *Server) URL() string { return "s3://wrenn?endpoint=" + s.Address + "&insecure=true" }

// Start starts the server again after Kill, at the same address and with what it had. The
// flags are more of versitygw, such as --readonly.
func (s *Server) Start(tb testing.TB, flags ...string) {
	tb.Helper()
	args := append([]string{"--port", s.Address, "--access", "test", "--secret", s.Secret, "--quiet"}, flags...)
	cmd := exec.Command(s.program, append(args, "posix", s.Dir)...) //nolint:noctx // Kill ends it
	cmd.Stderr = os.Stderr
	var err error
	s.process, err = child.Start(cmd)
	testkit.Must(tb, err)
	testkit.WaitNoError(tb, "the S3 server answers", func() error {
		var d net.Dialer
		conn, err := d.DialContext(tb.Context(), "tcp", s.Address)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}

// Kill ends the server at once.
func (s *Server) Kill(tb testing.TB) {
	tb.Helper()
	testkit.Must(tb, s.process.Kill())
}

// serverProgram returns the path of the server, which it builds if necessary. Tests of
// other packages wait meanwhile.
func serverProgram(tb testing.TB) (string, error) {
	tb.Helper()
	if path, err := exec.LookPath("versitygw"); err == nil {
		return path, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "wrenn-test")
	program := filepath.Join(dir, "versitygw")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "versitygw.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close() }()
	if err := filelock.Lock(tb.Context(), lock, func() { tb.Log("another test builds the S3 server") }); err != nil {
		return "", err
	}
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	build := exec.CommandContext(tb.Context(), "go", "install", serverModule)
	build.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %.2000s", err, out)
	}
	return program, nil
}
