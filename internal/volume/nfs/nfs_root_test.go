//go:build root

package nfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/testkit"
)

// newVolume returns the root of a new ext4 file system.
func newVolume(t *testing.T) *os.File {
	t.Helper()
	dir := t.TempDir()
	image, at := filepath.Join(dir, "image"), filepath.Join(dir, "at")
	testkit.Must(t, errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 32<<20), os.Mkdir(at, 0o700)))
	for _, argv := range [][]string{
		{"mke2fs", "-q", "-t", "ext4", "-m", "0", image},
		{"mount", "-o", "loop,nosuid,nodev,noexec", image, at},
	} {
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "outside"), []byte("outside"), 0o644))
	root, err := os.Open(at)
	testkit.Must(t, err)
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// client is a client of a test. Its calls carry ids.
type client struct {
	t        *testing.T
	conn     net.Conn
	xid      uint32
	uid, gid uint32
}

func serve(t *testing.T, root *os.File) (*Server, net.Listener) {
	t.Helper()
	s, err := New([]Export{{Name: "data", Root: root}}, slog.New(slog.DiscardHandler))
	testkit.Must(t, err)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, l
}

func dial(t *testing.T, l net.Listener, uid uint32) *client {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", l.Addr().String())
	testkit.Must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return &client{t: t, conn: conn, uid: uid, gid: uid}
}

// message returns a call as a record.
func (c *client) message(program, procedure uint32, args encoder) []byte {
	var auth encoder
	auth.uint32(0)
	auth.opaque([]byte("guest"))
	auth.uint32(c.uid, c.gid, 0)
	e := make(encoder, 4)
	e.uint32(c.xid, messageCall, rpcVersion, program, version, procedure, authSys)
	e.opaque(auth)
	e.uint32(authNone, 0)
	return append(e, args...).seal()
}

// receive returns the result of a reply.
func (c *client) receive() *decoder {
	c.t.Helper()
	var head [4]byte
	_, err := io.ReadFull(c.conn, head[:])
	testkit.Must(c.t, err)
	body := make([]byte, binary.BigEndian.Uint32(head[:])&^(1<<31))
	_, err = io.ReadFull(c.conn, body)
	testkit.Must(c.t, err)
	d := &decoder{rest: body}
	if xid, kind, state := d.uint32(), d.uint32(), d.uint32(); xid != c.xid || kind != messageReply || state != replyAccepted {
		c.t.Fatalf("reply %d of kind %d, %d", xid, kind, state)
	}
	d.uint64() // the verifier
	if accepted := d.uint32(); accepted != acceptSuccess {
		c.t.Fatalf("accept status %d", accepted)
	}
	return d
}

// call calls a procedure and returns its status and the rest of the result.
func (c *client) call(program, procedure uint32, args encoder) (status, *decoder) {
	c.t.Helper()
	c.xid++
	_, err := c.conn.Write(c.message(program, procedure, args))
	testkit.Must(c.t, err)
	d := c.receive()
	return status(d.uint32()), d
}

func (c *client) root() []byte {
	c.t.Helper()
	var args encoder
	args.opaque([]byte("/data"))
	st, d := c.call(programMount, 1, args)
	if st != statusOK {
		c.t.Fatalf("mount: %d", st)
	}
	return bytes.Clone(d.opaque(maxHandle))
}

func name(dir []byte, name string) encoder {
	var e encoder
	e.opaque(dir)
	e.opaque([]byte(name))
	return e
}

func noSettings() (e encoder) {
	e.uint32(0, 0, 0, 0, 0, 0)
	return e
}

// create creates a file and returns its handle.
func (c *client) create(dir []byte, file string) (status, []byte) {
	c.t.Helper()
	args := name(dir, file)
	args.uint32(createGuarded, 1, 0o640, 0, 0, 0, 0, 0)
	st, d := c.call(programNFS, 8, args)
	if st != statusOK {
		return st, nil
	}
	d.bool()
	return st, bytes.Clone(d.opaque(maxHandle))
}

