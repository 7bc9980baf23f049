package api

import (
	"net/http"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/contract"
	"wrenn.dev/internal/controlplane/service"
)

// recorder is the response of one request. It records values for the log line and
// the metrics, and extends the write deadline while the client reads: net/http's own
// write timeout would include the work.
type recorder struct {
	http.ResponseWriter
	control *http.ResponseController
	idle    time.Duration // without progress of a write

	status    int // 0 until the answer began
	written   int64
	operation *contract.Operation
	sandbox   wrenn.SandboxID
	caller    service.Caller // zero until it is known
	err       error          // that was answered, or that broke the answer
}

// recorderOf returns the recorder that observe wrapped the response in.
func recorderOf(w http.ResponseWriter) *recorder {
	for {
		if rec, ok := w.(*recorder); ok {
			return rec
		}
		w = w.(interface{ Unwrap() http.ResponseWriter }).Unwrap()
	}
}

// Unwrap makes http.ResponseController work.
func (rec *recorder) Unwrap() http.ResponseWriter { return rec.ResponseWriter }

func (rec *recorder) WriteHeader(status int) {
	if rec.status == 0 {
		rec.status = status
	}
	rec.progress()
	rec.ResponseWriter.WriteHeader(status)
}

func (rec *recorder) Write(p []byte) (int, error) {
	if rec.status == 0 {
		rec.status = http.StatusOK
	}
	rec.progress()
	n, err := rec.ResponseWriter.Write(p)
	rec.written += int64(n)
	return n, err
}

// flush sends the bytes written so far.
func (rec *recorder) flush() error {
	rec.progress()
	return rec.control.Flush()
}

// progress restarts the write deadline, on connections that have deadlines.
func (rec *recorder) progress() { _ = rec.control.SetWriteDeadline(time.Now().Add(rec.idle)) }

// allowRead sets the time limit for the rest of the request; 0 is none, which a
// handler needs once it has read the request: net/http ends the request's context
// when the read deadline passes.
func (rec *recorder) allowRead(d time.Duration) {
	var until time.Time
	if d > 0 {
		until = time.Now().Add(d)
	}
	_ = rec.control.SetReadDeadline(until)
}
