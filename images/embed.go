// Package images holds what every guest image gets: the settings of
// its programs, and how a fresh Debian becomes a guest.
package images

import _ "embed"

// The files, as they are in this directory.
var (
	// ChronyPTP is /etc/chrony/chrony.conf: the hypervisor's clock.
	//go:embed chrony-ptp.conf
	ChronyPTP []byte
	// ChronyNTP is /etc/chrony/wrenn-ntp.conf: the host agent's clock, where the hypervisor has none.
	//go:embed chrony-ntp.conf
	ChronyNTP []byte
	// Customize turns a fresh Debian tree into a guest's.
	//go:embed customize.sh
	Customize []byte
	// Packages lists what is installed beyond Debian's minimal base; # starts a comment.
	//go:embed packages.txt
	Packages string
)
