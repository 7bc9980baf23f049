// Package trust has programs of a guest trust an authority besides those that they trust
// already: it is added where they look for authorities.
package trust

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// maxBundle bounds the certificates that are added, and maxSystem a file that has those
// of the system.
const (
	maxBundle = 64 << 10
	maxSystem = 16 << 20
)

// file has the certificates for programs that read one file besides the system's, and for
// update-ca-certificates, which writes the system's bundle of Debian again.
const file = "usr/local/share/ca-certificates/wrenn-egress.crt"

// bundles are where distributions have the certificates of the system in one file:
// Debian and Alpine, Red Hat, SUSE.
var bundles = []string{
	"etc/ssl/certs/ca-certificates.crt", "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "etc/pki/tls/certs/ca-bundle.crt",
	"etc/ssl/ca-bundle.pem", "etc/ssl/cert.pem",
}

// The lines around what Add has added to a bundle.
const (
	begin = "# Begin of Wrenn's authority\n"
	end   = "# End of Wrenn's authority\n"
)

// Add has programs that start from now on trust the certificates, in PEM, in place of those
// of an earlier Add. Root is the root directory of the system. It returns the environment
// variables that programs need for that, with paths below /.
func Add(root, certificates string) (env map[string]string, err error) {
	if err := check(certificates); err != nil {
		return nil, err
	}
	path := filepath.Join(root, file)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := replace(path, []byte(certificates), 0o644); err != nil {
		return nil, err
	}
	// These add to what the programs trust.
	env = map[string]string{"NODE_EXTRA_CA_CERTS": "/" + file, "DENO_CERT": "/" + file}
	seen := map[string]bool{}
	for _, bundle := range bundles {
		real, err := filepath.EvalSymlinks(filepath.Join(root, bundle))
		if errors.Is(err, fs.ErrNotExist) || err == nil && seen[real] {
			continue
		}
		if err == nil {
			seen[real] = true
			err = addTo(real, certificates)
		}
		if err != nil {
			return nil, err
		}
		if env["SSL_CERT_FILE"] == "" { // these replace what the programs trust
			env["SSL_CERT_FILE"], env["REQUESTS_CA_BUNDLE"] = "/"+bundle, "/"+bundle
		}
	}
	return env, nil
}

// check returns an error unless the text has certificates alone.
func check(text string) error {
	if len(text) > maxBundle {
		return fmt.Errorf("certificates have at most %d bytes", maxBundle)
	}
	rest, n := []byte(text), 0
	for len(bytes.TrimSpace(rest)) > 0 {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return errors.New("the text has something else than certificates in PEM")
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return err
		}
		n++
	}
	if n == 0 {
		return errors.New("the text has no certificate in PEM")
	}
	return nil
}

// addTo writes the certificates to the end of a bundle.
func addTo(path, certificates string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSystem {
		return fmt.Errorf("%s is no file of at most %d bytes", path, maxSystem)
	}
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text := without(string(old))
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	text += begin + strings.TrimRight(certificates, "\n") + "\n" + end
	if text == string(old) {
		return nil
	}
	return replace(path, []byte(text), info.Mode().Perm())
}

// without returns a bundle without what an earlier Add has added.
func without(text string) string {
	before, rest, found := strings.Cut(text, begin)
	if !found {
		return text
	}
	_, after, found := strings.Cut(rest, end)
	if !found { // it was cut by another program
		return before
	}
	return before + after
}

// replace writes a file that readers see either as it was or as a whole.
func replace(path string, data []byte, mode fs.FileMode) error {
	next := path + ".wrenn"
	if err := os.WriteFile(next, data, mode); err != nil {
		return err
	}
	if err := errors.Join(os.Chmod(next, mode), os.Rename(next, path)); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return nil
}

// AddToJava has each Java below /usr/lib/jvm and /opt trust the certificates of Add, by
// its keytool, which takes seconds. Without a Java it does nothing.
func AddToJava(ctx context.Context) error {
	var errs []error
	seen := map[string]bool{}
	for _, pattern := range []string{"/usr/lib/jvm/*/bin/keytool", "/opt/*/bin/keytool", "/usr/local/*/bin/keytool"} {
		found, _ := filepath.Glob(pattern) // the patterns are valid
		for _, tool := range found {
			real, err := filepath.EvalSymlinks(tool)
			if err != nil || seen[real] {
				continue
			}
			seen[real] = true
			errs = append(errs, addByKeytool(ctx, real))
		}
	}
	return errors.Join(errs...)
}

func addByKeytool(ctx context.Context, tool string) error {
	const alias = "wrenn-egress"
	common := []string{"-cacerts", "-storepass", "changeit", "-alias", alias} // Java's default password
	// It fails when there is none.
	_ = exec.CommandContext(ctx, tool, append([]string{"-delete"}, common...)...).Run()
	out, err := exec.CommandContext(ctx, tool, append([]string{"-importcert", "-noprompt", "-file", "/" + file}, common...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %.300q", tool, err, out)
	}
	return nil
}
