package objects

import (
	"context"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"wrenn.dev"
)

// partSize is the size of the parts in which larger objects are sent. S3 allows 10,000
// parts, so an object may have 160 GB.
const partSize = 16 << 20

// S3 is a Store in a bucket of an S3-compatible server.
type S3 struct {
	client *minio.Core
	bucket string
	prefix string // of all keys; "" or with a slash at its end
}

// S3Config is where a bucket is. Bucket is needed.
type S3Config struct {
	Endpoint string // host or host:port; default s3.amazonaws.com
	Insecure bool   // HTTP instead of HTTPS
	Region   string // default us-east-1 or what the server says
	Bucket   string
	Prefix   string // of all keys, without a slash at its end
	// Credentials is the path of a file in the format of ~/.aws/credentials, whose profile
	// "default" is used. Without it they come from AWS_ACCESS_KEY_ID and
	// AWS_SECRET_ACCESS_KEY, or from the machine's or pod's role. The file is read again
	// when it changes.
	Credentials string
}

// OpenS3 returns the store in a bucket. It does not connect.
func OpenS3(cfg S3Config) (*S3, error) {
	endpoint := cfg.Endpoint
	if endpoint == "" {
		endpoint = "s3.amazonaws.com"
	}
	client, err := minio.NewCore(endpoint, &minio.Options{
		Creds: cfg.credentials(), Secure: !cfg.Insecure, Region: cfg.Region, Transport: transport(!cfg.Insecure),
		MaxRetries: 1, // see Retry
	})
	if err != nil {
		return nil, &wrenn.Error{Code: wrenn.Invalid, Message: "the endpoint of the object store is malformed", Err: err}
	}
	prefix := cfg.Prefix
	if prefix != "" {
		prefix += "/"
	}
	return &S3{client, cfg.Bucket, prefix}, nil
}

func (c *S3Config) credentials() *credentials.Credentials {
	if c.Credentials != "" {
		return credentials.New(&credentialsFile{path: c.Credentials})
	}
	return credentials.NewChainCredentials([]credentials.Provider{
		&credentials.EnvAWS{}, &credentials.IAM{Client: &http.Client{Timeout: metadataTimeout}},
	})
}

// metadataTimeout bounds the look for a role where there is no metadata service.
const metadataTimeout = 5 * time.Second

// credentialsFile reads a file of credentials, and again every minute.
type credentialsFile struct {
	path string
	read time.Time
}

// Retrieve implements credentials.Provider.
func (f *credentialsFile) Retrieve() (credentials.Value, error) {
	return f.RetrieveWithCredContext(&credentials.CredContext{})
}

// RetrieveWithCredContext implements credentials.Provider.
func (f *credentialsFile) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	f.read = time.Now()
	return (&credentials.FileAWSCredentials{Filename: f.path, Profile: "default"}).RetrieveWithCredContext(cc)
}

// IsExpired implements credentials.Provider.
func (f *credentialsFile) IsExpired() bool { return time.Since(f.read) > time.Minute }

// transport bounds what a server may send in headers, and how long it may take to begin
// to answer.
func transport(secure bool) http.RoundTripper {
	t, err := minio.DefaultTransport(secure)
	if err != nil { // a root certificate that cannot be read
		return errorTransport{err}
	}
	t.MaxResponseHeaderBytes = 64 << 10
	t.ResponseHeaderTimeout = 2 * time.Minute
	return t
}

type errorTransport struct{ err error }

func (t errorTransport) RoundTrip(*http.Request) (*http.Response, error) { return nil, t.err }

// Put implements Store. A large object is sent in parts, one at a time.
func (s *S3) Put(ctx context.Context, key string, body io.ReaderAt, size int64, ifAbsent bool) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	opts := minio.PutObjectOptions{NumThreads: 1, PartSize: partSize, ContentType: "application/octet-stream"}
	if ifAbsent {
		opts.SetMatchETagExcept("*")
	}
	_, err := s.client.Client.PutObject(ctx, s.bucket, s.prefix+key, io.NewSectionReader(body, 0, size), size, opts)
	return s.failure(ctx, "write", key, err)
}

// Get implements Store.
func (s *S3) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	var opts minio.GetObjectOptions
	if err := opts.SetRange(offset, offset+length-1); err != nil {
		return nil, wrenn.Errorf(wrenn.Invalid, "%d bytes at %d cannot be read", length, offset)
	}
	object, info, _, err := s.client.GetObject(ctx, s.bucket, s.prefix+key, opts)
	if err != nil {
		return nil, s.failure(ctx, "read", key, err)
	}
	if info.Size != length { // of the answer
		return nil, errors.Join(short(key), object.Close())
	}
	return body{&s3Reader{s, ctx, key, io.LimitReader(object, length), length}, object}, nil
}

// s3Reader translates the errors of a read, and has one where the connection ended early.
type s3Reader struct {
	store *S3
	ctx   context.Context
	key   string
	r     io.Reader
	left  int64
}

