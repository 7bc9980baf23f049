package hostjoin

import (
	"encoding/base64"
	"strings"
	"testing"

	"wrenn.dev"
)

func accountToken(claims string) string {
	return "eyJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
}

func TestNodeOf(t *testing.T) {
	const uid = "1f0c9d3e-7a52-4b1e-9c88-3f2a6b7c8d9e"
	token := accountToken(`{"aud":["wrenn-join"],"kubernetes.io":{"namespace":"wrenn","node":{"name":"node1","uid":"` + uid + `"},"pod":{"name":"p","uid":"u"}}}`)
	node, err := NodeOf(token)
	if err != nil || node.Name != "node1" || node.Host != "k8s-"+uid || !IsAccountToken(token) {
		t.Errorf("node %+v, %v", node, err)
	}
	if id, err := wrenn.ParseHostID(string(node.Host)); err != nil || id != node.Host {
		t.Errorf("the host id is not one: %v", err)
	}
	for id, want := range map[wrenn.HostID]bool{node.Host: true, "k8s-": false, "k8s-h2": false, "h2": false, uid: false} {
		if IsNode(id) != want {
			t.Errorf("host %s: a node is %v", id, !want)
		}
	}
	if IsAccountToken(NewToken("h2", "a").String()) {
		t.Error("a token of this fleet is taken for Kubernetes'")
	}
	for name, text := range map[string]string{
		"a token of a fleet": NewToken("h2", "a").String(),
		"no base64":          "eyJ.!.x",
		"no JSON":            accountToken("x"),
		"no node":            accountToken(`{"kubernetes.io":{"namespace":"wrenn"}}`),
		"no claims":          accountToken(`{}`),
		"an odd UID":         accountToken(`{"kubernetes.io":{"node":{"name":"node1","uid":"x"}}}`),
		"an odd name":        accountToken(`{"kubernetes.io":{"node":{"name":"node/1","uid":"` + uid + `"}}}`),
		"a long one":         accountToken(`{"x":"` + strings.Repeat("x", MaxAccountToken) + `"}`),
	} {
		if _, err := NodeOf(text); wrenn.CodeOf(err) != wrenn.Invalid || strings.Contains(err.Error(), "c2ln") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
