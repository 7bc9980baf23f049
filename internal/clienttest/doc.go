// Package clienttest has the tests of the Go SDK against the real API. They are not in
// the SDK's module, wrenn.dev/client, which depends on nothing of this one.
package clienttest
