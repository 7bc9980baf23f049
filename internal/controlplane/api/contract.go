package api

import (
	"sync"

	"wrenn.dev"
	"wrenn.dev/api"
	"wrenn.dev/internal/controlplane/contract"
)

const (
	mediaJSON = contract.JSON
	mediaForm = contract.Form
	mediaFile = contract.File

	// maxJSON bounds bodies of JSON: a mebibyte of a command's input as base64, and the rest of the command.
	maxJSON = 2 << 20
	// bodyCost is what a byte of such a body takes: as text, as checked values, and decoded.
	bodyCost = 6
)

// formLimits bound the bodies of operations that take files, by their ids; 0 is no limit.
var formLimits = map[string]int64{"writeFile": maxForm, "streamWriteFile": 0, "writeVolumeFile": 0, "putBuildFiles": wrenn.MaxArchiveBytes + 64<<10}

// maxBody bounds the body of an operation; 0 is no limit.
func maxBody(op *contract.Operation) int64 {
	if limit, other := formLimits[op.ID]; other {
		return limit
	}
	return maxJSON
}

// checked is api/openapi.yaml with the schemas that are not bodies of JSON.
type checked struct {
	*contract.Contract
	path, user contract.Schema // of the fields of forms
	frames     map[string]contract.Schema
}

// embedded is the contract of /v1. Servers share it: loading takes 0.2 s, and nothing
// changes it after that.
var embedded = sync.OnceValues(func() (*checked, error) { return loadContract(api.V1) })

func loadContract(text []byte) (*checked, error) {
	loaded, err := contract.Load(text)
	if err != nil {
		return nil, err
	}
	d := &checked{Contract: loaded, frames: map[string]contract.Schema{}}
	if d.path, err = d.Schema("Path"); err != nil {
		return nil, err
	}
	if d.user, err = d.Schema("User"); err != nil {
		return nil, err
	}
	for frame, schema := range map[string]string{
		frameStart: "StartFrame", frameAttach: "AttachFrame", frameStdin: "StdinFrame", frameStdinClose: "StdinCloseFrame",
		frameResize: "ResizeFrame", frameSignal: "SignalFrame", frameStop: "StopFrame", frameAck: "AckFrame", frameLeave: "LeaveFrame",
	} {
		if d.frames[frame], err = d.Schema(schema); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// shorten bounds a part of a request that a message repeats.
func shorten(text string) string { return contract.Shorten(text) }
