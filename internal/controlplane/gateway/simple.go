package gateway

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// maxSimpleBody is the size up to which the body of a request is sent before the
// response is read: it fits the buffers of the connection, so that a program which
// answers without reading it does not stop that.
const maxSimpleBody = 16 << 10

// simple reports whether a request can be passed on by exchange: one goroutine sends
// it and then reads the response, which costs half of what http.Transport's three and
// httputil.ReverseProxy do.
func simple(r *http.Request) bool {
	return r.ContentLength >= 0 && r.ContentLength <= maxSimpleBody && len(r.TransferEncoding) == 0 && len(r.Trailer) == 0 &&
		r.Header.Get("Expect") == "" && !isGRPC(r)
}

// exchange passes on a simple request, and the response.
func (g *Gateway) exchange(w http.ResponseWriter, r *http.Request, to target) {
	out := passedOn(r)
	if r.ContentLength == 0 {
		out.Body = nil
	}
	conn, resp, err := g.roundTrip(out, to)
	if err != nil {
		g.failed(w, r, err)
		return
	}
	whole := false
	stop := context.AfterFunc(r.Context(), func() { _ = conn.Close() }) // ends a read
	defer func() {
		if stop() && whole && !resp.Close && !out.Close {
			g.idle.put(conn)
			return
		}
		_ = conn.Close() // there may be something on it that no request asked for
	}()
	if resp, err = g.informed(w, conn, out, resp, to); err != nil {
		g.failed(w, r, err)
		return
	}
	g.sandboxes.Used(to.id) // not before: anyone can make up ids
	if err := respond(w, conn, resp, to); err != nil {
		panic(http.ErrAbortHandler) // cut: the client must see that
	}
	whole = true
}

// roundTrip sends a request on an idle connection or a new one, and reads the head of
// the first response.
func (g *Gateway) roundTrip(out *http.Request, to target) (*programConn, *http.Response, error) {
	if conn := g.idle.take(to); conn != nil {
		resp, silent, err := conn.ask(out)
		if err == nil {
			return conn, resp, nil
		}
		_ = conn.Close() // it failed
		// The program may have closed it just before. It has no part of the request
		// that it did not answer, or the request may be sent twice.
		if !silent || out.Body != nil || !idempotent(out.Method) || out.Context().Err() != nil {
			return nil, nil, err
		}
	}
	fresh, err := g.dialer.dial(out.Context(), to)
	if err != nil {
		return nil, nil, err
	}
	conn := newProgramConn(fresh, to)
	resp, _, err := conn.ask(out)
	if err != nil {
		_ = conn.Close() // it failed
		return nil, nil, err
	}
	return conn, resp, nil
}

func idempotent(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions || method == http.MethodTrace
}

// ask sends a request and reads the head of the first response. silent says that
// the program has sent nothing.
func (c *programConn) ask(out *http.Request) (resp *http.Response, silent bool, err error) {
	stop := context.AfterFunc(out.Context(), func() { _ = c.Close() }) // ends a read
	defer stop()
	sent := out.Write(c.writer)
	if sent == nil {
		sent = c.writer.Flush()
	}
	c.head.N = maxHeader
	// A program that has refused a body may have answered, and closed the connection.
	if _, err := c.reader.Peek(1); err != nil {
		return nil, true, errors.Join(sent, err)
	}
	resp, err = c.readResponse(out)
	if err == nil && sent != nil {
		resp.Close = true
	}
	return resp, false, err
}

// maxInformed bounds the informational responses to a request.
const maxInformed = 5

// informed passes on informational responses, and returns the first other one.
func (g *Gateway) informed(w http.ResponseWriter, conn *programConn, out *http.Request, resp *http.Response, to target) (*http.Response, error) {
	for range maxInformed {
		if resp.StatusCode >= http.StatusOK {
			return resp, nil
		}
		if resp.StatusCode == http.StatusSwitchingProtocols {
			return nil, errors.New("it changed the protocol, which was not asked for")
		}
		if resp.StatusCode != http.StatusContinue {
			maps.Copy(w.Header(), resp.Header)
			to.isolate(w.Header())
			w.WriteHeader(resp.StatusCode)
			for name := range resp.Header {
				delete(w.Header(), name)
			}
		}
		var err error
		if resp, err = conn.readResponse(out); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("it sent too many informational responses")
}

// respond passes on a response with its body and trailers.
func respond(w http.ResponseWriter, conn *programConn, resp *http.Response, to target) error {
	dropHopByHop(resp.Header)
	maps.Copy(w.Header(), resp.Header)
	to.isolate(w.Header())
	announced := slices.Sorted(maps.Keys(resp.Trailer))
	if len(announced) > 0 {
		w.Header().Set("Trailer", strings.Join(announced, ", "))
	}
	w.WriteHeader(resp.StatusCode)
	if err := copyBody(w, conn, resp); err != nil {
		return err
	}
	if len(resp.Trailer) > 0 {
		_ = http.NewResponseController(w).Flush() // as chunks, without which there are no trailers
	}
	for name, values := range resp.Trailer {
		if !slices.Contains(announced, name) {
			name = http.TrailerPrefix + name
		}
		w.Header()[name] = values
	}
	return nil
}

// copyBody copies the body of a response. What has arrived is sent before it waits for more.
func copyBody(w http.ResponseWriter, conn *programConn, resp *http.Response) error {
	if resp.ContentLength == 0 || resp.Body == http.NoBody {
		return nil
	}
	buffer := bodyBuffers.Get()
	defer bodyBuffers.Put(buffer)
	control := http.NewResponseController(w)
	if conn.reader.Buffered() == 0 {
		if err := control.Flush(); err != nil {
			return err
		}
	}
	for left := resp.ContentLength; ; {
		n, err := resp.Body.Read(buffer)
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				return err
			}
		}
		left -= int64(n)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case left != 0: // the server sends the last piece itself
			if err := control.Flush(); err != nil {
				return err
			}
		}
	}
}

var bodyBuffers buffers
