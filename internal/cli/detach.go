package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"strconv"
	"strings"

	"wrenn/client"
)

const (
	// programLogs is the directory in a sandbox that has the output of programs that
	// exec -d started. Each file belongs to the program's user.
	programLogs = "/tmp/.wrenn-logs"
	// maxEnvFile bounds a file of variables: all of a command have at most 64 KiB.
	maxEnvFile = 1 << 20
)

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

// detachScript runs a command with its output in a file that has its process id as
// name: exec keeps the id of the shell.
const detachScript = `umask 077; d=` + programLogs + `; [ -d "$d" ] || mkdir -m 1777 "$d" || exit; exec "$@" >"$d/$$" 2>&1 </dev/null`

// detach starts a command that outlives this program, and prints its process id.
func (c *execCommand) detach(ctx context.Context, s *session, api *client.Client, cmd client.Command) error {
	cmd.Args = append([]string{"-c", detachScript, "sh", cmd.Cmd}, cmd.Args...)
	cmd.Cmd = "/bin/sh"
	stream, err := api.Start(ctx, c.ID, cmd, client.StartOptions{})
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
	}{pid, path.Join(programLogs, strconv.Itoa(pid))}
	return s.print(result, func(w io.Writer) { fmt.Fprintln(w, pid) })
}
