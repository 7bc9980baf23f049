package clienttest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"wrenn.dev/client"
)

// TestHandle: each method of a handle is that of the client for its sandbox.
func TestHandle(t *testing.T) {
	f := &fake{}
	c := serve(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	box, err := c.Create(ctx, client.CreateSandbox{Template: "base"})
	if err != nil {
		t.Fatal(err)
	}
	if box.ID() != boxID || box.Client() != c || f.created.Template != "base" {
		t.Errorf("created %q from %q", box.ID(), f.created.Template)
	}
	info, err := box.Info(ctx)
	if err != nil || info.State != client.Running {
		t.Errorf("info: %+v, %v", info, err)
	}
	result, err := box.Shell(ctx, `cat "$1"`, "a b", "$(c)")
	if want := []string{"-c", `cat "$1"`, "sh", "a b", "$(c)"}; err != nil || f.ran.Cmd != "/bin/sh" || !slices.Equal(f.ran.Args, want) || result.ExitCode != 3 {
		t.Errorf("ran %q %q, %v; want %q", f.ran.Cmd, f.ran.Args, err, want)
	}
	if err := box.Pause(ctx, client.PauseOptions{}); err != nil {
		t.Error(err)
	}
	if err := box.Resume(ctx); client.CodeOf(err) != client.InvalidState {
		t.Errorf("resume: %v, want what the server says", err)
	}
	if err := box.SetTimeout(ctx, time.Minute); err != nil || f.timeout != time.Minute {
		t.Errorf("timeout %v, %v", f.timeout, err)
	}
	if err := box.SetNetwork(ctx, client.NetworkPolicy{Default: client.DenyByDefault}); err != nil {
		t.Error(err)
	}
	if saved, err := box.Checkpoint(ctx, "n"); saved != second || err != nil {
		t.Errorf("checkpoint %q, %v", saved, err)
	}
	if err := box.Restore(ctx, first); err != nil {
		t.Error(err)
	}
	if got, want := box.PortURL(8000), c.PortURL(boxID, 8000); got != want {
		t.Errorf("URL %q, want %q", got, want)
	}
	console, err := box.Logs(ctx, client.LogsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(console); !strings.HasPrefix(string(text), "Linux, {Follow:false ") || err != nil {
		t.Errorf("console %q, %v", text, err)
	}
	_ = console.Close()
	cancel()
	if err := box.Close(); err != nil {
		t.Errorf("close after the end of the context: %v", err)
	}
	if err := c.Open(otherID).Close(); client.CodeOf(err) != client.NotFound {
		t.Errorf("close of a sandbox that does not exist: %v", err)
	}
}

// Of a fork that fails in part the copies that run are returned, with why others do not.
func TestHandleFork(t *testing.T) {
	copies, err := serve(t, &fake{}).Open(boxID).Fork(t.Context(), client.Fork{Count: 2})
	failed, ok := errors.AsType[*client.Error](err)
	if len(copies) != 1 || copies[0].ID() != boxID || !ok || failed.Code != client.LimitExceeded || !strings.Contains(failed.Message, otherID) {
		t.Errorf("forked %v, %v", copies, err)
	}
	if copies, err := serve(t, &fake{}).Open(otherID).Fork(t.Context(), client.Fork{}); copies != nil || client.CodeOf(err) != client.NotFound {
		t.Errorf("forked %v, %v", copies, err)
	}
}

func TestHandleStream(t *testing.T) {
	box := serve(t, &fake{}).Open(boxID)
	stream, err := box.Start(t.Context(), client.Command{Cmd: "cat"}, client.StartOptions{Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if _, err := stream.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if exit, err := stream.Copy(&out, io.Discard); exit.Code != 7 || err != nil || out.String() != "hello" {
		t.Errorf("%+v, %v, %q", exit, err, out.String())
	}
	again, err := box.Attach(t.Context(), echoPID)
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}

func TestHandleFiles(t *testing.T) {
	f := &fake{}
	files := serve(t, f).Open(boxID).Files()
	ctx := t.Context()
	if err := files.As("alice").Write(ctx, "a/b", []byte("text")); err != nil || string(f.files["alice:a/b"]) != "text" {
		t.Errorf("wrote %q, %v", f.files, err)
	}
	for limit, want := range map[int64]string{4: "text", 3: ""} {
		f.read = strings.NewReader("text")
		got, err := files.Read(ctx, "x", limit)
		if string(got) != want || (err != nil) != (want == "") || err != nil && client.CodeOf(err) != client.TooLarge {
			t.Errorf("limit %d: %q, %v", limit, got, err)
		}
	}
	if entry, err := files.As("alice").Stat(ctx, "x"); err != nil || entry.Owner != "alice" {
		t.Errorf("%+v, %v", entry, err)
	}
	if _, err := files.Stat(ctx, "none"); client.CodeOf(err) != client.NotFound {
		t.Errorf("a file that does not exist: %v", err)
	}
	var listed []string
	for entry, err := range files.List(ctx, "d", 2) {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, entry.Path)
	}
	if want := []string{"d/a/a", "2"}; !slices.Equal(listed, want) {
		t.Errorf("listed %q, want %q", listed, want)
	}
	if err := errors.Join(files.Mkdir(ctx, "d"), files.Move(ctx, "a", "b"), files.Remove(ctx, "b")); err != nil {
		t.Error(err)
	}
	if err := files.Remove(ctx, "none"); client.CodeOf(err) != client.NotFound {
		t.Errorf("removed what does not exist: %v", err)
	}
	watch, err := files.As("bob").Watch(ctx, "/d", true)
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	if change, err := watch.Next(); err != nil || change.Path != "bob\n/d" {
		t.Errorf("%+v, %v", change, err)
	}
}

// TestFromEnvironment: the address and the key are those of the command line.
func TestFromEnvironment(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	for _, name := range []string{"XDG_CONFIG_HOME", "WRENN_CONFIG", "WRENN_CONTEXT", "E2B_API_URL", "E2B_API_KEY", "WRENN_API_KEY"} {
		t.Setenv(name, "")
	}
	t.Setenv("WRENN_API_URL", serve(t, &fake{}).URL())
	if _, err := client.FromEnvironment(); client.CodeOf(err) != client.InvalidRequest || !strings.Contains(err.Error(), "WRENN_API_KEY") {
		t.Errorf("without a key: %v", err)
	}
	t.Setenv("WRENN_API_KEY", key)
	c, err := client.FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	if sb, err := c.Sandbox(t.Context(), boxID); err != nil || sb.ID != boxID {
		t.Errorf("%+v, %v", sb, err)
	}
}
