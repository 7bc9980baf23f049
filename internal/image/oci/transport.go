package oci

import (
	"io"
	"net/http"
	"strings"

	"wrenn"
)

// maxDocument bounds the manifest and the configuration of an image, which are
// read into memory, and whose sizes are the registry's word. It is the size of
// manifest that registries must take, see the OCI distribution specification.
const maxDocument = 4 << 20

// careful is the transport of a registry that is not trusted.
type careful struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (c careful) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if strings.Contains(asked(r).URL.Path, "/manifests/") {
		answer.Body = &document{ReadCloser: answer.Body, left: maxDocument}
	}
	return answer, nil
}

// asked is the request that redirects led away from.
func asked(r *http.Request) *http.Request {
	for r.Response != nil && r.Response.Request != nil {
		r = r.Response.Request
	}
	return r
}

// document is a body of at most left bytes.
type document struct {
	io.ReadCloser
	left int
}

func (d *document) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p[:min(len(p), d.left+1)])
	if d.left -= n; d.left < 0 {
		return 0, tooLarge("manifest")
	}
	return n, err
}

func tooLarge(what string) error {
	return wrenn.Errorf(wrenn.Invalid, "the image's %s has more than %d MiB", what, maxDocument>>20)
}
