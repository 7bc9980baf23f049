package wrenn

import (
	"strings"
	"testing"
)

func TestIngress(t *testing.T) {
	for _, host := range []string{"", "localhost", "localhost:${PORT}", "${PORT}.example.com", "10.0.0.1:80", "[::1]:${PORT}", "example.com:1"} {
		if err := (Ingress{MaskHost: host}).Check(); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	for name, i := range map[string]Ingress{
		"two lines": {MaskHost: "a\r\nX: y"}, "path": {MaskHost: "a/b"}, "port": {MaskHost: "a:b"}, "user": {MaskHost: "a@b"}, "long": {MaskHost: strings.Repeat("a.", 200)},
		"port 0": {HTTPSPorts: []uint16{0}}, "the agent's": {HTTPSPorts: []uint16{80, EnvdPort}}, "many": {HTTPSPorts: make([]uint16, MaxHTTPSPorts+1)},
	} {
		if err := i.Check(); CodeOf(err) != Invalid {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
	i := Ingress{MaskHost: "localhost:${PORT}", HTTPSPorts: []uint16{443}}
	if i.Host(8080) != "localhost:8080" || !i.HTTPS(443) || i.HTTPS(80) || i.IsZero() || !(Ingress{}).IsZero() {
		t.Errorf("%+v", i)
	}
}
