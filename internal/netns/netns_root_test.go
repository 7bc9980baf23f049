//go:build root

package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// create creates a namespace, which the end of the test deletes.
func create(t *testing.T, suffix string) (name, path string) {
	t.Helper()
	name = fmt.Sprintf("nstest%d-%s", os.Getpid(), suffix)
	path, err := Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Delete(name); err != nil {
			t.Error(err)
		}
	})
	return name, path
}

func current(t *testing.T) string {
	t.Helper()
	ns, err := os.Readlink(threadNS)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func mounted(t *testing.T, path string) bool {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(mounts), " "+path+" ")
}

func TestCreateNamesANewNamespace(t *testing.T) {
	name, path := create(t, "new")
	var inside string
	var links []net.Interface
	err := Do(path, func() (err error) {
		inside, _ = os.Readlink(threadNS)
		links, err = net.Interfaces()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if inside == current(t) || inside == "" {
		t.Errorf("inside it is %q, outside %q", inside, current(t))
	}
	if len(links) != 1 || links[0].Name != "lo" {
		t.Errorf("a new namespace has the links %v, want lo alone", links)
	}
	if names, err := List(name); err != nil || !slices.Equal(names, []string{name}) {
		t.Errorf("List() = %v, %v", names, err)
	}
	if _, err := Create(name); !errors.Is(err, os.ErrExist) {
		t.Errorf("second Create() = %v, want os.ErrExist", err)
	}
	if !mounted(t, path) {
		t.Error("a refused Create removed the namespace")
	}
}

func TestDeleteLeavesNothingAndTwiceIsAllowed(t *testing.T) {
	name, path := create(t, "gone")
	for range 2 {
		if err := Delete(name); err != nil {
			t.Fatal(err)
		}
	}
	if mounted(t, path) {
		t.Error("still mounted")
	}
	if names, err := List(name); err != nil || len(names) != 0 {
		t.Errorf("List() = %v, %v", names, err)
	}
	if err := Do(path, func() error { return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Do() = %v, want os.ErrNotExist", err)
	}
}

func TestDeleteRemovesTheFileOfAnInterruptedCreate(t *testing.T) {
	name, path := create(t, "cut")
	if err := Delete(name); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := Do(path, func() error { return nil }); err == nil {
		t.Error("Do entered a plain file")
	}
	if err := Delete(name); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file still exists: %v", err)
	}
}

func TestDoRefusesOtherNamespaces(t *testing.T) {
	if err := Do("/proc/self/ns/mnt", func() error { return nil }); err == nil {
		t.Error("Do entered a mount namespace")
	}
}

func TestSocketsStayInTheNamespace(t *testing.T) {
	_, path := create(t, "socket")
	var pc net.PacketConn
	err := Do(path, func() (err error) {
		pc, err = new(net.ListenConfig).ListenPacket(t.Context(), "udp4", "0.0.0.0:39")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	udp, err := os.ReadFile("/proc/thread-self/net/udp")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(udp), "00000000:0027 ") {
		t.Error("the socket is in the test's own namespace")
	}
}

func TestDoReturnsWhenTheFunctionDoesNot(t *testing.T) {
	_, path := create(t, "goexit")
	err := Do(path, func() error { runtime.Goexit(); return nil })
	if !errors.Is(err, errNoReturn) {
		t.Errorf("Do() = %v, want %v", err, errNoReturn)
	}
}

// Every thread of the process must be back in its namespace after much traffic through
// several namespaces from many goroutines.
func TestThreadsComeHome(t *testing.T) {
	home := current(t)
	var paths [4]string
	for i := range paths {
		_, paths[i] = create(t, fmt.Sprint("home", i))
	}
	boom := errors.New("boom")
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 100 {
				err := Do(paths[(i+j)%len(paths)], func() error {
					if ns, err := os.Readlink(threadNS); err != nil || ns == home {
						t.Errorf("inside: %q, %v", ns, err)
					}
					return boom
				})
				if !errors.Is(err, boom) {
					t.Errorf("Do() = %v", err)
				}
				if ns, err := os.Readlink(threadNS); err != nil || ns != home {
					t.Errorf("afterwards: %q, %v", ns, err)
				}
			}
		})
	}
	wg.Wait()
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && ns != home { // a thread may just have ended
			t.Errorf("%s is %s, want %s", task, ns, home)
		}
	}
}

func BenchmarkDo(b *testing.B) {
	name := fmt.Sprintf("nstest%d-bench", os.Getpid())
	path, err := Create(name)
	if err != nil {
		b.Fatal(err)
	}
	defer Delete(name)
	for b.Loop() {
		if err := Do(path, func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
