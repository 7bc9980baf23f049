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

	"wrenn/client"
	"wrenn/internal/plain"
)

const (
	// noDirectory is the exit code of sendTree for what is there and is none.
	noDirectory = 65
	// maxTrailer bounds what follows the end of an archive: tar fills a last block of 10 KiB.
	maxTrailer = 1 << 20
	// saidKept is how much of tar's complaints is kept.
	saidKept = 4 << 10
)

// The two ends in a sandbox, for /bin/sh. $1 is the directory; an empty one is
// the home, and ~ is for the shell there. As cp, receiveTree copies into a directory
// that exists, under the name $2, and else makes the directory, with mode $3.
const (
	resolveTree = `case $1 in '~') d=$HOME ;; '~/'*) d=$HOME/${1#'~/'} ;; '') d=. ;; *) d=$1 ;; esac; `
	sendTree    = resolveTree + `if [ -d "$d" ]; then cd -- "$d" && exec tar -cf - .; fi
		[ -e "$d" ] && exit 65; echo "$d: no such directory" >&2; exit 1`
	receiveTree = resolveTree + `if [ -d "$d" ]; then d=$d/$2; fi
		[ -d "$d" ] || mkdir -p -m "$3" -- "$d" || exit; cd -- "$d" && exec tar -xpof -`
)

// byteSize is a number of bytes as people write it.
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
		return fmt.Errorf("%q is no size: write 16G, 512M or bytes", text)
	}
	*b = byteSize(n << shift)
	return nil
}

// tree copies a directory, or a file that was named as one.
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
	fmt.Fprintf(s.Err, "left out: %s is no file, directory or link\n", plain.Line(name))
}

// lastName is what a copy of dir is called: nothing when its content is meant, as in "dir/." and "..".
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
		if _, unpacked = io.ReadFull(read, first); unpacked == nil { // else there is nothing to make a directory for
			unpacked = unpack(io.MultiReader(bytes.NewReader(first), read), dir, int64(c.MaxSize), s.skip)
		}
		if unpacked == nil {
			unpacked = discardTrailer(read)
		}
		_ = read.CloseWithError(unpacked) // always nil
	})
	err := in.pipe(ctx, c.sender(from), nil, meter)
	_ = write.CloseWithError(err) // an archive that ends early may look like a whole one
	unpacker.Wait()
	if exit, ok := errors.AsType[*pipeExit](err); ok && exit.code == noDirectory {
		end()
		return c.download(ctx, s, api, from)
	}
	if unpacked != nil && !errors.Is(unpacked, err) {
		return fmt.Errorf("what the sandbox sent: %w", unpacked)
	}
	return err
}

// discardTrailer reads what tar wrote after the end of its archive.
func discardTrailer(r io.Reader) error {
	if n, err := io.CopyN(io.Discard, r, maxTrailer); n == maxTrailer || err != nil && !errors.Is(err, io.EOF) {
		return errors.Join(errors.New("the sandbox does not end what it sends"), err)
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
		return fmt.Errorf("%s is no directory: copy it without -r", c.From)
	}
	return err
}

// inSandbox runs the far end of a copy.
type inSandbox struct {
	api  *client.Client
	id   string
	user string
}

// pipeExit is a far end that failed.
type pipeExit struct {
	code int
	said string
}

func (e *pipeExit) Error() string {
	switch {
	case e.code == codeNotFound:
		return "the sandbox has no tar: " + e.said
	case e.said == "":
		return fmt.Sprintf("tar in the sandbox ended with %d", e.code)
	}
	return e.said
}

// pipe runs a command to its end; feed writes its input, its output goes to out.
// When feed or out fail, or ctx ends, the command is killed.
func (b inSandbox) pipe(ctx context.Context, argv []string, feed func(io.Writer) error, out io.Writer) error {
	stream, err := b.api.Start(context.WithoutCancel(ctx), b.id, client.Command{Cmd: argv[0], Args: argv[1:], User: b.user}, client.StartOptions{Stdin: feed != nil})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // it cannot fail
	kill := func() {
		if stream.Signal(client.SIGKILL) != nil {
			_ = stream.Close() // nobody can reach it
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
				_ = stream.CloseStdin() // a command that ended says why by itself
			case input.err == nil:
				kill()
			}
		})
	}
	said, sunk := &tailBuffer{}, &sink{w: out, end: kill}
	exit, err := stream.Copy(sunk, said)
	_ = stream.Close() // wakes who feeds
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
		return &pipeExit{exit.Code, said.String()}
	}
	return nil
}

// watched remembers that writing failed.
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
	t.text = bytes.Clone(t.text[max(0, len(t.text)-saidKept):])
	return len(p), nil
}

// String is for people.
func (t *tailBuffer) String() string {
	var lines []string
	for line := range strings.Lines(string(t.text)) {
		lines = append(lines, plain.Line(strings.TrimSuffix(line, "\n")))
	}
	return strings.Join(lines, "\n")
}
