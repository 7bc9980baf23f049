package wire_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/wire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// all is every code of error.go; the type is closed, the test is not generated.
var all = []wrenn.Code{
	wrenn.Invalid, wrenn.NotFound, wrenn.AlreadyExists, wrenn.FailedPrecondition, wrenn.Exhausted, wrenn.PermissionDenied,
	wrenn.Unauthenticated, wrenn.Unavailable, wrenn.DeadlineExceeded, wrenn.Canceled, wrenn.Internal,
}

// own are the codes that Connect does not have, and what older peers read.
var own = map[wrenn.Code]connect.Code{
	wrenn.NoSpace: connect.CodeResourceExhausted, wrenn.GuestFailed: connect.CodeFailedPrecondition, wrenn.CutByPause: connect.CodeFailedPrecondition, wrenn.NotResponding: connect.CodeUnavailable,
}

func TestCodesHaveTheNamesOfConnectAndComeBack(t *testing.T) {
	for _, code := range all {
		err := wire.ToConnect(fmt.Errorf("around: %w", wrenn.Errorf(code, "what to do")))
		if got := connect.CodeOf(err); got.String() != string(code) {
			t.Errorf("%s goes out as %s", code, got)
		}
		if got := wire.Code(connect.CodeOf(err)); got != code {
			t.Errorf("%s comes back as %s", code, got)
		}
	}
	for code, older := range own {
		err := wire.ToConnect(wrenn.Errorf(code, "what to do"))
		if got := connect.CodeOf(err); got != older {
			t.Errorf("%s goes out as %s, want %s", code, got, older)
		}
	}
	for c := connect.CodeCanceled; c <= connect.CodeUnauthenticated; c++ {
		if wire.Code(c) == "" {
			t.Errorf("%s has no code", c)
		}
	}
}

func TestResultsComeBack(t *testing.T) {
	if err := wire.FromResult(wire.ToResult(nil)); err != nil {
		t.Errorf("nothing is %v", err)
	}
	for _, code := range slices.Concat(all, slices.Collect(maps.Keys(own))) {
		err := wire.FromResult(wire.ToResult(&wrenn.Error{Code: code, Message: "what to do", Err: errors.New("/secret/path")}))
		if wrenn.CodeOf(err) != code || err.Error() != "what to do" {
			t.Errorf("%s comes back as %v", code, err)
		}
	}
	if err := wire.FromResult("a_newer_code", "what to do"); wrenn.CodeOf(err) != wrenn.Internal {
		t.Errorf("an unknown code is %v", err)
	}
}

// TestErrorsComeBack has every code go over a connection.
func TestErrorsComeBack(t *testing.T) {
	var code wrenn.Code
	server := httptest.NewServer(connect.NewUnaryHandler("/x", func(context.Context, *connect.Request[pb.PingRequest]) (*connect.Response[pb.PingResponse], error) {
		return nil, wire.ToConnect(wrenn.Errorf(code, "what to do"))
	}))
	defer server.Close()
	client := connect.NewClient[pb.PingRequest, pb.PingResponse](server.Client(), server.URL+"/x")
	for _, code = range slices.Concat(all, slices.Collect(maps.Keys(own))) {
		_, err := client.CallUnary(t.Context(), connect.NewRequest(&pb.PingRequest{}))
		if got := wire.FromConnect("host h1", err); wrenn.CodeOf(got) != code || got.Error() != "what to do" {
			t.Errorf("%s comes back as %s: %v", code, wrenn.CodeOf(got), got)
		}
	}
}

func TestToConnectKeepsCauses(t *testing.T) {
	for name, err := range map[string]error{
		"of an Error": &wrenn.Error{Code: wrenn.NotFound, Message: "no such sandbox", Err: errors.New("/secret/path")},
		"bare":        errors.New("/secret/path"),
	} {
		if got := wire.ToConnect(err).Error(); strings.Contains(got, "secret") {
			t.Errorf("%s: %q tells the cause", name, got)
		}
	}
}

func TestFromConnect(t *testing.T) {
	for name, c := range map[string]struct {
		in   error
		want wrenn.Code
	}{
		"the connection broke":     {connect.NewError(connect.CodeUnavailable, errors.New("dial tcp: refused")), wrenn.Unavailable},
		"it broke in a frame":      {connect.NewError(connect.CodeInternal, errors.New("incomplete envelope")), wrenn.Unavailable},
		"the answer is too large":  {connect.NewError(connect.CodeResourceExhausted, errors.New("message size 5 is larger than 4")), wrenn.Exhausted},
		"no error of connect":      {errors.New("EOF"), wrenn.Unavailable},
		"the caller went":          {connect.NewError(connect.CodeCanceled, context.Canceled), wrenn.Canceled},
		"time was up":              {connect.NewError(connect.CodeDeadlineExceeded, context.DeadlineExceeded), wrenn.DeadlineExceeded},
		"one of ours is untouched": {wrenn.Errorf(wrenn.Exhausted, "full"), wrenn.Exhausted},
	} {
		t.Run(name, func(t *testing.T) {
			err := wire.FromConnect("host h1", c.in)
			if got := wrenn.CodeOf(err); got != c.want {
				t.Errorf("got %s (%v), want %s", got, err, c.want)
			}
		})
	}
	if wire.FromConnect("host", nil) != nil || wire.ToConnect(nil) != nil {
		t.Error("no error became one")
	}
}
