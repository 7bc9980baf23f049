// Package api holds the contracts of the public surface: the files that a
// server enforces and serves, and that clients are made from.
package api

import _ "embed"

// V1 is openapi.yaml, the contract of /v1.
//
//go:embed openapi.yaml
var V1 []byte

// E2B is e2b.yaml, the contract of the E2B-compatible surface.
//
//go:embed e2b.yaml
var E2B []byte
