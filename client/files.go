package client

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"path"
	"slices"
	"sync"
	"unicode/utf8"
)

// FileOptions are optional settings of WriteFile and ReadFile.
type FileOptions struct {
	User string // the sandbox's user that reads or writes; "" means the template's default user
}

// WriteFile reads content until io.EOF and writes it to a file of the sandbox,
// of any size. It makes missing directories. The file is replaced in one step at
// the end: when content or the connection fails, the file is unchanged. A
// relative name starts at the user's home.
//
// When WriteFile fails, content may still be read for a moment after the return.
func (c *Client) WriteFile(ctx context.Context, id, name string, content io.Reader, opts FileOptions) error {
	if err := checkName(name); err != nil {
		return err
	}
	var frame bytes.Buffer // what comes before and after the content
	form := multipart.NewWriter(&frame)
	fields := [][2]string{{"path", name}}
	if opts.User != "" {
		fields = append(fields, [2]string{"user", opts.User})
	}
	for _, f := range fields {
		if err := form.WriteField(f[0], f[1]); err != nil {
			return err
		}
	}
	if _, err := form.CreateFormFile("file", path.Base(name)); err != nil {
		return err
	}
	head := slices.Clone(frame.Bytes())
	if err := form.Close(); err != nil {
		return err
	}
	source := &watched{r: content}
	err := c.call(ctx, request{
		method: http.MethodPost, path: sandboxPath(id, "/files/stream/write"), media: form.FormDataContentType(),
		stream: io.MultiReader(bytes.NewReader(head), source, bytes.NewReader(frame.Bytes()[len(head):])),
	}, nil)
	if own := source.failure(); own != nil && err != nil {
		return fmt.Errorf("read the content for %s: %w", name, own)
	}
	return err
}

// checkName refuses a name that the API cannot hold: JSON would have U+FFFD in it.
func checkName(name string) error {
	if utf8.ValidString(name) {
		return nil
	}
	return &Error{Code: InvalidRequest, Message: fmt.Sprintf("the name %.200q is not UTF-8 text: copy its directory, or rename it", name)}
}

// ReadFile returns the content of a file of the sandbox; the caller closes it.
// When the transfer is cut short, Read returns an error other than io.EOF.
func (c *Client) ReadFile(ctx context.Context, id, name string, opts FileOptions) (io.ReadCloser, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	body := map[string]string{"path": name}
	if opts.User != "" {
		body["user"] = opts.User
	}
	return c.stream(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/files/stream/read"), body: body})
}

// stream returns a response's body, which the caller closes.
func (c *Client) stream(ctx context.Context, r request) (io.ReadCloser, error) {
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	if resp.ContentLength < 0 && !slices.Contains(resp.TransferEncoding, "chunked") {
		// Such a body ends when the connection does, so a cut one looks complete; see RFC 9112, 6.3.
		resp.Body.Close()
		return nil, &Error{Code: Unavailable, Message: "a proxy on the way to the server drops the length of files, so a cut file would look complete: connect without it"}
	}
	return &fileBody{ReadCloser: resp.Body, broken: func(err error) error { return c.broken(ctx, err) }}, nil
}

// fileBody turns the errors of a broken connection into *Error.
type fileBody struct {
	io.ReadCloser

	broken func(error) error
}

func (f *fileBody) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // an end is not wrapped; a cut is ErrUnexpectedEOF
		err = f.broken(err)
	}
	return n, err
}

// watched records the error of its reader, because net/http wraps it in an error about the connection.
type watched struct {
	r io.Reader

	mu  sync.Mutex // guards err
	err error
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil && err != io.EOF { // readers do not wrap their end
		w.mu.Lock()
		w.err = err
		w.mu.Unlock()
	}
	return n, err
}

func (w *watched) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}
