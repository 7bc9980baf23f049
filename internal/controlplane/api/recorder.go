package api

import (
	"net/http"
	"time"

	"wrenn"
)

// recorder is the response of one request. It notes what the log line and the
// metrics say of it, and lets an answer take as long as its client keeps
// taking bytes: the server's own write timeout would count the work as well.
type recorder struct {
	http.ResponseWriter
	control *http.ResponseController
	idle    time.Duration // without progress of a write

	status    int // 0 until the answer began
	written   int64
	operation *operation
	sandbox   wrenn.SandboxID
	key       string
	err       error // what was answered, or broke the answer
}

// recorderOf finds the recorder that observe put around the response. Every handler runs under it.
func recorderOf(w http.ResponseWriter) *recorder {
	for {
		if rec, ok := w.(*recorder); ok {
			return rec
		}
		w = w.(interface{ Unwrap() http.ResponseWriter }).Unwrap()
	}
}

// Unwrap is for http.ResponseController.
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

// flush sends what was written.
func (rec *recorder) flush() error {
	rec.progress()
	return rec.control.Flush()
}

// progress gives the next write its time. A connection without deadlines has none to move.
func (rec *recorder) progress() { _ = rec.control.SetWriteDeadline(time.Now().Add(rec.idle)) }

// allowRead moves the time until which the rest of the request must come; 0 is
// no limit, which every handler needs that works after it read the request:
// the server takes a connection whose read deadline passes for one that broke,
// and ends the request's context.
func (rec *recorder) allowRead(d time.Duration) {
	var until time.Time
	if d > 0 {
		until = time.Now().Add(d)
	}
	_ = rec.control.SetReadDeadline(until)
}
