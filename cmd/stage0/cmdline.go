package main

import "strings"

// arguments are the parameters of the kernel's command line that stage0 uses.
type arguments struct {
	root, rootFlags, rootType, init string
	readOnly                        bool
	ip                              address
}

// address is a parsed ip= parameter. A zero client means none was given.
type address struct {
	client, gateway, mask [4]byte
	device                string
}

// parse reads a command line. As in the kernel, the last value of a parameter wins
// and words in double quotes may contain spaces.
func parse(line string) arguments {
	args := arguments{root: "/dev/vda", rootType: "ext4", init: ownPath}
	for _, word := range words(line) {
		if word == "--" {
			break // the rest is init's
		}
		key, value, ok := strings.Cut(word, "=")
		if !ok {
			args.flag(key)
			continue
		}
		if value == "" {
			continue
		}
		switch key {
		case "root":
			args.root = value
		case "rootflags":
			args.rootFlags = value
		case "rootfstype":
			args.rootType = value
		case "init":
			args.init = value
		case "ip":
			args.ip = parseIP(value)
		}
	}
	return args
}

func (a *arguments) flag(word string) {
	switch word {
	case "ro":
		a.readOnly = true
	case "rw":
		a.readOnly = false
	}
}

// words splits a line at white space outside of double quotes and removes the quotes.
func words(line string) []string {
	var list []string
	var word []byte
	inWord, quoted := false, false
	for i := range len(line) {
		c := line[i]
		blank := c == ' ' || c == '\t' || c == '\n' || c == 0
		switch {
		case c == '"':
			quoted = !quoted
			inWord = true
		case blank && !quoted:
			if inWord {
				list = append(list, string(word))
			}
			word, inWord = nil, false
		default:
			word, inWord = append(word, c), true
		}
	}
	if inWord {
		list = append(list, string(word))
	}
	return list
}

// parseIP reads client:server:gateway:netmask:hostname:device:autoconf, see the
// kernel's Documentation/admin-guide/nfs/nfsroot.rst. It supports only fixed
// addresses and returns the zero address for anything else.
func parseIP(value string) address {
	fields := strings.Split(value, ":")
	for len(fields) < 7 {
		fields = append(fields, "")
	}
	a := address{device: fields[5]}
	if a.device == "" {
		a.device = "eth0"
	}
	client, ok := parseIPv4(fields[0])
	if !ok {
		return address{}
	}
	a.client = client
	a.gateway, _ = parseIPv4(fields[2])
	if a.mask, ok = parseIPv4(fields[3]); !ok {
		a.mask = [4]byte{255, 255, 255, 0}
	}
	return a
}

func parseIPv4(text string) (ip [4]byte, ok bool) {
	parts := strings.Split(text, ".")
	if len(parts) != len(ip) {
		return ip, false
	}
	for i, part := range parts {
		n := 0
		if part == "" || len(part) > 3 {
			return [4]byte{}, false
		}
		for _, c := range []byte(part) {
			if c < '0' || c > '9' {
				return [4]byte{}, false
			}
			n = n*10 + int(c-'0')
		}
		if n > 255 {
			return [4]byte{}, false
		}
		ip[i] = byte(n)
	}
	return ip, ip != [4]byte{}
}