func (c *client) write(file []byte, offset uint64, data string) status {
	c.t.Helper()
	var args encoder
	args.opaque(file)
	args.uint64(offset)
	args.uint32(uint32(len(data)), fileSync)
	args.opaque([]byte(data))
	st, _ := c.call(programNFS, 7, args)
	return st
}

func (c *client) read(file []byte) (status, string) {
	c.t.Helper()
	var args encoder
	args.opaque(file)
	args.uint64(0)
	args.uint32(transferSize)
	st, d := c.call(programNFS, 6, args)
	if st != statusOK {
		return st, ""
	}
	d.next(4 + 84 + 4 + 4) // attributes, count, end
	return st, d.string(transferSize)
}

func (c *client) lookup(dir []byte, file string) (status, []byte) {
	c.t.Helper()
	st, d := c.call(programNFS, 3, name(dir, file))
	if st != statusOK {
		return st, nil
	}
	return st, bytes.Clone(d.opaque(maxHandle))
}

func (c *client) want(what string, got, want status) {
	c.t.Helper()
	if got != want {
		c.t.Errorf("%s: status %d, want %d", what, got, want)
	}
}

func TestFilesBelongToTheirMakers(t *testing.T) {
	root := newVolume(t)
	_, l := serve(t, root)
	admin, user, other := dial(t, l, 0), dial(t, l, 1000), dial(t, l, 1001)
	top := admin.root()
	st, _ := user.create(top, "no")
	user.want("create in root's directory", st, statusAccess)
	testkit.Must(t, os.Chmod(root.Name(), 0o777|os.ModeSticky))
	st, file := user.create(top, "mine")
	user.want("create", st, statusOK)
	user.want("write", user.write(file, 0, "hello"), statusOK)
	var info unix.Stat_t
	testkit.Must(t, unix.Stat(filepath.Join(root.Name(), "mine"), &info))
	if got := fmt.Sprintf("%d %d %o", info.Uid, info.Gid, info.Mode); got != "1000 1000 100640" {
		t.Errorf("the file is of %s", got)
	}
	st, _ = other.read(file)
	other.want("read by another", st, statusAccess)
	other.want("write by another", other.write(file, 0, "x"), statusAccess)
	st, _ = other.call(programNFS, 12, name(top, "mine"))
	other.want("remove by another in a sticky directory", st, statusPerm)
	// A program that opened its file before a chmod goes on using it.
	testkit.Must(t, os.Chmod(filepath.Join(root.Name(), "mine"), 0o000))
	if st, text := user.read(file); st != statusOK || text != "hello" {
		t.Errorf("the owner reads %q, status %d", text, st)
	}
	user.want("write by the owner", user.write(file, 5, "!"), statusOK)
}

func TestHandlesOutliveRenamesAndServers(t *testing.T) {
	root := newVolume(t)
	s, l := serve(t, root)
	c := dial(t, l, 0)
	top := c.root()
	_, file := c.create(top, "before")
	c.want("write", c.write(file, 0, "text"), statusOK)
	st, _ := c.call(programNFS, 14, append(name(top, "before"), name(top, "after")...))
	c.want("rename", st, statusOK)
	s.Close()
	_, again := serve(t, root)
	c = dial(t, again, 0)
	if st, text := c.read(file); st != statusOK || text != "text" {
		t.Errorf("read %q, status %d", text, st)
	}
	st, _ = c.call(programNFS, 12, name(top, "after"))
	c.want("remove", st, statusOK)
	st, _ = c.read(file)
	c.want("read of a removed file", st, statusStale)
}

// A call that comes again because its answer was lost gets the first answer.
func TestRepeatedCall(t *testing.T) {
	_, l := serve(t, newVolume(t))
	c := dial(t, l, 0)
	top := c.root()
	_, _ = c.create(top, "file")
	st, _ := c.call(programNFS, 12, name(top, "file"))
	c.want("remove", st, statusOK)
	second := dial(t, l, 0)
	second.xid = c.xid
	_, err := second.conn.Write(second.message(programNFS, 12, name(top, "file")))
	testkit.Must(t, err)
	second.want("the same remove", status(second.receive().uint32()), statusOK)
	st, _ = second.call(programNFS, 12, name(top, "file"))
	second.want("another remove", st, status(unix.ENOENT))
}

