package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var all = cmp.AllowUnexported(arguments{}, address{})

func TestParse(t *testing.T) {
	eth0 := address{client: [4]byte{169, 254, 0, 21}, gateway: [4]byte{169, 254, 0, 22}, mask: [4]byte{255, 255, 255, 252}, device: "eth0"}
	for _, tt := range []struct {
		name, line string
		change     func(*arguments)
	}{
		{"nothing", "", func(*arguments) {}},
		{"a guest's", "console=ttyS0 quiet root=/dev/vda rw ip=169.254.0.21::169.254.0.22:255.255.255.252:sandbox:eth0:off init=/sbin/i\n", func(a *arguments) {
			a.ip, a.init = eth0, "/sbin/i"
		}},
		{"the last wins", "root=/dev/vdb root=/dev/vdc ro rw ro", func(a *arguments) { a.root, a.readOnly = "/dev/vdc", true }},
		{"empty values", "root= init= ip=", func(*arguments) {}},
		{"after two dashes it is init's", "root=/dev/vdb -- root=/dev/vdc ro", func(a *arguments) { a.root = "/dev/vdb" }},
		{"quotes", `"root=/dev/a b" rootflags="x y" rootfstype=xfs`, func(a *arguments) {
			a.root, a.rootFlags, a.rootType = "/dev/a b", "x y", "xfs"
		}},
		{"an open quote", `root="/dev/vdb init=/x`, func(a *arguments) { a.root = "/dev/vdb init=/x" }},
		{"names that only begin so", "rootwait initcall_debug=1 ipv6.disable=1", func(*arguments) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := arguments{root: "/dev/vda", rootType: "ext4", init: "/usr/local/bin/wrenn-init"}
			tt.change(&want)
			if diff := cmp.Diff(want, parse(tt.line), all); diff != "" {
				t.Errorf("parse(%q) mismatch (-want +got):\n%s", tt.line, diff)
			}
		})
	}
}

func TestParseIP(t *testing.T) {
	for _, tt := range []struct {
		value string
		want  address
	}{
		{"10.0.0.2", address{client: [4]byte{10, 0, 0, 2}, mask: [4]byte{255, 255, 255, 0}, device: "eth0"}},
		{"10.0.0.2::10.0.0.1:255.255.0.0:h:eth1:off:1.1.1.1:8.8.8.8:",
			address{client: [4]byte{10, 0, 0, 2}, gateway: [4]byte{10, 0, 0, 1}, mask: [4]byte{255, 255, 0, 0}, device: "eth1"}},
		{"dhcp", address{}},
		{":::::eth0:dhcp", address{}},
		{"256.0.0.1", address{}},
		{"1.2.3", address{}},
		{"1.2.3.4.5", address{}},
		{"1.2.3.-4", address{}},
		{"0001.2.3.4", address{}},
		{"0.0.0.0", address{}},
	} {
		if diff := cmp.Diff(tt.want, parseIP(tt.value), all); diff != "" {
			t.Errorf("parseIP(%q) mismatch (-want +got):\n%s", tt.value, diff)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`root=/dev/vda rw ip=169.254.0.21::169.254.0.22:255.255.255.252:sandbox:eth0:off "a b" -- x`)
	f.Add("ip=:::::::::::::: init=\x00 \"")
	f.Fuzz(func(t *testing.T, line string) {
		args := parse(line)
		if args.root == "" || args.init == "" || args.rootType == "" {
			t.Errorf("parse(%q) left something empty: %+v", line, args)
		}
		if args.ip.client != [4]byte{} && args.ip.device == "" {
			t.Errorf("parse(%q): an address without a device", line)
		}
		if w := words(line); strings.Join(w, "") == "" && strings.Trim(line, " \t\n\x00\"") != "" {
			t.Errorf("words(%q) = %q", line, w)
		}
	})
}
