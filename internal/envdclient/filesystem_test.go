package envdclient

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/proto/gen/envd/filesystem"
)

// TestHostileEntries: what a guest says of a file fits into the contract of the API.
func TestHostileEntries(t *testing.T) {
	epoch := time.Unix(0, 0).UTC()
	target := "/x"
	for name, tc := range map[string]struct {
		says *filesystem.EntryInfo
		want wrenn.FileEntry
	}{
		"file": {
			&filesystem.EntryInfo{Path: "/a", Type: filesystem.FileType_FILE_TYPE_FILE, Size: 3, Mode: 0o640, Owner: "o", Group: "g", ModifiedTime: timestamppb.New(time.Unix(9, 0))},
			wrenn.FileEntry{Path: "/a", Type: wrenn.RegularFile, Size: 3, Mode: 0o640, Owner: "o", Group: "g", ModifiedAt: time.Unix(9, 0).UTC()},
		},
		"link to a directory": {
			&filesystem.EntryInfo{Type: filesystem.FileType_FILE_TYPE_DIRECTORY, SymlinkTarget: &target},
			wrenn.FileEntry{Type: wrenn.Symlink, Target: "/x", ModifiedAt: epoch},
		},
		"impossible": {
			&filesystem.EntryInfo{Type: 99, Size: -1, Mode: 1 << 31, ModifiedTime: &timestamppb.Timestamp{Seconds: 1 << 60}},
			wrenn.FileEntry{Type: wrenn.OtherFile, ModifiedAt: epoch},
		},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := proto.Marshal(&filesystem.StatResponse{Entry: tc.says})
			testkit.Must(t, err)
			c := newImpostor(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
				_, _ = w.Write(raw) // the client may have hung up
			})
			got, err := c.Stat(t.Context(), "", "/a")
			testkit.Must(t, err)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("entry (-want +got):\n%s", diff)
			}
		})
	}
}

// TestErrorsOfFileCalls: a guest's code means what it can mean for the call.
func TestErrorsOfFileCalls(t *testing.T) {
	say := connect.CodeAlreadyExists
	c := newImpostor(t, func(w http.ResponseWriter, _ *http.Request) {
		raw, _ := json.Marshal(map[string]string{"code": say.String(), "message": "so"}) // of strings: it cannot fail
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusConflict)
		_, _ = w.Write(raw) // the client may have hung up
	})
	for code, want := range map[connect.Code][2]wrenn.Code{ // of a call that changes files, and of one that does not
		connect.CodeAlreadyExists:      {wrenn.AlreadyExists, wrenn.GuestFailed},
		connect.CodeResourceExhausted:  {wrenn.NoSpace, wrenn.GuestFailed},
		connect.CodeNotFound:           {wrenn.NotFound, wrenn.NotFound},
		connect.CodeUnauthenticated:    {wrenn.Invalid, wrenn.Invalid},
		connect.CodeUnavailable:        {wrenn.GuestFailed, wrenn.GuestFailed},
		connect.CodeFailedPrecondition: {wrenn.GuestFailed, wrenn.GuestFailed},
	} {
		say = code
		_, made := c.MakeDir(t.Context(), "", "/a")
		_, moved := c.Move(t.Context(), "", "/a", "/b")
		for _, err := range []error{made, moved, c.Remove(t.Context(), "", "/a")} {
			if wrenn.CodeOf(err) != want[0] || !strings.HasSuffix(err.Error(), ": so") {
				t.Errorf("%s: a change failed with %v, want %s", code, err, want[0])
			}
		}
		_, listed := c.ListDir(t.Context(), "", "/a", 1)
		_, processes := c.Processes(t.Context())
		for _, err := range []error{listed, processes} {
			if wrenn.CodeOf(err) != want[1] {
				t.Errorf("%s: a look failed with %v, want %s", code, err, want[1])
			}
		}
	}
}

// TestEmptyAnswers: a guest that describes nothing breaks the protocol.
func TestEmptyAnswers(t *testing.T) {
	c := newImpostor(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		if strings.HasSuffix(r.URL.Path, "/WatchDir") {
			_, _ = w.Write(envelope(2, []byte("{}"))) // the client may have hung up
		}
	})
	_, stat := c.Stat(t.Context(), "", "/a")
	_, watch := c.WatchDir(t.Context(), "", "/a", false)
	for _, err := range []error{stat, watch} {
		if wrenn.CodeOf(err) != wrenn.GuestFailed {
			t.Errorf("got %v, want %s", err, wrenn.GuestFailed)
		}
	}
	if list, err := c.ListDir(t.Context(), "", "/a", 1); err != nil || len(list) != 0 {
		t.Errorf("ListDir() = %v, %v", list, err)
	}
}

// TestLargeListsAreRefused: a list takes a bounded part of the memory.
func TestLargeListsAreRefused(t *testing.T) {
	big := strings.Repeat("x", 1<<20)
	list := &filesystem.ListDirResponse{}
	for range maxList>>20 + 1 {
		list.Entries = append(list.Entries, &filesystem.EntryInfo{Path: big})
	}
	raw, err := proto.Marshal(list)
	testkit.Must(t, err)
	c := newImpostor(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		_, _ = w.Write(raw) // the client hangs up
	})
	if got, err := c.ListDir(t.Context(), "", "/", 1); err == nil || wrenn.CodeOf(err) != wrenn.GuestFailed {
		t.Errorf("ListDir() = %d entries, %v", len(got), err)
	}
}
