package api

import (
	"context"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/service"
)

const (
	testVolume = wrenn.VolumeID("vgggggggggggggggggggg")
	volumeJSON = `{"id":"` + string(testVolume) + `","name":"data","size_mib":64,"created_at":"2026-01-02T15:04:05Z"}`
)

// findVolume is find for the name of a volume.
func (s *stub) findVolume(c service.Caller, name string) error {
	if _, err := s.find(c, testID); err != nil {
		return err
	}
	if name != "data" {
		return wrenn.Errorf(wrenn.NotFound, "there is no volume %s", name)
	}
	return nil
}

func (s *stub) CreateVolume(_ context.Context, c service.Caller, req service.CreateVolume) (*wrenn.Volume, error) {
	_, err := s.find(c, testID) // a new one may have any name
	return &wrenn.Volume{ID: testVolume, Name: req.Name, SizeMiB: req.SizeMiB, CreatedAt: testTime}, err
}

func (s *stub) ListVolumes(_ context.Context, c service.Caller) ([]wrenn.Volume, error) {
	return []wrenn.Volume{{ID: testVolume, Name: "data", SizeMiB: 64, CreatedAt: testTime}}, s.findVolume(c, "data")
}

func (s *stub) Volume(_ context.Context, c service.Caller, name string) (*wrenn.Volume, error) {
	return &wrenn.Volume{ID: testVolume, Name: name, SizeMiB: 64, CreatedAt: testTime}, s.findVolume(c, name)
}

func (s *stub) DeleteVolume(_ context.Context, c service.Caller, name string) error {
	return s.findVolume(c, name)
}

func volumeFailures(method string) []call {
	const path = "/v1/volumes/data"
	return []call{
		{name: "missing", method: method, path: "/v1/volumes/other", status: 404, code: "not_found"},
		{name: "no name", method: method, path: "/v1/volumes/a%20b", status: 404, code: "not_found"},
		{name: "traversal", method: method, path: "/v1/volumes/..%2Fx", status: 404, code: "not_found"},
		{name: "no key", method: method, path: path, key: "-", status: 401, code: "unauthorized"},
		{name: "away", service: &stub{fail: wrenn.Errorf(wrenn.Unavailable, "away")}, method: method, path: path, status: 503, code: "unavailable"},
	}
}

func volumeCalls() map[string][]call {
	const all, one = "/v1/volumes", "/v1/volumes/data"
	return map[string][]call{
		"createVolume": {
			{name: "ok", method: "POST", path: all, body: `{"name":"data","size_mib":64}`, status: 201, want: volumeJSON, check: func(t *testing.T, _ *stub, resp *http.Response) {
				t.Helper()
				if diff := cmp.Diff(one, resp.Header.Get("Location")); diff != "" {
					t.Errorf("Location (-want +got):\n%s", diff)
				}
			}},
			{name: "no name", method: "POST", path: all, body: `{}`, status: 400, code: "invalid_request"},
			{name: "wrong name", method: "POST", path: all, body: `{"name":"a/b"}`, status: 400, code: "invalid_request"},
			{name: "too small", method: "POST", path: all, body: `{"name":"data","size_mib":1}`, status: 400, code: "invalid_request"},
			{name: "taken", service: &stub{fail: wrenn.Errorf(wrenn.AlreadyExists, "exists")}, method: "POST", path: all, body: `{"name":"data"}`, status: 409, code: "conflict"},
			{name: "limit", service: &stub{fail: wrenn.Errorf(wrenn.Exhausted, "no more")}, method: "POST", path: all, body: `{"name":"data"}`, status: 429, code: "limit_exceeded"},
			{name: "no key", method: "POST", path: all, body: `{"name":"data"}`, key: "-", status: 401, code: "unauthorized"},
		},
		"listVolumes": {
			{name: "ok", method: "GET", path: all, status: 200, want: `[` + volumeJSON + `]`},
			{name: "no key", method: "GET", path: all, key: "-", status: 401, code: "unauthorized"},
		},
		"getVolume": append(volumeFailures("GET"), call{name: "ok", method: "GET", path: one, status: 200, want: volumeJSON}),
		"deleteVolume": append(volumeFailures("DELETE"), call{name: "ok", method: "DELETE", path: one, status: 204},
			call{name: "in use", service: &stub{fail: wrenn.Errorf(wrenn.FailedPrecondition, "a sandbox has it")}, method: "DELETE", path: one, status: 409, code: "invalid_state"}),
	}
}
