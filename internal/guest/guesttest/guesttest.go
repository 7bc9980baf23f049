// Package guesttest helps tests that run an agent outside a guest.
package guesttest

import "context"

// Inert is the part of guest.Machine that most tests do not look at: it leaves
// the machine that runs them alone. Embed it.
type Inert struct{}

// SetHostname does nothing.
func (Inert) SetHostname(string) error { return nil }

// Show does nothing.
func (Inert) Show(string, string) error { return nil }

// Signal does nothing.
func (Inert) Signal(int, int) error { return nil }

// Sync does nothing.
func (Inert) Sync() error { return nil }

// GrowRoot does nothing.
func (Inert) GrowRoot(context.Context, int64) error { return nil }

// Trust does nothing.
func (Inert) Trust(string) (map[string]string, error) { return nil, nil }

// TrustInJava does nothing.
func (Inert) TrustInJava(context.Context) error { return nil }

// MountNFS does nothing.
func (Inert) MountNFS(string, string) error { return nil }

// StartDaemon does nothing.
func (Inert) StartDaemon(context.Context) error { return nil }
