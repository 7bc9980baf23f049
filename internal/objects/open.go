package objects

import (
	"net/url"
	"path/filepath"
	"strings"

	"wrenn.dev"
)

// Open returns the store at a URL:
//
//	file:///DIRECTORY
//	s3://BUCKET/PREFIX?endpoint=HOST:PORT&region=REGION&insecure=true
//
// All parameters and the prefix may be left out. The file of credentials is for S3; see
// S3Config.Credentials. Invalid, which names what is wrong, for another URL; a URL with
// credentials in it is refused and not shown. Calls are repeated by the policy.
func Open(address, credentials string, p Policy) (Store, error) {
	u, err := parse(address)
	if err != nil {
		return nil, err
	}
	var s Store
	if u.Scheme == "file" {
		s, err = OpenDir(u.Path)
	} else {
		s, err = openS3(u, credentials)
	}
	if err != nil {
		return nil, err
	}
	return Retry(s, p), nil
}

// CheckURL returns Invalid unless Open would accept the URL. It opens nothing.
func CheckURL(address string) error {
	_, err := parse(address)
	return err
}

func parse(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil { // whose message has the URL, which may have a password
		return nil, wrenn.Errorf(wrenn.Invalid, "the URL of the object store is malformed")
	}
	switch {
	case u.User != nil:
		return nil, wrenn.Errorf(wrenn.Invalid, "the URL of the object store has credentials: put them into a file or the environment")
	case u.Scheme == "file":
		return u, checkFile(u)
	case u.Scheme == "s3":
		return u, checkS3(u)
	default:
		return nil, wrenn.Errorf(wrenn.Invalid, "the URL of the object store begins with %.20q: use file:///DIRECTORY or s3://BUCKET", u.Scheme+":")
	}
}

func checkFile(u *url.URL) error {
	if u.Host != "" || !filepath.IsAbs(u.Path) || u.RawQuery != "" {
		return wrenn.Errorf(wrenn.Invalid, "the URL of a directory is file:///DIRECTORY, with an absolute path and no parameters")
	}
	return nil
}

func checkS3(u *url.URL) error {
	if u.Host == "" {
		return wrenn.Errorf(wrenn.Invalid, "the URL of the object store names no bucket: s3://BUCKET")
	}
	if prefix := strings.Trim(u.Path, "/"); prefix != "" {
		if err := CheckKey(prefix); err != nil {
			return err
		}
	}
	for name, values := range u.Query() {
		switch name {
		case "endpoint", "region":
		case "insecure":
			if values[0] != "true" && values[0] != "false" {
				return wrenn.Errorf(wrenn.Invalid, "insecure in the URL of the object store is true or false")
			}
		default:
			return wrenn.Errorf(wrenn.Invalid, "the URL of the object store has the unknown parameter %.40q: endpoint, region and insecure exist", name)
		}
	}
	return nil
}

func openS3(u *url.URL, credentials string) (Store, error) {
	q := u.Query()
	return OpenS3(S3Config{
		Endpoint: q.Get("endpoint"), Region: q.Get("region"), Insecure: q.Get("insecure") == "true",
		Bucket: u.Host, Prefix: strings.Trim(u.Path, "/"), Credentials: credentials,
	})
}
