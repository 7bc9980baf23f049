package gateway

import (
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"wrenn.dev"
)

// EnvdPort is where the agent of every sandbox listens.
const EnvdPort = wrenn.EnvdPort

// Headers that say where a request goes.
const (
	sandboxHeader = "E2b-Sandbox-Id"
	portHeader    = "E2b-Sandbox-Port"
)

// pathPrefix starts the form of a request for people: /p/ID/PORT/…
const pathPrefix = "/p/"

// target is a port of a sandbox.
type target struct {
	id   wrenn.SandboxID
	port uint16
	// prefix is what of the request's path names the target, "" when none of it does.
	prefix string
	// shared says that a browser may open the response as a page of the API's origin.
	shared bool
	// ingress is that of the sandbox; of no use for the agent's port.
	ingress wrenn.Ingress
}

// route finds where a request goes. ok is false when it does not name a sandbox,
// and is for the API. One that names a sandbox or a port wrongly is an error.
//
// Headers come first, then the host, then the path: as E2B's clients mean it,
// and so that a request for a sandbox's host never reaches the API, whatever its path.
func route(r *http.Request) (to target, ok bool, err error) {
	if ids := r.Header.Values(sandboxHeader); len(ids) > 0 {
		to, err = fromHeaders(ids, r.Header.Values(portHeader))
		return to, err != nil || !forAPI(r, to), err
	}
	if to, ok := fromHost(r.Host); ok {
		return to, true, nil
	}
	if strings.HasPrefix(r.URL.Path, pathPrefix) {
		to, err = fromPath(r.URL.EscapedPath())
		return to, true, err
	}
	return target{}, false, nil
}

// forAPI reports whether a request with headers for envd is for the API: E2B's SDK
// for Python sends them with its calls of the API, too, from 2.24 to 2.29 at least.
// envd has no such paths.
func forAPI(r *http.Request, to target) bool {
	return to.port == EnvdPort && (strings.HasPrefix(r.URL.Path, "/sandboxes/") || strings.HasPrefix(r.URL.Path, "/v2/sandboxes/"))
}

func fromHeaders(ids, ports []string) (target, error) {
	if len(ids) > 1 || len(ports) > 1 {
		return target{}, wrenn.Errorf(wrenn.Invalid, "%s and %s may be given once", sandboxHeader, portHeader)
	}
	port := strconv.Itoa(EnvdPort)
	if len(ports) == 1 {
		port = ports[0]
	}
	return parse(ids[0], port)
}

// fromHost reads the first label of a host name, PORT-ID or PORT-ID-ANYTHING.
// Names without such a label, and addresses, are no sandbox's.
func fromHost(host string) (target, bool) {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	label, rest, found := strings.Cut(host, ".")
	if !found || rest == "" {
		return target{}, false
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return target{}, false
	}
	port, id, found := strings.Cut(strings.ToLower(label), "-")
	if !found {
		return target{}, false
	}
	to, err := parse(id, port)
	return to, err == nil
}

// fromPath reads /p/ID/PORT, with whatever follows a slash.
func fromPath(path string) (target, error) {
	id, rest, _ := strings.Cut(strings.TrimPrefix(path, pathPrefix), "/")
	port, _, _ := strings.Cut(rest, "/")
	to, err := parse(id, port)
	to.prefix, to.shared = pathPrefix+id+"/"+port, true
	return to, err
}

// parse reads an id, from which what follows a hyphen is cut, and a port.
func parse(id, port string) (target, error) {
	id, _, _ = strings.Cut(id, "-") // older clients add the id of a client
	parsed, err := wrenn.ParseSandboxID(id)
	if err != nil {
		return target{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || port[0] == '+' {
		return target{}, wrenn.Errorf(wrenn.Invalid, "a port is a number from 1 to 65535")
	}
	return target{id: parsed, port: uint16(n)}, nil
}
