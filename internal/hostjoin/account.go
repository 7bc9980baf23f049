package hostjoin

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"wrenn.dev"
)

// MaxAccountToken bounds the token of a service account of Kubernetes, in bytes.
const MaxAccountToken = 8192

// Node is a node of Kubernetes.
type Node struct {
	Name string
	Host wrenn.HostID // from the node's UID: a node that is registered again is another host
}

var (
	nodeName = regexp.MustCompile(`^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$`)
	nodeUID  = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
)

// NewNode returns the node with that name and UID, or an Invalid error.
func NewNode(name, uid string) (Node, error) {
	if !nodeName.MatchString(name) || !nodeUID.MatchString(uid) {
		return Node{}, wrenn.Errorf(wrenn.Invalid, "%.64q with the UID %.64q is no node of Kubernetes", name, uid)
	}
	return Node{Name: name, Host: wrenn.HostID(nodePrefix + uid)}, nil
}

const nodePrefix = "k8s-" // of the ids of hosts that are nodes

// IsNode reports whether a host is a node of Kubernetes, by its id.
func IsNode(id wrenn.HostID) bool {
	uid, ok := strings.CutPrefix(string(id), nodePrefix)
	return ok && nodeUID.MatchString(uid)
}

// IsAccountToken reports whether text looks like the token of a service account of
// Kubernetes, and not like a Token.
func IsAccountToken(text string) bool {
	return strings.HasPrefix(text, "eyJ") && strings.Count(text, ".") == 2
}

// maxTokenFile bounds what is read of a file with a token, in bytes.
const maxTokenFile = 64 << 10

// ReadToken returns the token in a file, such as the one that Kubernetes projects into a
// pod, without the space around it.
func ReadToken(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxTokenFile))
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// NodeOf returns the node that the token of a service account names. The signature is
// not checked: it is for the owner of the token.
func NodeOf(token string) (Node, error) {
	invalid := wrenn.Errorf(wrenn.Invalid, "the token is not one that Kubernetes projects into a pod")
	if !IsAccountToken(token) || len(token) > MaxAccountToken {
		return Node{}, invalid
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		return Node{}, invalid
	}
	var claims struct {
		Kubernetes struct {
			Node *struct{ Name, UID string }
		} `json:"kubernetes.io"`
	}
	if err := json.Unmarshal(raw, &claims); err != nil {
		return Node{}, invalid
	}
	if claims.Kubernetes.Node == nil {
		return Node{}, wrenn.Errorf(wrenn.Invalid, "the token names no node: use the one that Kubernetes, 1.32 or newer, projects into the pod")
	}
	return NewNode(claims.Kubernetes.Node.Name, claims.Kubernetes.Node.UID)
}
