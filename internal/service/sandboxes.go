package service

import (
	"context"
	"time"

	"wrenn"
)

// CreateSandbox is a sandbox to make. Zero values are the defaults: template
// "base", 1 vCPU, 512 MB, 300 s. A Timeout below zero is never.
type CreateSandbox struct {
	Template        string
	VCPUs, MemoryMB int
	Timeout         time.Duration // without use until it is destroyed
	Metadata        map[string]string
	Env             map[string]string
}

// ListSandboxes selects sandboxes. Empty fields select all.
type ListSandboxes struct {
	States   []wrenn.State
	Metadata map[string]string // all of these pairs
	Limit    int               // of a page; default 100, at most 500
	Page     string            // what the page before returned
}

// CreateSandbox returns when the sandbox runs. When ctx ends before, what was made is undone.
func (s *Service) CreateSandbox(ctx context.Context, c Caller, req CreateSandbox) (*wrenn.Sandbox, error) {
	return nil, errSkeleton
}

// ListSandboxes returns a page, newest first, and where the next begins, "" after the last.
func (s *Service) ListSandboxes(ctx context.Context, c Caller, req ListSandboxes) (page []wrenn.Sandbox, next string, err error) {
	return nil, "", errSkeleton
}

// Sandbox returns one of the team's sandboxes, ended ones included.
func (s *Service) Sandbox(ctx context.Context, c Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return nil, errSkeleton
}

// DeleteSandbox ends a sandbox. One that has ended is no error.
func (s *Service) DeleteSandbox(ctx context.Context, c Caller, id wrenn.SandboxID) error {
	return errSkeleton
}

// PauseSandbox stops a running sandbox's CPUs; a paused one is the answer.
func (s *Service) PauseSandbox(ctx context.Context, c Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return nil, errSkeleton
}

// ResumeSandbox lets a paused sandbox go on.
func (s *Service) ResumeSandbox(ctx context.Context, c Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return nil, errSkeleton
}

// SetTimeout sets how long a running sandbox lives without use, from now.
func (s *Service) SetTimeout(ctx context.Context, c Caller, id wrenn.SandboxID, d time.Duration) (*wrenn.Sandbox, error) {
	return nil, errSkeleton
}
