package api

import (
	"context"
	"strings"

	"wrenn"
	"wrenn/internal/controlplane/service"
)

const hostJSON = `{"id":"h2","name":"rack 3","url":"https://10.0.0.2:49980","zone":"a","labels":{},"status":"active","joined":true,"reachable":true,"version":"v1","driver":"qemu",
	"capacity":{"sandboxes":9,"sandboxes_used":1,"memory_mb":8,"memory_mb_used":2,"disk_mb":7,"disk_free_mb":3,"disks_mb":6,"disks_mb_used":4},
	"created_at":"2026-01-02T15:04:05Z","last_seen_at":"2026-01-02T15:04:05Z"}`

func (s *stub) findHost(c service.Caller, id wrenn.HostID, status wrenn.HostStatus) (*service.HostState, error) {
	if _, err := s.find(c, testID); err != nil {
		return nil, err
	}
	if id != "h2" {
		return nil, wrenn.Errorf(wrenn.NotFound, "there is no host %s", id)
	}
	return &service.HostState{Reachable: true, HostRecord: wrenn.HostRecord{
		ID: id, Name: "rack 3", URL: "https://10.0.0.2:49980", Zone: "a", Status: status, Joined: true, CreatedAt: testTime, SeenAt: testTime,
		Info: wrenn.HostInfo{Version: "v1", Driver: "qemu", Capacity: wrenn.Capacity{
			Sandboxes: 9, SandboxesUsed: 1, MemoryMiB: 8, MemoryMiBUsed: 2, DiskMiB: 7, DiskMiBFree: 3, DisksMiB: 6, DisksMiBUsed: 4,
		}},
	}}, nil
}

func (s *stub) ListHosts(_ context.Context, c service.Caller) ([]service.HostState, error) {
	one, err := s.findHost(c, "h2", wrenn.HostActive)
	if err != nil {
		return nil, err
	}
	return []service.HostState{*one}, nil
}

func (s *stub) Host(_ context.Context, c service.Caller, id wrenn.HostID) (*service.HostState, error) {
	return s.findHost(c, id, wrenn.HostActive)
}

func (s *stub) CordonHost(_ context.Context, c service.Caller, id wrenn.HostID) (*service.HostState, error) {
	return s.findHost(c, id, wrenn.HostCordoned)
}

func (s *stub) UncordonHost(_ context.Context, c service.Caller, id wrenn.HostID) (*service.HostState, error) {
	return s.findHost(c, id, wrenn.HostActive)
}

// hostFailures are errors that every operation on a host answers in the same way.
func hostFailures(method, action string) []call {
	const path = "/v1/hosts/"
	return []call{
		{name: "missing", method: method, path: path + "h3" + action, status: 404, code: "not_found"},
		{name: "no id", method: method, path: path + "H2%00" + action, status: 404, code: "not_found"},
		{name: "traversal", method: method, path: path + "..%2Fx" + action, status: 404, code: "not_found"},
		{name: "no key", method: method, path: path + "h2" + action, key: "-", status: 401, code: "unauthorized"},
		{name: "not an operator", method: method, path: path + "h2" + action, key: readerKey, status: 403, code: "forbidden"},
		{name: "state", service: &stub{fail: wrenn.Errorf(wrenn.FailedPrecondition, "removed")}, method: method, path: path + "h2" + action, status: 409, code: "invalid_state"},
		{name: "away", service: &stub{fail: wrenn.Errorf(wrenn.Unavailable, "away")}, method: method, path: path + "h2" + action, status: 503, code: "unavailable"},
	}
}

func hostCalls() map[string][]call {
	ok := func(method, action, want string) call {
		return call{name: "ok", method: method, path: "/v1/hosts/h2" + action, status: 200, want: want}
	}
	cordoned := strings.Replace(hostJSON, "active", "cordoned", 1)
	return map[string][]call{
		"listHosts": {
			{name: "ok", method: "GET", path: "/v1/hosts", status: 200, want: "[" + hostJSON + "]"},
			{name: "no key", method: "GET", path: "/v1/hosts", key: "-", status: 401, code: "unauthorized"},
			{name: "not an operator", method: "GET", path: "/v1/hosts", key: readerKey, status: 403, code: "forbidden"},
		},
		"getHost":      append(hostFailures("GET", "")[:5], ok("GET", "", hostJSON)),
		"cordonHost":   append(hostFailures("POST", "/cordon"), ok("POST", "/cordon", cordoned)),
		"uncordonHost": append(hostFailures("POST", "/uncordon"), ok("POST", "/uncordon", hostJSON)),
	}
}