func TestNothingOutsideIsReached(t *testing.T) {
	root := newVolume(t)
	_, l := serve(t, root)
	c := dial(t, l, 0)
	top := c.root()
	st, up := c.lookup(top, "..")
	if c.want("lookup of ..", st, statusOK); !bytes.Equal(up, top) {
		t.Error(".. of the root is not the root")
	}
	for _, bad := range []string{"../outside", "a/b", "", "a\x00b"} {
		st, _ := c.lookup(top, bad)
		c.want(fmt.Sprintf("lookup of %q", bad), st, statusAccess)
	}
	for _, bad := range []string{".", "..", "/x", ""} {
		if st, _ := c.create(top, bad); st == statusOK {
			t.Errorf("%q was created", bad)
		}
	}
	// Links lead nowhere on the server.
	testkit.Must(t, os.Symlink("../outside", filepath.Join(root.Name(), "link")))
	st, link := c.lookup(top, "link")
	c.want("lookup of a link", st, statusOK)
	st, _ = c.read(link)
	c.want("read of a link", st, statusInval)
	c.want("write of a link", c.write(link, 0, "x"), statusInval)
	// Handles of other file systems, made up and cut.
	outside, _, err := unix.NameToHandleAt(unix.AT_FDCWD, filepath.Join(filepath.Dir(root.Name()), "outside"), 0)
	testkit.Must(t, err)
	forged := binary.BigEndian.AppendUint32(bytes.Clone(top[:keySize]), uint32(outside.Type()))
	forged = append(forged, outside.Bytes()...)
	for _, bad := range [][]byte{forged, top[:len(top)-3], top[:keySize], {}, bytes.Repeat([]byte{0xff}, maxHandle)} {
		if st, text := c.read(bad); st == statusOK {
			t.Errorf("handle %x reads %q", bad, text)
		}
	}
	args := name(top, "device")
	args.uint32(kinds[unix.S_IFCHR])
	st, _ = c.call(programNFS, 11, append(args, noSettings()...))
	c.want("a device", st, statusPerm)
	var other encoder
	other.opaque([]byte("/other"))
	st, _ = c.call(programMount, 1, other)
	c.want("another volume", st, status(unix.ENOENT))
}

func TestListInPieces(t *testing.T) {
	root := newVolume(t)
	_, l := serve(t, root)
	c := dial(t, l, 0)
	top := c.root()
	for i := range 500 {
		testkit.Must(t, os.WriteFile(filepath.Join(root.Name(), fmt.Sprintf("file-%03d", i)), nil, 0o600))
	}
	seen, cookie := map[string]bool{}, uint64(0)
	for end := false; !end; {
		var args encoder
		args.opaque(top)
		args.uint64(cookie, 0)
		args.uint32(1024, 4096)
		st, d := c.call(programNFS, 17, args)
		if st != statusOK {
			t.Fatalf("status %d", st)
		}
		d.next(4 + 84 + 8)
		for d.bool() {
			d.uint64()
			entry := d.string(maxName)
			cookie = d.uint64()
			if seen[entry] {
				t.Errorf("%s is listed twice", entry)
			}
			seen[entry] = true
			if d.bool() {
				d.next(84)
			}
			if d.bool() {
				d.opaque(maxHandle)
			}
		}
		end = d.bool()
		testkit.Must(t, d.err)
	}
	if want := 500 + 3; len(seen) != want { // ".", "..", "lost+found"
		t.Errorf("%d entries, want %d", len(seen), want)
	}
}

func TestFullVolume(t *testing.T) {
	_, l := serve(t, newVolume(t))
	c := dial(t, l, 0)
	top := c.root()
	_, file := c.create(top, "big")
	piece, st := string(make([]byte, transferSize)), statusOK
	for i := uint64(0); st == statusOK && i < 1000; i++ {
		st = c.write(file, i*transferSize, piece)
	}
	c.want("write to a full volume", st, status(unix.ENOSPC))
}
