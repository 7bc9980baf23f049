package service

import "wrenn"

// The words of commands, which the product shares.
type (
	ExecCommand = wrenn.ExecCommand
	ExecResult  = wrenn.ExecResult
	ExecStart   = wrenn.ExecStart
	ExecAttach  = wrenn.ExecAttach
	ExecStarted = wrenn.ExecStarted
	ExecSession = wrenn.ExecSession
	PTYSize     = wrenn.PTYSize
	ExecOutput  = wrenn.ExecOutput
	ExecExit    = wrenn.ExecExit
)
