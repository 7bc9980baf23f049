//go:build root && vm

package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// serving runs counter in the foreground, as the start command of a template.
const serving = `secret=$(cat /proc/sys/kernel/random/uuid); n=0; echo the program runs
	while :; do n=$((n+1)); echo "$secret $n $GREETING" >/dev/shm/new; mv /dev/shm/new /dev/shm/told; sleep 0.2; done`

// TestTemplates tests templates through all parts, from the command line to the guest.
func TestTemplates(t *testing.T) {
	s := newStack(t, "wtpl", "10.229.0.0/16")
	t.Run("from the base", s.testTemplateOfBase)
	t.Run("from a sandbox", s.testTemplateOfSandbox)
	t.Run("from a container image", s.testTemplateOfContainer)
	t.Run("from a Dockerfile", s.testTemplateOfDockerfile)
	t.Run("a build that fails", s.testTemplateFails)
	t.Run("a control plane that dies", s.testTemplateAbandoned)
	s.clean(t, "snapshots")
	if res, err := s.agent.rpc.ListTemplates(t.Context(), &pb.ListTemplatesRequest{}); err != nil || len(res.GetGenerations()) > 0 {
		t.Errorf("generations on the host: %v, %v", res.GetGenerations(), err)
	}
}

// buildTemplate builds a template with the command line, and deletes it at the end of the test.
func (s *stack) buildTemplate(t *testing.T, template string, args ...string) {
	t.Helper()
	out, err := s.wrenn(t, append([]string{"template", "build", template}, args...)...)
	if err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	t.Cleanup(func() { s.deleteTemplate(t, template) })
}

func (s *stack) deleteTemplate(t *testing.T, template string) {
	t.Helper()
	err := s.api.DeleteTemplate(context.WithoutCancel(t.Context()), template)
	if err != nil && client.CodeOf(err) != client.NotFound { // a test may have deleted it
		t.Error(err)
	}
}

// of creates a sandbox from a template; it is deleted at the end of the test.
func (s *stack) of(t *testing.T, template string) string {
	t.Helper()
	return s.sleeper(t, func(wish *client.CreateSandbox) { wish.Template, wish.MemoryMB = template, 0 })
}

func (s *stack) testTemplateOfBase(t *testing.T) {
	s.buildTemplate(t, "web", "--memory", "128", "-e", "GREETING=servus", "--start-cmd", serving, "--ready-cmd", "test -s /dev/shm/told")
	log, err := s.wrenn(t, "template", "logs", "web")
	if err != nil || !strings.Contains(log, "the program runs") {
		t.Errorf("log: %v\n%s", err, log)
	}
	if list, err := s.wrenn(t, "template", "list"); err != nil || !strings.Contains(list, "base ") || !strings.Contains(list, "ready") {
		t.Errorf("list: %v\n%s", err, list)
	}
	one, two := s.of(t, "web"), s.of(t, "web:latest")
	var secret, other, greeting string
	var n int
	if _, err := fmt.Sscan(s.must(t, one, "cat /dev/shm/told"), &secret, &n, &greeting); err != nil || n < 1 || greeting != "servus" {
		t.Errorf("the program says %q %d %q, %v", secret, n, greeting, err)
	}
	told := s.must(t, two, "cat /dev/shm/told")
	if _, err := fmt.Sscan(told, &other); err != nil || other != secret {
		t.Errorf("two sandboxes of one template run the programs %q and %q", secret, other)
	}
	s.checkCounter(t, two, told)
	const bootID = "cat /proc/sys/kernel/random/boot_id"
	if s.must(t, one, bootID) == s.must(t, two, bootID) {
		t.Error("two sandboxes of one template have the same boot id")
	}
	if got := s.must(t, one, "echo $GREETING"); got != "servus" {
		t.Errorf("a command has the greeting %q", got)
	}
	_, err = s.api.CreateSandbox(t.Context(), client.CreateSandbox{Template: "web", MemoryMB: 256})
	if client.CodeOf(err) != client.InvalidRequest {
		t.Errorf("another size: %v", err)
	}
}

