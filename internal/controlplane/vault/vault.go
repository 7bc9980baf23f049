// Package vault encrypts the secrets of teams with keys that are in files, not in the
// database: who has the database alone, or a copy of it, cannot read them.
//
// It is age (filippo.io/age) with X25519 keys. The first key encrypts, all of them
// decrypt, so that keys can be rotated. What a secret belongs to is encrypted with
// it: a row that was copied over another one is refused.
package vault

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"filippo.io/age"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
)

// maxKeyFile bounds a key file; a key takes 74 bytes.
const maxKeyFile = 64 << 10

// Vault holds keys. The zero value has none: Seal and Open fail. It is safe for
// concurrent use.
type Vault struct {
	first *age.X25519Identity
	all   []age.Identity
}

// Load reads keys, as `age-keygen` writes them: the first key of the first file
// encrypts. A file that every user of the machine can read is refused.
func Load(files []string) (*Vault, error) {
	v := &Vault{}
	for _, path := range files {
		if err := v.add(path); err != nil {
			return nil, fmt.Errorf("key of secrets: %w", err)
		}
	}
	return v, nil
}

func (v *Vault) add(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o007 != 0 {
		return fmt.Errorf("%s can be read by every user of this machine: chmod 600 %[1]s", path)
	}
	keys, err := age.ParseIdentities(io.LimitReader(f, maxKeyFile))
	if err != nil { // it repeats nothing of the file but the number of a line
		return fmt.Errorf("%s has no key, as age-keygen writes one", path)
	}
	for _, key := range keys {
		x, ok := key.(*age.X25519Identity)
		if !ok {
			return fmt.Errorf("%s has a key that is not of X25519: use that of age-keygen", path)
		}
		if v.first == nil {
			v.first = x
		}
		v.all = append(v.all, x)
	}
	return nil
}

// Create makes a file with a new key, for its owner alone. A file that exists stays as
// it is.
func Create(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := age.GenerateX25519Identity()
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	text := fmt.Sprintf("# The key of the secrets in Wrenn's database, made %s. Keep a copy: without it they are lost.\n# public key: %s\n%s\n",
		time.Now().UTC().Format(time.RFC3339), key.Recipient(), key)
	if err := durable.WriteFile(path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write the key of secrets: %w", err)
	}
	return nil
}

// KeyID returns the public half of the key that encrypts; "" without keys.
func (v *Vault) KeyID() string {
	if v.first == nil {
		return ""
	}
	return v.first.Recipient().String()
}

// noKeys is what callers get where the operator has given no key.
func noKeys() error {
	return wrenn.Errorf(wrenn.FailedPrecondition, "this server keeps no secrets: its operator sets key_files of [secrets] in the control plane's configuration")
}

// Seal encrypts a value for what it belongs to, a text without a zero byte.
func (v *Vault) Seal(belongsTo string, value []byte) ([]byte, error) {
	if v.first == nil {
		return nil, noKeys()
	}
	if strings.ContainsRune(belongsTo, 0) {
		return nil, errors.New("seal: a zero byte")
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, v.first.Recipient())
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	for _, part := range [][]byte{[]byte(belongsTo), {0}, value} {
		if _, err := w.Write(part); err != nil {
			return nil, fmt.Errorf("seal: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return out.Bytes(), nil
}

// Open decrypts a value that Seal has encrypted for what it belongs to.
func (v *Vault) Open(belongsTo string, sealed []byte) ([]byte, error) {
	if v.first == nil {
		return nil, noKeys()
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), v.all...)
	if err != nil {
		return nil, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "no key of this server opens the secret: its operator adds the earlier key file, or set it again", Err: err}
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("open a secret: %w", err)
	}
	value, ok := bytes.CutPrefix(text, append([]byte(belongsTo), 0))
	if !ok {
		return nil, errors.New("open a secret: it belongs to another one")
	}
	return value, nil
}