func (r *s3Reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.left -= int64(n)
	switch {
	case errors.Is(err, io.EOF) && r.left == 0:
		return n, io.EOF
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return n, r.store.failure(r.ctx, "read", r.key, err)
}

// Head implements Store.
func (s *S3) Head(ctx context.Context, key string) (Info, error) {
	if err := CheckKey(key); err != nil {
		return Info{}, err
	}
	info, err := s.client.StatObject(ctx, s.bucket, s.prefix+key, minio.StatObjectOptions{})
	if err != nil {
		return Info{}, s.failure(ctx, "look at", key, err)
	}
	return Info{Key: key, Size: info.Size, Modified: info.LastModified}, nil
}

// List implements Store.
func (s *S3) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		for info := range s.client.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true}) {
			if info.Err != nil {
				yield(Info{}, s.failure(ctx, "list", prefix, info.Err))
				return
			}
			key := strings.TrimPrefix(info.Key, s.prefix)
			if CheckKey(key) != nil { // another program's
				continue
			}
			if !yield(Info{Key: key, Size: info.Size, Modified: info.LastModified}, nil) {
				return
			}
		}
	}
}

// Delete implements Store.
func (s *S3) Delete(ctx context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	err := s.failure(ctx, "delete", key, s.client.RemoveObject(ctx, s.bucket, s.prefix+key, minio.RemoveObjectOptions{}))
	if wrenn.CodeOf(err) == wrenn.NotFound {
		return nil
	}
	return err
}

// maxPages bounds the pages of unfinished uploads that are read at a time, each of up to 1000.
const maxPages = 100

// DeleteUnfinished implements Store: it aborts multipart uploads. When they began is what
// the server's clock said.
func (s *S3) DeleteUnfinished(ctx context.Context, prefix string, before time.Time) (n int, err error) {
	key, upload := "", ""
	for range maxPages {
		page, err := s.client.ListMultipartUploads(ctx, s.bucket, s.prefix+prefix, key, upload, "", 1000)
		if err != nil {
			return n, s.failure(ctx, "list unfinished uploads of", prefix, err)
		}
		for i := range page.Uploads {
			u := &page.Uploads[i]
			if !s.isUnfinished(u, prefix, before) {
				continue
			}
			if err := s.abort(ctx, u); err != nil {
				return n, err
			}
			if n++; n == maxUnfinished {
				return n, nil
			}
		}
		if key, upload = page.NextKeyMarker, page.NextUploadIDMarker; !page.IsTruncated || key == "" {
			return n, nil
		}
	}
	return n, nil
}

// isUnfinished reports whether an upload is for a key of this store with the prefix, and
// is known to have begun before that time.
func (s *S3) isUnfinished(u *minio.ObjectMultipartInfo, prefix string, before time.Time) bool {
	key, ours := strings.CutPrefix(u.Key, s.prefix)
	return ours && strings.HasPrefix(key, prefix) && CheckKey(key) == nil && !u.Initiated.IsZero() && u.Initiated.Before(before)
}

// abort ends an upload. It is no error if it has ended.
func (s *S3) abort(ctx context.Context, u *minio.ObjectMultipartInfo) error {
	err := s.client.AbortMultipartUpload(ctx, s.bucket, u.Key, u.UploadID)
	if res, ok := errors.AsType[minio.ErrorResponse](err); ok && res.Code == minio.NoSuchUpload {
		return nil
	}
	return s.failure(ctx, "abort the upload of", strings.TrimPrefix(u.Key, s.prefix), err)
}

// failure translates an error of the client.
func (s *S3) failure(ctx context.Context, doing, key string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	code, why := s.explain(err)
	return failure(code, doing, key, why, withoutURL(err))
}

// explain returns the code and the public reason of an error.
func (s *S3) explain(err error) (code wrenn.Code, why string) {
	res, ok := errors.AsType[minio.ErrorResponse](err)
	if !ok {
		return wrenn.Unavailable, "the store cannot be reached"
	}
	switch res.Code {
	case minio.NoSuchBucket:
		return wrenn.FailedPrecondition, "the bucket " + s.bucket + " does not exist: create it"
	case "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", minio.EntityTooLarge:
		return wrenn.Exhausted, "the store is full"
	case minio.NoSuchUpload:
		return wrenn.Unavailable, "another program has ended the upload"
	case minio.InvalidRange:
		return wrenn.FailedPrecondition, "it is shorter than it must be"
	case "InvalidAccessKeyId", "SignatureDoesNotMatch":
		return wrenn.PermissionDenied, "the store refuses the credentials"
	case "RequestTimeTooSkewed":
		return wrenn.PermissionDenied, "the clocks of this machine and the store differ too much"
	}
	switch res.StatusCode {
	case http.StatusNotFound:
		return wrenn.NotFound, "it does not exist"
	case http.StatusPreconditionFailed, http.StatusConflict:
		return wrenn.AlreadyExists, "it exists"
	case http.StatusForbidden, http.StatusUnauthorized, http.StatusMethodNotAllowed:
		return wrenn.PermissionDenied, "the store does not allow it"
	case http.StatusInsufficientStorage:
		return wrenn.Exhausted, "the store is full"
	default:
		return wrenn.Unavailable, "the store failed"
	}
}

// withoutURL leaves out the URL of a request, which may have a signature.
func withoutURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}
