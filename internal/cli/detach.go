package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"

	"wrenn.dev/client"
	"wrenn.dev/internal/programs"
)

// maxEnvFile bounds a file of variables: all of a command have at most 64 KiB.
const maxEnvFile = 1 << 20

// environment returns the variables of --env-file and --env.
func (f *execFlags) environment() (map[string]string, error) {
	if len(f.File) == 0 {
		return f.Env, nil
	}
	env := map[string]string{}
	for _, name := range f.File {
		if err := readEnv(name, env); err != nil {
			return nil, err
		}
	}
	maps.Copy(env, f.Env)
	return env, nil
}

// readEnv adds the variables of a file to env.
func readEnv(name string, env map[string]string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxEnvFile+1))
	if err != nil {
		return err
	}
	if len(text) > maxEnvFile {
		return fmt.Errorf("%s is larger than %d KiB", name, maxEnvFile>>10)
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, maxEnvFile+1)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		variable, value, ok := strings.Cut(line, "=")
		if !ok || variable == "" {
			return fmt.Errorf("%s:%d: not NAME=VALUE", name, n) // the line may be a secret
		}
		env[variable] = value
	}
	return lines.Err()
}

// detach starts a command that outlives this program, and prints its process id.
func (c *execCommand) detach(ctx context.Context, s *session, api *client.Client, cmd client.Command) error {
	stream, err := api.Start(ctx, c.ID, programs.Detached(cmd), client.StartOptions{})
	if err != nil {
		return err
	}
	pid := stream.PID()
	if err := stream.Close(); err != nil {
		return err
	}
	result := struct {
		PID int    `json:"pid"`
		Log string `json:"log"`
	}{pid, programs.Log(pid)}
	return s.print(result, func(w io.Writer) { fmt.Fprintln(w, pid) })
}
