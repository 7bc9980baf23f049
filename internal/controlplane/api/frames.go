package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"unicode/utf8"

	"wrenn.dev"
)

// The types of frames.
const (
	frameStart      = "start"
	frameAttach     = "attach"
	frameStdin      = "stdin"
	frameStdinClose = "stdin_close"
	frameResize     = "resize"
	frameSignal     = "signal"
	frameStop       = "stop"
	frameAck        = "ack"
	frameLeave      = "leave"

	frameStdout    = "stdout"
	frameStderr    = "stderr"
	framePTY       = "pty"
	frameExit      = "exit"
	frameError     = "error"
	frameKeepalive = "keepalive"
	frameInput     = "input"
)

// The first byte of a binary message names its stream.
const (
	tagStdin byte = iota
	tagStdout
	tagStderr
	tagPTY
)

// clientFrame is any frame of a client.
type clientFrame struct {
	Type string `json:"type"`

	Cmd        string            `json:"cmd"`
	Args       []string          `json:"args"`
	Env        map[string]string `json:"env"`
	Cwd        string            `json:"cwd"`
	User       string            `json:"user"`
	TimeoutSec int64             `json:"timeout_sec"`
	Stdin      bool              `json:"stdin"`
	PTY        *frameSize        `json:"pty"`

	PID int `json:"pid"`

	Session string  `json:"session"`
	HoldSec int64   `json:"hold_sec"`
	Offset  *uint64 `json:"offset"`

	Data     string `json:"data"`
	Encoding string `json:"encoding"`

	Cols   int    `json:"cols"`
	Rows   int    `json:"rows"`
	Signal string `json:"signal"`

	input []byte // of stdin
}

type frameSize struct {
	Cols int `json:"cols"`
	Rows int `json:"rows"`
}

// parseFrame reads a frame of a client. A binary one is input.
func (d *checked) parseFrame(binary bool, text []byte) (*clientFrame, error) {
	if binary {
		if len(text) == 0 || text[0] != tagStdin {
			return nil, invalid("a binary frame starts with the byte 0, for input")
		}
		return &clientFrame{Type: frameStdin, input: text[1:]}, nil
	}
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, invalid("the frame is not a JSON object with a type: %s", shorten(err.Error()))
	}
	schema, ok := d.frames[head.Type]
	if !ok {
		return nil, invalid("unknown type of frame %q", shorten(head.Type))
	}
	text, err := schema.Check(text)
	if err != nil {
		return nil, err
	}
	frame := &clientFrame{}
	if err := json.Unmarshal(text, frame); err != nil {
		return nil, invalid("frame %s: %s", head.Type, shorten(err.Error()))
	}
	frame.input = []byte(frame.Data)
	if frame.Encoding == encodingBase64 {
		input, err := base64.StdEncoding.DecodeString(frame.Data)
		if err != nil {
			return nil, invalid("frame %s: data: %v", head.Type, err)
		}
		frame.input = input
	}
	return frame, nil
}

// serverFrame is any frame of the server.
type serverFrame struct {
	Type     string  `json:"type"`
	PID      int     `json:"pid,omitempty"`
	Offset   *uint64 `json:"offset,omitempty"`
	Lost     uint64  `json:"lost,omitempty"`
	Input    *uint64 `json:"input,omitempty"`
	Data     *string `json:"data,omitempty"`
	Encoding string  `json:"encoding,omitempty"`
	ExitCode *int    `json:"exit_code,omitempty"`
	Status   string  `json:"status,omitempty"`
	Reason   string  `json:"reason,omitempty"`
	Code     string  `json:"code,omitempty"`
}

// outMessage is a WebSocket message.
type outMessage struct {
	binary bool
	bytes  []byte
}

// encoder turns a command's output into messages. Each stream has its own.
type encoder struct {
	binary bool // the client reads binary messages
	exact  bool // the client counts bytes: none is held back, and frames have offsets

	stdout, stderr, pty splitter
}

// encode returns the messages for one event: none if all bytes are held back,
// several if it is the exit and bytes were held back.
func (e *encoder) encode(out wrenn.ExecOutput) []outMessage {
	switch {
	case out.Exit != nil:
		exit := serverFrame{Type: frameExit, ExitCode: &out.Exit.Code, Status: out.Exit.Status, Reason: string(out.Exit.Reason)}
		return append(e.flush(), text(exit))
	case out.Started != nil:
		start := serverFrame{Type: frameStart, PID: out.Started.PID}
		if e.exact {
			start.Offset, start.Lost, start.Input = &out.Started.Offset, out.Started.Lost, &out.Started.Taken
		}
		return []outMessage{text(start)}
	case out.Taken != nil:
		return []outMessage{text(serverFrame{Type: frameInput, Offset: out.Taken})}
	case out.Keepalive:
		return []outMessage{text(serverFrame{Type: frameKeepalive})}
	case len(out.Stdout) > 0:
		return e.data(frameStdout, tagStdout, &e.stdout, out.Stdout, out.Offset)
	case len(out.Stderr) > 0:
		return e.data(frameStderr, tagStderr, &e.stderr, out.Stderr, out.Offset)
	case len(out.PTY) > 0:
		return e.data(framePTY, tagPTY, &e.pty, out.PTY, out.Offset)
	}
	return nil
}

func (e *encoder) data(frame string, tag byte, s *splitter, p []byte, offset uint64) []outMessage {
	if e.binary {
		return []outMessage{{binary: true, bytes: append([]byte{tag}, p...)}}
	}
	if e.exact {
		return []outMessage{dataFrame(frame, p, &offset)}
	}
	if p = s.next(p); len(p) == 0 {
		return nil
	}
	return []outMessage{dataFrame(frame, p, nil)}
}

// flush returns the bytes held back: the start of a character whose end did not come.
func (e *encoder) flush() []outMessage {
	var out []outMessage
	for _, s := range []struct {
		frame string
		*splitter
	}{{frameStdout, &e.stdout}, {frameStderr, &e.stderr}, {framePTY, &e.pty}} {
		if len(s.held) > 0 {
			out = append(out, dataFrame(s.frame, s.held, nil))
			s.held = nil
		}
	}
	return out
}

// dataFrame returns a frame with p: as text if it is UTF-8, else in base64.
func dataFrame(frame string, p []byte, offset *uint64) outMessage {
	f := serverFrame{Type: frame, Offset: offset}
	if utf8.Valid(p) {
		f.Data = new(string(p))
	} else {
		f.Data, f.Encoding = new(base64.StdEncoding.EncodeToString(p)), encodingBase64
	}
	return text(f)
}

// text encodes a frame, which cannot fail: it holds strings and numbers.
func text(f serverFrame) outMessage {
	var buf bytes.Buffer
	encoder := json.NewEncoder(&buf)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(f)
	return outMessage{bytes: bytes.TrimSuffix(buf.Bytes(), []byte("\n"))}
}

// splitter splits a stream of bytes between characters.
type splitter struct{ held []byte }

// next returns the bytes held back and p, without the start of a character at the
// end, which it holds back: at most 3 bytes.
func (s *splitter) next(p []byte) []byte {
	if len(s.held) > 0 {
		p = append(s.held, p...)
	}
	n := len(p) - incomplete(p)
	s.held = bytes.Clone(p[n:])
	return p[:n]
}

// incomplete returns the number of bytes of an incomplete character at the end of p.
func incomplete(p []byte) int {
	for i := 1; i < utf8.UTFMax && i <= len(p); i++ {
		if tail := p[len(p)-i:]; utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}
			return i
		}
	}
	return 0
}
