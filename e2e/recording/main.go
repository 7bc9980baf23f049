// Command recording runs commands of wrenn against the server in WRENN_API_URL, and
// writes a picture of the terminal in which they ran: make recording. The picture moves
// once, at the pace of the run, and then stays.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"time"
)

// session are the commands of the picture, which a shell runs.
var session = []string{
	`ID=$(wrenn sandbox create)`,
	`wrenn sandbox exec $ID -- uname -sr`,
	`wrenn sandbox exec $ID -- sh -c 'echo precious >notes; ls -l notes'`,
	`BEFORE=$(wrenn checkpoint create $ID)`,
	`wrenn sandbox exec $ID -- rm -v notes`,
	`wrenn checkpoint restore $ID $BEFORE`,
	`wrenn sandbox exec $ID -- cat notes`,
	`wrenn sandbox fork $ID --count 2   # copies, with files, memory and programs`,
	`wrenn sandbox list -q | xargs wrenn sandbox kill`,
}

// mark ends the output of a command, and its exit code follows.
const mark = "\x1e"

// ran is a command that was run.
type ran struct {
	command string
	output  string
	took    time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: recording FILE.svg")
		os.Exit(2)
	}
	if err := record(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "recording:", err)
		os.Exit(1)
	}
}

func record(ctx context.Context, file string) error {
	steps, err := run(ctx, session)
	if err != nil {
		return err
	}
	return os.WriteFile(file, picture(steps), 0o644)
}

// run runs commands in one shell. A command that fails is an error.
func run(ctx context.Context, commands []string) ([]ran, error) {
	var script strings.Builder
	for _, c := range commands {
		fmt.Fprintf(&script, "{ %s\n} </dev/null 2>&1\nprintf '\\036%%d\\n' $?\n", c)
	}
	shell := exec.CommandContext(ctx, "bash", "-o", "pipefail")
	shell.Stdin, shell.Stderr = strings.NewReader(script.String()), os.Stderr
	out, err := shell.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := shell.Start(); err != nil {
		return nil, err
	}
	steps, err := read(out, commands)
	if err != nil {
		_ = shell.Process.Kill() // it may have ended
	}
	return steps, errors.Join(err, shell.Wait())
}

// read reads the output of the commands, one after the other.
func read(out io.Reader, commands []string) ([]ran, error) {
	var steps []ran
	lines, began := bufio.NewReader(out), time.Now()
	for _, command := range commands {
		step := ran{command: command}
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return nil, fmt.Errorf("%s: %w", command, err)
			}
			text, code, ended := strings.Cut(line, mark)
			step.output += text
			if !ended {
				continue
			}
			if code != "0\n" {
				return nil, fmt.Errorf("%s: exit code %s%s", command, code, step.output)
			}
			step.took = time.Since(began)
			began = time.Now()
			break
		}
		fmt.Printf("%s (%.2f s)\n%s", command, step.took.Seconds(), step.output)
		steps = append(steps, step)
	}
	return steps, nil
}

// lines returns the lines of an output.
func lines(output string) []string {
	output = strings.TrimRight(string(bytes.ToValidUTF8([]byte(output), nil)), "\n")
	if output == "" {
		return nil
	}
	return strings.Split(output, "\n")
}
