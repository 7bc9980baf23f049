// Package programs runs programs in sandboxes that outlive the client that started
// them. Their output goes to files in the sandbox, by shell scripts that need only
// what POSIX has, and tail and head with -c.
package programs

import (
	"path"
	"strconv"

	"wrenn.dev/client"
)

// Dir is the directory in a sandbox that has the output of such programs. Each file
// belongs to the program's user.
const Dir = "/tmp/.wrenn-logs"

// Log returns the file in a sandbox with the output of the program with that process id.
func Log(pid int) string { return path.Join(Dir, strconv.Itoa(pid)) }

// makeLog makes the file $f, which only its user may read, with the id of the shell as
// name. The program keeps the umask that it has.
const makeLog = `d=` + Dir + `; [ -d "$d" ] || mkdir -m 1777 "$d" || exit
f=$d/$$; rm -f "$f" "$f.exit"; u=$(umask); umask 077; : >"$f"; umask "$u"
`

// detached runs a command with its output in a file that has its process id as name:
// exec keeps the id of the shell.
const detached = makeLog + `exec "$@" >"$f" 2>&1 </dev/null`

// Detached returns a command that runs cmd with its output in Log of its process id.
func Detached(cmd client.Command) client.Command { return by(detached, cmd) }

// recorded is like detached, but the shell stays, and writes how the command ended to
// another file. It waits for the command also after signals, which both get.
const recorded = makeLog + `trap : HUP INT TERM; "$@" >"$f" 2>&1 </dev/null; code=$?; echo "$code" >"$f.exit"; exit "$code"`

// Recorded is like Detached, and ReadScript then also tells the exit code, which is 128
// plus its number after a signal. Signals must be sent to the command and to what it
// started.
func Recorded(cmd client.Command) client.Command { return by(recorded, cmd) }

func by(script string, cmd client.Command) client.Command {
	cmd.Args = append([]string{"-c", script, "sh", cmd.Cmd}, cmd.Args...)
	cmd.Cmd = "/bin/sh"
	return cmd
}

// ReadScript prints a part of the log $1: a line with its size, the position where the
// part begins and, if the program was Recorded and has ended, its exit code; then at most
// $3 bytes from position $2 on, or the last ones if $2 is negative. It fails if there is
// no such log.
const ReadScript = `[ -f "$1" ] || exit 1
size=$(wc -c <"$1") || exit; from=$2; [ "$from" -ge 0 ] || from=$((size - $3)); [ "$from" -ge 0 ] || from=0
echo $size $from $(cat "$1.exit" 2>/dev/null); [ "$from" -ge "$size" ] || tail -c +$((from + 1)) "$1" | head -c "$3"`
