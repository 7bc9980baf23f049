package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
)

const (
	// noDirectory is the exit code of sendTree when the path exists and is not a directory.
	noDirectory = 65
	// maxTrailer bounds what follows the end of an archive: tar pads the last block to 10 KiB.
	maxTrailer = 1 << 20
	// stderrKept is how many bytes of tar's standard error are kept.
	stderrKept = 4 << 10
)

// The scripts that send and receive a tree in a sandbox, for /bin/sh. $1 is the
// directory: empty means the home, and the scripts expand ~. Like cp, receiveTree
// copies into an existing directory, under the name $2, and otherwise makes the
// directory, with mode $3.
const (
	resolveTree = `case $1 in '~') d=$HOME ;; '~/'*) d=$HOME/${1#'~/'} ;; '') d=. ;; *) d=$1 ;; esac; `
	sendTree    = resolveTree + `if [ -d "$d" ]; then cd -- "$d" && exec tar -cf - .; fi
		[ -e "$d" ] && exit 65; echo "$d: no such directory" >&2; exit 1`
	receiveTree = resolveTree + `if [ -d "$d" ]; then d=$d/$2; fi
		[ -d "$d" ] || mkdir -p -m "$3" -- "$d" || exit; cd -- "$d" && exec tar -xpof -`
)

// byteSize is a number of bytes, written with a unit.
type byteSize int64

// UnmarshalText reads "16G", "512M", "64K" or bytes.
func (b *byteSize) UnmarshalText(text []byte) error {
	number, shift := string(text), 0
	for i, unit := range []string{"K", "M", "G", "T"} {
		if rest, ok := strings.CutSuffix(strings.ToUpper(number), unit); ok {
			number, shift = rest, 10*(i+1)
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > 1<<62>>shift {
		return fmt.Errorf("%q is not a size: write 16G, 512M or a number of bytes", text)
	}
	*b = byteSize(n << shift)
	return nil
}

// tree copies a directory. It also copies a file, as cp -r does.
func (c *copyCommand) tree(ctx context.Context, s *session, api *client.Client) error {
	from, fromRemote := parseRemote(c.From)
	to, toRemote := parseRemote(c.To)
	switch {
	case fromRemote && toRemote:
		return c.treeAcross(ctx, s, api, from, to)
	case toRemote:
		return c.treeUp(ctx, s, api, to)
	default:
		return c.treeDown(ctx, s, api, from)
	}
}

func (s *session) skip(name string) {
	fmt.Fprintf(s.Err, "left out: %s is not a file, directory or link\n", plain.Line(name))
}

// lastName returns the name for a copy of dir, "" when only the content of dir is meant, as in "dir/." and "..".
func lastName(dir string) string {
	switch name := path.Base(filepath.ToSlash(dir)); {
	case name == "." || name == ".." || name == "/" || strings.HasSuffix(dir, "/."):
		return ""
	default:
		return name
	}
}

func (c *copyCommand) treeUp(ctx context.Context, s *session, api *client.Client, to remote) error {
	info, err := os.Stat(c.From)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return c.upload(ctx, s, api, to)
	}
	in := inSandbox{api: api, id: to.id, user: c.User}
	meter := &meter{}
	defer s.progress(meter.what("copying to " + to.path))()
	return in.pipe(ctx, c.receiver(to, lastName(c.From), info.Mode()), func(w io.Writer) error {
		meter.w = w
		return pack(meter, c.From, s.skip)
	}, io.Discard)
}

func (c *copyCommand) receiver(to remote, name string, mode os.FileMode) []string {
	return []string{"/bin/sh", "-c", receiveTree, "sh", to.path, name, fmt.Sprintf("%o", mode&permissions)}
}

func (c *copyCommand) sender(from remote) []string {
	return []string{"/bin/sh", "-c", sendTree, "sh", from.path}
}

func (c *copyCommand) treeDown(ctx context.Context, s *session, api *client.Client, from remote) error {
	dir := c.To
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		dir = filepath.Join(dir, lastName(from.path))
	}
	in := inSandbox{api: api, id: from.id, user: c.User}
	read, write := io.Pipe()
	meter := &meter{w: write}
	end := s.progress(meter.what("copying " + from.path))
	defer end()
	var unpacked error
	var unpacker sync.WaitGroup
	unpacker.Go(func() {
		first := make([]byte, 1)
		if _, unpacked = io.ReadFull(read, first); unpacked == nil { // without any input no directory must be made
			unpacked = unpack(io.MultiReader(bytes.NewReader(first), read), dir, int64(c.MaxSize), s.skip)
		}
		if unpacked == nil {
			unpacked = discardTrailer(read)
		}
		_ = read.CloseWithError(unpacked) // always returns nil
	})
	err := in.pipe(ctx, c.sender(from), nil, meter)
	_ = write.CloseWithError(err) // an archive that ends early may look complete
	unpacker.Wait()
	if exit, ok := errors.AsType[*pipeExit](err); ok && exit.code == noDirectory {
		end()
		return c.download(ctx, s, api, from)
	}
	if unpacked != nil && !errors.Is(unpacked, err) {
		return fmt.Errorf("unpack the directory: %w", unpacked)
	}
	return err
}

