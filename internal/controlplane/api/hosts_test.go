package api

import (
	"context"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/service"
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

func (s *stub) DrainHost(_ context.Context, c service.Caller, id wrenn.HostID) (*service.HostState, error) {
	h, err := s.findHost(c, id, wrenn.HostDraining)
	if err != nil {
		return nil, err
	}
	h.Drain = &postgres.Drained{Left: 3, Moving: 1, Stuck: []postgres.NotMoved{{ID: testID, Reason: "it has a volume"}}}
	return h, nil
}

func (s *stub) RemoveHost(_ context.Context, c service.Caller, id wrenn.HostID) (*service.HostState, error) {
	return s.findHost(c, id, wrenn.HostRemoved)
}

func (s *stub) LoseHost(_ context.Context, c service.Caller, id wrenn.HostID) (*service.HostState, error) {
	return s.findHost(c, id, wrenn.HostLost)
}

func (s *stub) ExplainPlacement(_ context.Context, c service.Caller, id wrenn.SandboxID) (*service.Placement, error) {
	sb, err := s.find(c, id)
	if err != nil {
		return nil, err
	}
	found := *sb
	found.Host, found.Requires = "h2", map[string]string{"zone": "a"}
	return &service.Placement{
		Sandbox: &found, Decisions: []service.Decision{{At: testTime, Host: "h2", Actor: "system", Reason: "best"}},
		Hosts: []service.HostVerdict{{Host: "h2", Here: true, Fits: true, Reason: "has the sandbox", Cost: -4}, {Host: "h3", Reason: "is full"}},
	}, nil
}

func (s *stub) CreateHostToken(_ context.Context, c service.Caller, want service.NewHostToken) (*service.HostToken, error) {
	_, err := s.find(c, testID)
	return &service.HostToken{Token: "wrenn-join.h2.x.y", Host: want.Host, ExpiresAt: testTime.Add(want.TTL)}, err
}

func (s *stub) issue(good bool, url string) (*service.HostCertificate, error) {
	if s.fail != nil {
		return nil, s.fail
	}
	if !good || url != "https://10.0.0.2:49980" {
		return nil, wrenn.Errorf(wrenn.Unauthenticated, "not the right one")
	}
	return &service.HostCertificate{Host: "h2", Certificate: []byte("C"), Authority: []byte("A"), Until: testTime, Now: testTime}, nil
}

func (s *stub) JoinHost(_ context.Context, req service.JoinHost) (*service.HostCertificate, error) {
	return s.issue(req.Token == "t" && req.CSR == "r" && req.Name == "rack 3", req.URL)
}

func (s *stub) RenewHost(_ context.Context, req service.RenewHost) (*service.HostCertificate, error) {
	return s.issue(req.Certificate == "c" && req.CSR == "r" && string(req.Proof) == "proof", req.URL)
}

// joinCalls are those of hosts that join and renew, without a key.
func joinCalls() map[string][]call {
	const token, joins, renewals = "/v1/host-tokens", "/v1/host-joins", "/v1/host-renewals"
	const url = `"url":"https://10.0.0.2:49980"`
	const issued = `{"host":"h2","certificate":"C","authority":"A","certificate_until":"2026-01-02T15:04:05Z","now":"2026-01-02T15:04:05Z"}`
	full := &stub{fail: wrenn.Errorf(wrenn.Exhausted, "too many")}
	return map[string][]call{
		"createHostToken": append(jsonCalls(token),
			call{name: "ok", method: "POST", path: token, body: `{"host":"h2","ttl_sec":600}`, status: 201, want: `{"token":"wrenn-join.h2.x.y","host":"h2","expires_at":"2026-01-02T15:14:05Z"}`},
			call{name: "bad id", method: "POST", path: token, body: `{"host":"H2"}`, status: 400, code: "invalid_request"},
			call{name: "long life", method: "POST", path: token, body: `{"ttl_sec":1000000}`, status: 400, code: "invalid_request"},
			call{name: "no authority", service: &stub{fail: wrenn.Errorf(wrenn.FailedPrecondition, "none")}, method: "POST", path: token, body: `{}`, status: 409, code: "invalid_state"},
			call{name: "not an operator", method: "POST", path: token, body: `{}`, key: readerKey, status: 403, code: "forbidden"},
			call{name: "no key", method: "POST", path: token, body: `{}`, key: "-", status: 401, code: "unauthorized"},
		),
		"joinHost": append(jsonCalls(joins),
			call{name: "ok", method: "POST", path: joins, key: "-", body: `{"token":"t","csr":"r","name":"rack 3",` + url + `}`, status: 200, want: issued},
			call{name: "another token", method: "POST", path: joins, key: "-", body: `{"token":"x","csr":"r",` + url + `}`, status: 401, code: "unauthorized"},
			call{name: "long", method: "POST", path: joins, key: "-", body: `{"token":"` + strings.Repeat("t", 8193) + `","csr":"r",` + url + `}`, status: 400, code: "invalid_request"},
			call{name: "many", service: full, method: "POST", path: joins, key: "-", body: `{"token":"t","csr":"r",` + url + `}`, status: 429, code: "limit_exceeded"},
		),
		"renewHost": append(jsonCalls(renewals),
			call{name: "ok", method: "POST", path: renewals, key: "-", body: `{"certificate":"c","csr":"r","signature":"cHJvb2Y=",` + url + `}`, status: 200, want: issued},
			call{name: "no base64", method: "POST", path: renewals, key: "-", body: `{"certificate":"c","csr":"r","signature":"!",` + url + `}`, status: 400, code: "invalid_request"},
			call{name: "another key", method: "POST", path: renewals, key: "-", body: `{"certificate":"c","csr":"r","signature":"cHJvbw==",` + url + `}`, status: 401, code: "unauthorized"},
			call{
				name: "removed", service: &stub{fail: wrenn.Errorf(wrenn.PermissionDenied, "removed")}, method: "POST", path: renewals, key: "-",
				body: `{"certificate":"c","csr":"r","signature":"cHJvb2Y=",` + url + `}`, status: 403, code: "forbidden",
			},
		),
	}
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
	with := func(status string) string { return strings.Replace(hostJSON, "active", status, 1) }
	return map[string][]call{
		"listHosts": {
			{name: "ok", method: "GET", path: "/v1/hosts", status: 200, want: "[" + hostJSON + "]"},
			{name: "no key", method: "GET", path: "/v1/hosts", key: "-", status: 401, code: "unauthorized"},
			{name: "not an operator", method: "GET", path: "/v1/hosts", key: readerKey, status: 403, code: "forbidden"},
		},
		"getHost": append(hostFailures("GET", "")[:5], ok("GET", "", hostJSON)),
		"explainPlacement": {
			{name: "ok", method: "GET", path: "/v1/sandboxes/" + testID + "/placement", status: 200, want: `{"sandbox":"` + testID + `","status":"running","host":"h2","requires":{"zone":"a"},
				"decisions":[{"at":"2026-01-02T15:04:05Z","host":"h2","actor":"system","reason":"best"}],
				"hosts":[{"host":"h2","here":true,"fits":true,"reason":"has the sandbox","cost":-4},{"host":"h3","here":false,"fits":false,"reason":"is full"}]}`},
			{name: "no key", method: "GET", path: "/v1/sandboxes/" + testID + "/placement", key: "-", status: 401, code: "unauthorized"},
			{name: "not an operator", method: "GET", path: "/v1/sandboxes/" + testID + "/placement", key: readerKey, status: 403, code: "forbidden"},
			{name: "missing", method: "GET", path: "/v1/sandboxes/ixxxxxxxxxxxxxxxxxxxx/placement", status: 404, code: "not_found"},
		},
		"cordonHost": append(hostFailures("POST", "/cordon"), ok("POST", "/cordon", with("cordoned"))),
		"drainHost": append(hostFailures("POST", "/drain"), ok("POST", "/drain", strings.TrimSuffix(with("draining"), "}")+
			`,"drain":{"left":3,"moving":1,"not_moved":[{"sandbox":"`+testID+`","reason":"it has a volume"}]}}`)),
		"removeHost":   append(hostFailures("POST", "/remove"), ok("POST", "/remove", with("removed"))),
		"loseHost":     append(hostFailures("POST", "/lose"), ok("POST", "/lose", with("lost"))),
		"uncordonHost": append(hostFailures("POST", "/uncordon"), ok("POST", "/uncordon", hostJSON)),
	}
}
