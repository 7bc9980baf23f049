package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/pelletier/go-toml/v2"

	"wrenn.dev/client"
	"wrenn.dev/client/settings"
	"wrenn.dev/internal/durable"
)

// session is one run of the program.
type session struct {
	Std

	line  *commandLine
	given []string // that the command line has, by their ids
}

func (s *session) configPath() (string, error) {
	if s.line.Config != "" {
		return s.line.Config, nil
	}
	return settings.Path(s.Environ)
}

// settings reads the configuration file; a missing one is empty.
func (s *session) settings() (settings.File, error) {
	path, err := s.configPath()
	if err != nil {
		return settings.File{}, err
	}
	return settings.Read(path)
}

// save writes the configuration file, which holds a secret, and returns its path.
func (s *session) save(c settings.File) (string, error) {
	path, err := s.configPath()
	if err != nil {
		return "", err
	}
	text, err := toml.Marshal(c)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("write the configuration: %w", err)
	}
	if err := durable.WriteFile(path, text, 0o600); err != nil {
		return "", fmt.Errorf("write the configuration: %w", err)
	}
	if s.line.Config == "" && os.Geteuid() == 0 && s.Environ("SUDO_UID") != "" {
		return path, lendToCaller(s.Environ("SUDO_UID"), c)
	}
	return path, nil
}

// lendToCaller writes the server in use to the configuration of the user who called
// sudo, so that the other commands work without sudo.
func lendToCaller(uid string, c settings.File) error {
	caller, err := user.LookupId(uid)
	if err != nil {
		return fmt.Errorf("find the user who called sudo: %w", err)
	}
	owner, err := strconv.Atoi(caller.Uid)
	if err != nil {
		return err
	}
	group, err := strconv.Atoi(caller.Gid)
	if err != nil {
		return err
	}
	if err := lend(caller.HomeDir, owner, group, c); err != nil {
		return fmt.Errorf("write the configuration of %s: %w", caller.Username, err)
	}
	return nil
}

// lend writes the server in use to the configuration below home, which keeps its
// contexts, and gives it to owner. The owner may have put links there: nothing
// outside of home is read or written.
func lend(home string, owner, group int, c settings.File) error {
	root, err := os.OpenRoot(home)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // the file written through it is closed already
	for _, dir := range []string{".config", ".config/wrenn"} {
		err := root.Mkdir(dir, 0o700)
		if err == nil {
			err = root.Lchown(dir, owner, group)
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	const final = ".config/wrenn/config.toml"
	staged := final + ".new"
	text, err := toml.Marshal(settings.File{URL: c.URL, Key: c.Key, Contexts: contextsIn(root, final, c.InUse())})
	if err != nil {
		return err
	}
	if err := root.Remove(staged); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(staged, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chown(owner, group), f.Close()); err != nil {
		return errors.Join(err, root.Remove(staged))
	}
	return root.Rename(staged, final)
}

// maxConfig bounds the configuration of another user that is read.
const maxConfig = 1 << 20

// contextsIn returns the contexts of a configuration, with that of this machine's
// server; none if it cannot be read.
func contextsIn(root *os.Root, name string, here settings.Server) map[string]settings.Server {
	f, err := root.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil
	}
	var old settings.File
	if text, err := io.ReadAll(io.LimitReader(f, maxConfig)); err != nil || toml.Unmarshal(text, &old) != nil {
		return nil
	}
	return withLocal(old.Contexts, here)
}

// client returns a client of the server that the command line, the environment or
// the configuration names.
func (s *session) client() (*client.Client, error) {
	url, key, err := s.server()
	if err != nil {
		return nil, err
	}
	if key == "" {
		return nil, s.noKey(url)
	}
	return client.New(client.Config{URL: url, Key: key, UserAgent: "wrenn-cli/" + version()})
}

// server returns the address of the server and the key for it, "" if there is none.
func (s *session) server() (url, key string, err error) {
	file, err := s.settings()
	if err != nil {
		return "", "", err
	}
	server, err := file.Server(s.line.ContextName, s.line.URL, s.Environ)
	if missing, ok := errors.AsType[*settings.NoContextError](err); ok {
		return "", "", noContext(missing.Name)
	}
	return server.URL, server.Key, err
}

func (s *session) noKey(url string) error {
	hint := ""
	if s.Environ("E2B_API_KEY") != "" {
		hint = " (E2B_API_KEY is sent only to the address in E2B_API_URL)"
	}
	return fmt.Errorf("no API key for %s: set WRENN_API_KEY, or start a server here with: sudo wrenn up%s", url, hint)
}

// explain adds what to do next to the most common errors.
func (s *session) explain(ctx context.Context, err error) error {
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return exitCode(codeSignal + int(syscall.SIGINT)) // the user pressed Ctrl-C and needs no message
	}
	failure, ok := errors.AsType[*client.Error](err)
	switch {
	case !ok:
		return err
	case failure.Code == client.NotFound && failure.Message == "sandbox not found" && len(s.given) == 1:
		return fmt.Errorf("there is no sandbox %s", s.given[0])
	case failure.Code == client.Unavailable && failure.Status == 0 && failure.Err != nil:
		return fmt.Errorf("%w\nDoes the server run? Start one here with: sudo wrenn up", err)
	case failure.Code == client.Internal && failure.RequestID != "":
		return fmt.Errorf("%w (request %s)", err, failure.RequestID)
	}
	return err
}