// discardTrailer reads the padding that tar wrote after the end of its archive.
func discardTrailer(r io.Reader) error {
	if n, err := io.CopyN(io.Discard, r, maxTrailer); n == maxTrailer || err != nil && !errors.Is(err, io.EOF) {
		return errors.Join(errors.New("the sandbox sends data after the end of the archive"), err)
	}
	return nil
}

func (c *copyCommand) treeAcross(ctx context.Context, s *session, api *client.Client, from, to remote) error {
	meter := &meter{}
	defer s.progress(meter.what("copying to " + to.id))()
	source, target := inSandbox{api: api, id: from.id, user: c.User}, inSandbox{api: api, id: to.id, user: c.User}
	err := target.pipe(ctx, c.receiver(to, lastName(from.path), permissions), func(w io.Writer) error {
		meter.w = w
		return source.pipe(ctx, c.sender(from), nil, meter)
	}, io.Discard)
	if exit, ok := errors.AsType[*pipeExit](err); ok && exit.code == noDirectory {
		return fmt.Errorf("%s is not a directory: copy it without -r", c.From)
	}
	return err
}

// inSandbox runs the sandbox's end of a copy.
type inSandbox struct {
	api  *client.Client
	id   string
	user string
}

// pipeExit is the failure of a copy's command in the sandbox.
type pipeExit struct {
	code   int
	stderr string
}

func (e *pipeExit) Error() string {
	switch {
	case e.code == codeNotFound:
		return "the sandbox has no tar: " + e.stderr
	case e.stderr == "":
		return fmt.Sprintf("tar in the sandbox ended with %d", e.code)
	}
	return e.stderr
}

// pipe runs a command and waits until it ends. feed writes its input; its output
// goes to out. When feed or out fails, or ctx ends, the command is killed.
func (b inSandbox) pipe(ctx context.Context, argv []string, feed func(io.Writer) error, out io.Writer) error {
	stream, err := b.api.Start(context.WithoutCancel(ctx), b.id, client.Command{Cmd: argv[0], Args: argv[1:], User: b.user}, client.StartOptions{Stdin: feed != nil})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // it cannot fail
	kill := func() {
		if stream.Signal(client.SIGKILL) != nil {
			_ = stream.Close() // the signal was not sent: the stream is broken
		}
	}
	defer context.AfterFunc(ctx, kill)()
	input := &watched{w: stream}
	var feeding sync.WaitGroup
	var fed error
	if feed != nil {
		feeding.Go(func() {
			switch fed = feed(input); {
			case fed == nil:
				_ = stream.CloseStdin() // when it fails the command has ended, and its exit is the result
			case input.err == nil:
				kill()
			}
		})
	}
	stderr, sunk := &tailBuffer{}, &sink{w: out, end: kill}
	exit, err := stream.Copy(sunk, stderr)
	_ = stream.Close() // ends feed
	feeding.Wait()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case sunk.err != nil:
		return sunk.err
	case fed != nil && input.err == nil:
		return fed
	case err != nil:
		return err
	case exit.Code != 0:
		return &pipeExit{exit.Code, stderr.String()}
	}
	return nil
}

// watched records the error of its writer.
type watched struct {
	w   io.Writer
	err error
}

func (w *watched) Write(p []byte) (n int, err error) {
	n, w.err = w.w.Write(p)
	return n, w.err
}

// tailBuffer keeps the end of what is written to it.
type tailBuffer struct{ text []byte }

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	t.text = bytes.Clone(t.text[max(0, len(t.text)-stderrKept):])
	return len(p), nil
}

// String returns the text made safe for a terminal.
func (t *tailBuffer) String() string {
	var lines []string
	for line := range strings.Lines(string(t.text)) {
		lines = append(lines, plain.Line(strings.TrimSuffix(line, "\n")))
	}
	return strings.Join(lines, "\n")
}
