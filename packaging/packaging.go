// Package packaging has the files that make Wrenn a service of systemd. A package of the
// distribution installs them in their places; wrenn up --install does so without one.
package packaging

import _ "embed" // the files

// Unit is wrenn.service, which runs /usr/bin/wrenn up with Settings.
//
//go:embed wrenn.service
var Unit string

// Slice is wrenn.slice, which the unit is in.
//
//go:embed wrenn.slice
var Slice string

// Settings are the defaults of /etc/wrenn/up.toml.
//
//go:embed up.toml
var Settings string