func (s *stack) testTemplateOfSandbox(t *testing.T) {
	id := s.sleeper(t, nil)
	told := s.must(t, id, counter)
	s.must(t, id, "echo on the disk >/root/mark")
	s.buildTemplate(t, "mine:v1", "--from-sandbox", id)
	s.checkCounter(t, id, told)
	copied := s.of(t, "mine:v1")
	s.checkCounter(t, copied, told)
	if got := s.must(t, copied, "cat /root/mark"); got != "on the disk" {
		t.Errorf("the file says %q", got)
	}
	s.deleteTemplate(t, "mine:v1")
	s.checkCounter(t, copied, told) // which needs its files
	s.buildTemplate(t, "mine:v2", "--from-sandbox", copied)
}

func (s *stack) testTemplateOfContainer(t *testing.T) {
	ref := pushBusybox(t)
	s.buildTemplate(t, "box", "--from-oci", ref, "--memory", "128", "--start-cmd", serving, "--ready-cmd", "test -s /dev/shm/told")
	id := s.of(t, "box")
	if got := s.must(t, id, "cat /etc/release; echo $FROM_IMAGE; readlink /bin/sh"); got != "small\nyes\n/bin/busybox" {
		t.Errorf("in the container's system: %q", got)
	}
	const system = "ls -A /tmp; stat -c %a /tmp; cat /proc/sys/vm/swappiness /proc/sys/net/ipv4/ip_default_ttl; echo out >/dev/stdout; ulimit -H -n; su user -c 'id -un'"
	if got := s.must(t, id, system); got != "1777\n7\n65\nout\n524288\nuser" {
		t.Errorf("of what its init gives it has %q", got)
	}
	s.checkCounter(t, id, s.must(t, id, "cat /dev/shm/told"))
	// The image has no modprobe: the guest's kernel runs the one that it was given.
	if got := s.must(t, id, "mkdir -p /mnt && cd /mnt && mkdir l u w m && /bin/busybox mount -t overlay -o lowerdir=l,upperdir=u,workdir=w none m && echo x >m/f && cat u/f"); got != "x" {
		t.Errorf("in an overlay: %q", got)
	}
	if got := s.must(t, id, "id -un $(stat -c %U /dev/shm/told)"); got != "app" {
		t.Errorf("the start command ran as %q", got)
	}
	out, err := s.wrenn(t, "template", "build", "nothing", "--from-oci", strings.Replace(ref, ":1", ":2", 1))
	if err == nil || !strings.Contains(err.Error(), "the registry has no") {
		t.Errorf("a missing image: %v: %s", err, out)
	}
	s.deleteTemplate(t, "nothing")
}

