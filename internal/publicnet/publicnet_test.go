package publicnet_test

import (
	"net/netip"
	"testing"

	"wrenn.dev/internal/publicnet"
)

func TestIsClosed(t *testing.T) {
	for addr, want := range map[string]bool{
		"8.8.8.8": false, "2606:4700::1111": false,
		"10.0.0.1": true, "168.63.129.16": true, "192.0.0.8": true, "100.64.0.1": true, "255.255.255.255": true,
		"::ffff:10.0.0.1": true, "::1": true, "fe80::1%eth0": true, "64:ff9b::a00:1": true, "2002:a00:1::": true, "fd00::1": true,
	} {
		if got := publicnet.IsClosed(netip.MustParseAddr(addr)); got != want {
			t.Errorf("IsClosed(%s) = %t", addr, got)
		}
	}
}

func TestIsPublic(t *testing.T) {
	closed := []netip.Prefix{netip.MustParsePrefix("8.8.8.0/24")}
	for addr, want := range map[string]bool{"1.1.1.1": true, "8.8.8.8": false, "::ffff:8.8.8.8": false, "10.0.0.1": false, "127.0.0.1": false} {
		if got, err := publicnet.IsPublic(netip.MustParseAddr(addr), closed); err != nil || got != want {
			t.Errorf("IsPublic(%s) = %t, %v", addr, got, err)
		}
	}
}

func TestIsOwn(t *testing.T) {
	for addr, want := range map[string]bool{"127.0.0.1": true, "::ffff:127.0.0.1": true, "8.8.8.8": false} {
		if got, err := publicnet.IsOwn(netip.MustParseAddr(addr)); err != nil || got != want {
			t.Errorf("IsOwn(%s) = %t, %v", addr, got, err)
		}
	}
}
