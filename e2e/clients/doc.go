// Package clients tests that clients which generators make from the served contract
// work with a whole control plane. Its guests are processes of this machine.
package clients