// pushBusybox serves a container image of the host's busybox in the test's own registry.
func pushBusybox(t *testing.T) string {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if errors.Is(err, os.ErrNotExist) {
		const missing = "there is no /bin/busybox to make a container image of (apt-get install busybox-static)"
		if os.Getenv("WRENN_CI") == "1" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	if err != nil {
		t.Fatal(err)
	}
	applets, err := exec.CommandContext(t.Context(), "/bin/busybox", "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(busyboxTree(t, program, strings.Fields(string(applets))))), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err == nil {
		image, err = mutate.Config(image, v1.Config{Env: []string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "FROM_IMAGE=yes"}, User: "1000:1000", WorkingDir: "/"})
	}
	if err == nil {
		var file *v1.ConfigFile
		if file, err = image.ConfigFile(); err == nil {
			file = file.DeepCopy()
			file.OS, file.Architecture = "linux", "amd64"
			image, err = mutate.ConfigFile(image, file)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	ref := strings.TrimPrefix(server.URL, "http://") + "/small:1"
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(parsed, image, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	return ref
}

func busyboxTree(t *testing.T, program []byte, applets []string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(h tar.Header, content string) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "root/", "sbin/", "usr/", "usr/bin/", "usr/sbin/", "usr/local/", "usr/local/bin/", "etc/sysctl.d/", "tmp/"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, "")
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, string(program))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/release", Mode: 0o644}, "small\n")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/:/bin/sh\n")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, "root:x:0:\napp:x:1000:\n")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "tmp/left", Mode: 0o644}, "of the build\n")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/sysctl.d/mine.conf", Mode: 0o644}, "# mine\nvm.swappiness = 7\nnet/ipv4/ip_default_ttl=65\n-no.such = 1\n")
	for _, applet := range applets {
		if applet != "busybox" && !slices.Contains([]string{"init", "linuxrc"}, applet) {
			add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "/bin/busybox", Mode: 0o777}, "")
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// testTemplateOfDockerfile: sandboxes have what the steps did, and a build runs only the steps that changed.
func (s *stack) testTemplateOfDockerfile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		testkit.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	const steps = `FROM base
ARG WHO=world
ENV GREETING="servus $WHO"
WORKDIR /srv/app
COPY --chown=user:user --chmod=0640 hello.txt .
USER user
RUN cat hello.txt && echo "$WHO"
USER root
RUN id -un >` + "%s" + `
USER user
CMD printf '%%s %%s' "$(id -un)" "$PWD" >/dev/shm/started; exec sleep 100000
`
	write("hello.txt", "hi\n")
	write("Dockerfile", fmt.Sprintf(steps, "one"))
	build := []string{"--from-template", "base", "--memory", "128", "--ready-cmd", "test -s /dev/shm/started", "-f", filepath.Join(dir, "Dockerfile"), dir}
	s.buildTemplate(t, "app:one", build...)
	write("Dockerfile", fmt.Sprintf(steps, "two"))
	s.buildTemplate(t, "app:two", build...)
	log, err := s.wrenn(t, "template", "logs", "app:two")
	testkit.Must(t, err)
	for n := 1; n <= 9; n++ { // step 8 changed, and comes before 9
		if cached := strings.Contains(log, fmt.Sprintf("#%d CACHED", n)); cached != (n < 8) {
			t.Errorf("step %d of the second build: cached is %v:\n%s", n, cached, log)
		}
	}
	id := s.of(t, "app:two")
	exec, err := s.api.Exec(t.Context(), id, client.Command{Cmd: "sh", Args: []string{"-c", "id -un; pwd; echo $GREETING $WHO; stat -c '%U %a' hello.txt; cat hello.txt two /dev/shm/started; ls"}})
	testkit.Must(t, err)
	const want = "user\n/srv/app\nservus world\nuser 640\nhi\nroot\nuser /srv/apphello.txt\ntwo\n"
	if diff := cmp.Diff(want, string(exec.Stdout)); diff != "" {
		t.Errorf("in the sandbox (-want +got):\n%s\n%s", diff, exec.Stderr)
	}
}

func (s *stack) testTemplateFails(t *testing.T) {
	out, err := s.wrenn(t, "template", "build", "bad", "--memory", "128", "--start-cmd", "echo no such file >&2; exit 3", "--ready-cmd", "false")
	if err == nil || !strings.Contains(err.Error(), `the start command ended: exit status 3: "no such file"`) {
		t.Errorf("a start command that fails: %v: %s", err, out)
	}
	out, err = s.wrenn(t, "template", "build", "bad", "--memory", "128", "--ready-cmd", "echo not yet >&2; false", "--ready-timeout", "2s")
	if err == nil || !strings.Contains(err.Error(), "did not succeed within 2s") || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("a ready command that fails: %v: %s", err, out)
	}
	s.deleteTemplate(t, "bad")
}

// testTemplateAbandoned: a build fails when its control plane dies, has the reason, and leaves nothing.
func (s *stack) testTemplateAbandoned(t *testing.T) {
	g, err := s.api.BuildTemplate(t.Context(), client.BuildTemplate{Name: "lost", MemoryMB: 128, StartCmd: "echo it runs; exec sleep 100000", ReadyCmd: "false"})
	if err != nil {
		t.Fatal(err)
	}
	testkit.WaitNoError(t, "the build is at work", func() error {
		log, err := s.api.BuildLog(t.Context(), "lost", g.ID, 0)
		if err == nil && !slices.Contains(log.Lines, "it runs") {
			err = fmt.Errorf("it said %q", log.Lines)
		}
		return err
	})
	s.killControlPlane(t)
	s.startControlPlane(t)
	testkit.WaitNoError(t, "the build has failed", func() error {
		log, err := s.api.BuildLog(t.Context(), "lost", g.ID, 0)
		if err == nil && log.Generation.State != client.BuildFailed {
			err = fmt.Errorf("it is %s", log.Generation.State)
		}
		if err == nil && !strings.Contains(log.Generation.Reason, "build again") {
			t.Errorf("the reason is %q", log.Generation.Reason)
		}
		return err
	})
	s.deleteTemplate(t, "lost")
}
