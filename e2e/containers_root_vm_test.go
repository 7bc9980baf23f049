//go:build root && vm

package e2e

import (
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/host"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/image"
	"wrenn.dev/internal/image/rootfs"
)

// Packages that a guest needs to run containers, in addition to the usual ones.
// They are part of the image, because the guest has no network in this test.
var engines = []string{"docker.io", "podman", "crun", "fuse-overlayfs", "slirp4netns", "busybox-static"}

// openEngineHost assembles a host whose guests have Docker and Podman.
func openEngineHost(t *testing.T) *host.Host {
	t.Helper()
	packages := append(image.DefaultPackages(), engines...)
	if rootfs.HostSuite() != "bookworm" {
		packages = append(packages, "docker-cli") // part of docker.io until then
	}
	return openHostWith(t, packages)
}

// Scripts of TestContainers. All images are made of one static program.
const (
	makeFiles = `set -e
		mkdir -p /srv/tree/bin /srv/build
		cp /bin/busybox /srv/tree/bin
		for name in sh cat echo httpd id mkdir wget; do ln -s busybox /srv/tree/bin/$name; done
		tar -C /srv/tree -cf /srv/tree.tar .
		printf 'FROM tiny\nRUN mkdir /www && echo built >/www/index.html\nCMD ["httpd", "-f", "-h", "/www"]\n' >/srv/build/Dockerfile`
	// containerd first, as the distribution's units do it: dockerd gives one that it
	// starts itself 15 s, which an emulated guest on a busy machine may exceed. The
	// sockets exist at once; the daemons answer when they are ready.
	startDocker = `nohup containerd >/var/log/containerd.log 2>&1 </dev/null & daemon=$!
		until ctr --connect-timeout 2s version >/dev/null 2>&1; do kill -0 $daemon || { cat /var/log/containerd.log; exit 1; }; done
		nohup dockerd >/var/log/dockerd.log 2>&1 </dev/null & daemon=$!
		until [ -S /run/docker.sock ]; do kill -0 $daemon && sleep 0.1 || break; done
		docker version >/dev/null || { cat /var/log/dockerd.log; exit 1; }`
	importDocker = `docker import /srv/tree.tar tiny >/dev/null`
	runDocker    = `docker run --rm tiny echo from docker`
	buildDocker  = `DOCKER_BUILDKIT=0 docker build -q -t web /srv/build >/dev/null && docker image inspect -f '{{.Config.Cmd}}' web`
	serveDocker  = `docker network create -d bridge front >/dev/null && docker run -d --name web --network front -p 8080:80 --memory 64m web >/dev/null`
	readPage     = `curl -fsS --retry 20 --retry-connrefused --retry-delay 1 http://169.254.0.21:8080/`
	readInside   = `docker run --rm --network front tiny wget -q -O - http://web/`
	readLimit    = `docker exec web cat /sys/fs/cgroup/memory.max`
	importPodman = `podman import -q /srv/tree.tar tiny >/dev/null 2>&1`
	runPodman    = `podman run --rm tiny id -u`
	limitPodman  = `own=$(sed s/0::// /proc/self/cgroup) && mkdir /sys/fs/cgroup$own/shell && echo $$ >/sys/fs/cgroup$own/shell/cgroup.procs &&
		echo +memory >/sys/fs/cgroup$own/cgroup.subtree_control &&
		podman run --rm --cgroup-parent $own --memory 32m tiny cat /sys/fs/cgroup/memory.max`
	fusePodman = `podman --root ~/fuse --storage-driver overlay --storage-opt overlay.mount_program=/usr/bin/fuse-overlayfs`
)

// TestContainers runs the distribution's Docker and Podman, with their defaults,
// across a pause and in a fork.
func TestContainers(t *testing.T) {
	h := openEngineHost(t)
	collectLast(t, h)
	sb, err := h.Manager.Create(t.Context(), wrenn.NewSandboxID(), wrenn.Size{VCPUs: 2, MemoryMiB: 1024})
	sb = keep(t, sb, err)
	began := time.Now()
	step := func(t *testing.T, sb *sandbox.Sandbox, user, script, want string) {
		t.Helper()
		if got := shAs(t, sb, user, script); got != want {
			t.Fatalf("%s printed %q, want %q", script, got, want)
		}
		t.Logf("%6.1f s after the start: %.70q", time.Since(began).Seconds(), script)
	}
	step(t, sb, "root", makeFiles, "")
	t.Run("docker", func(t *testing.T) {
		step(t, sb, "root", startDocker, "")
		step(t, sb, "root", `docker info -f '{{.Driver}} {{.CgroupVersion}}'`, "overlay2 2")
		step(t, sb, "root", importDocker, "")
		step(t, sb, "root", runDocker, "from docker")
		step(t, sb, "root", buildDocker, "[httpd -f -h /www]")
		step(t, sb, "root", serveDocker, "")
		step(t, sb, "root", readPage, "built")
		step(t, sb, "root", readInside, "built")
		step(t, sb, "root", readLimit, "67108864")
	})
	t.Run("podman", func(t *testing.T) {
		step(t, sb, "user", importPodman, "")
		step(t, sb, "user", runPodman, "0")
		step(t, sb, "user", limitPodman, "33554432")
		step(t, sb, "user", fusePodman+" import -q /srv/tree.tar tiny >/dev/null 2>&1", "")
		step(t, sb, "user", fusePodman+" run --rm tiny cat /proc/mounts | grep -c '^fuse-overlayfs / '", "1")
	})
	if t.Failed() {
		return
	}
	again := func(t *testing.T, sb *sandbox.Sandbox) {
		t.Helper()
		step(t, sb, "root", readPage, "built") // of the container that ran before
		step(t, sb, "root", runDocker, "from docker")
		step(t, sb, "user", runPodman, "0")
	}
	t.Run("fork", func(t *testing.T) {
		copies, err := sb.Fork(t.Context(), []wrenn.SandboxID{wrenn.NewSandboxID()}, nil)
		if err == nil {
			err = copies[0].Err
		}
		if err != nil {
			t.Fatal(err)
		}
		again(t, keep(t, copies[0].Sandbox, nil))
	})
	t.Run("pause and resume", func(t *testing.T) {
		if err := sb.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := sb.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		again(t, sb)
	})
}
