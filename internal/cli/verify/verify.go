// Package verify shows, with sandboxes of a server, which values differ between
// the copies that a fork makes and which repeat. It uses only the Go SDK. It
// starts programs in a sandbox and forks it; then it collects ids, keys, random
// numbers and clocks from the parent and from each copy, and compares them.
//
// docs/fork-safety.md explains what is expected and why.
package verify

import (
	"bytes"
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"wrenn.dev/client"
)

//go:embed probes
var probes embed.FS

const (
	// dir is where the probes are in the sandbox. It is not sticky, as /tmp is:
	// root must be allowed to open pipes of others, see fs.protected_fifos in proc_sys_fs(5).
	dir = "/tmp/wrenn-verify"
	// lifetime is the sandboxes' timeout, which ends them when this program was killed.
	lifetime = 15 * time.Minute
	// probeTimeout is long enough to start Python three times under emulation on a busy machine.
	probeTimeout = 3 * time.Minute
	// cleanTimeout bounds deleting the sandboxes after an interrupt.
	cleanTimeout = time.Minute
	// concurrent bounds concurrent requests to the server: each starts programs in a guest.
	concurrent = 8
	// MaxCount is the largest number of copies in one run.
	MaxCount = 50
)

// API is the part of the server's API that is used; *client.Client has all but Fork in this form.
type API interface {
	CreateSandbox(ctx context.Context, s client.CreateSandbox) (*client.Sandbox, error)
	DeleteSandbox(ctx context.Context, id string) error
	Exec(ctx context.Context, id string, cmd client.Command) (*client.Result, error)
	Sandboxes(ctx context.Context, list client.ListSandboxes) iter.Seq2[client.Sandbox, error]
	WriteFile(ctx context.Context, id, name string, content io.Reader, opts client.FileOptions) error
	// Fork makes n copies from the same moment and returns their ids. When some could not be made,
	// it returns the ids of the others and an error.
	Fork(ctx context.Context, id string, n int) ([]string, error)
}

// Options are the settings of Fork. Count is required.
type Options struct {
	Count    int    // copies, from 1 to MaxCount
	Template string // "" means the server's default
	// Outside is an HTTP server, HOST:PORT, to which a connection is open during
	// the fork; "" means none.
	Outside string
	Keep    bool // do not delete the sandboxes at the end
	// Progress is called with what is being done; may be nil.
	Progress func(what string)
}

// Report is the result of Fork.
type Report struct {
	OK      bool              `json:"ok"` // no check failed
	Parent  string            `json:"parent"`
	Copies  []string          `json:"copies"`
	Kept    bool              `json:"kept"`    // the sandboxes still exist
	Guest   map[string]string `json:"guest"`   // versions of python, node and openssl, if installed
	TookMS  map[string]int64  `json:"took_ms"` // milliseconds by step: create, start, fork, ask
	Results []Result          `json:"results"` // in the order of the checks
}

// Fork creates a sandbox, forks it, compares the copies, and deletes all of them.
// It returns an error when the server fails or a probe cannot run. Failed checks
// are not an error: they are in the report.
func Fork(ctx context.Context, api API, opts Options) (_ *Report, err error) {
	if opts.Count < 1 || opts.Count > MaxCount {
		return nil, fmt.Errorf("%d copies: from 1 to %d can be compared", opts.Count, MaxCount)
	}
	r := &run{api: api, opts: opts, mark: map[string]string{"wrenn.verify": rand.Text()}, report: &Report{Kept: opts.Keep, TookMS: map[string]int64{}}}
	defer func() {
		if !opts.Keep {
			err = errors.Join(err, r.clean(ctx))
		} else if err != nil {
			err = fmt.Errorf("%w (kept: %s)", err, strings.Join(r.ids(), ", "))
		}
	}()
	for _, step := range []struct {
		name, what string
		do         func(context.Context) error
	}{
		{"create", "creating a sandbox", r.create},
		{"start", "starting programs in it", r.start},
		{"fork", fmt.Sprintf("forking %d copies", opts.Count), r.fork},
		{"ask", "asking each copy", r.ask},
	} {
		if opts.Progress != nil {
			opts.Progress(step.what)
		}
		began := time.Now()
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
		r.report.TookMS[step.name] = time.Since(began).Milliseconds()
	}
	r.report.Results = judge(r.found)
	r.report.OK = true
	for _, result := range r.report.Results {
		r.report.OK = r.report.OK && result.Verdict != Failed
	}
	return r.report, nil
}

// run is the state of one Fork.
type run struct {
	api    API
	opts   Options
	mark   map[string]string // metadata of the run's sandboxes: copies inherit the parent's
	report *Report
	found  evidence
}

// ids returns the ids of the sandboxes made so far, the parent first.
func (r *run) ids() []string {
	if r.report.Parent == "" {
		return nil
	}
	return append([]string{r.report.Parent}, r.report.Copies...)
}

func (r *run) create(ctx context.Context) error {
	sb, err := r.api.CreateSandbox(ctx, client.CreateSandbox{
		Template: r.opts.Template, Timeout: lifetime, Metadata: r.mark,
	})
	if err != nil {
		return err
	}
	r.report.Parent = sb.ID
	return r.upload(ctx)
}

// upload writes the probes into the sandbox.
func (r *run) upload(ctx context.Context) error {
	pair, err := certificate()
	if err != nil {
		return err
	}
	files := map[string][]byte{"certificate.pem": pair}
	entries, err := probes.ReadDir("probes")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if files[e.Name()], err = probes.ReadFile("probes/" + e.Name()); err != nil {
			return err
		}
	}
	for name, content := range files {
		if err := r.api.WriteFile(ctx, r.report.Parent, dir+"/"+name, bytes.NewReader(content), client.FileOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// start starts the programs that run across the fork.
func (r *run) start(ctx context.Context) error {
	facts, err := r.sh(ctx, r.report.Parent, "start.sh", r.opts.Outside)
	if err != nil {
		return err
	}
	r.report.Guest = map[string]string{}
	for _, name := range []string{python, nodeJS, openssl} {
		if version, ok := facts[name]; ok {
			r.report.Guest[name] = version
		}
	}
	r.found = evidence{
		parent: r.report.Parent, has: facts, outside: r.opts.Outside != "",
		answers: map[string]map[string]string{}, clocks: map[string]reading{},
	}
	r.found.before, err = r.clock(ctx, r.report.Parent)
	return err
}

func (r *run) fork(ctx context.Context) error {
	var err error
	r.report.Copies, err = r.api.Fork(ctx, r.report.Parent, r.opts.Count)
	if err == nil && len(r.report.Copies) != r.opts.Count {
		err = fmt.Errorf("the server made %d copies of %d", len(r.report.Copies), r.opts.Count)
	}
	r.found.copies = r.report.Copies
	return err
}

// ask collects from the parent and all copies, concurrently.
func (r *run) ask(ctx context.Context) error {
	ids := r.ids()
	answers, clocks := make([]map[string]string, len(ids)), make([]reading, len(ids))
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(concurrent)
	for i, id := range ids {
		work.Go(func() (err error) {
			if clocks[i], err = r.clock(ctx, id); err == nil {
				answers[i], err = r.collect(ctx, id)
			}
			return err
		})
	}
	if err := work.Wait(); err != nil {
		return err
	}
	for i, id := range ids {
		r.found.answers[id], r.found.clocks[id] = answers[i], clocks[i]
	}
	return nil
}

// collect returns the values of one sandbox.
func (r *run) collect(ctx context.Context, id string) (map[string]string, error) {
	out := map[string]string{}
	if r.found.has[python] != "" { // first, because each connection changes the sequence number of the next one
		answer, err := r.script(ctx, id, "root", "python3", dir+"/connect.py")
		if err != nil {
			out["error.connect"] = err.Error()
		}
		maps.Copy(out, answer)
	}
	answer, err := r.sh(ctx, id, "collect.sh")
	maps.Copy(out, answer)
	return out, err
}

// sh runs a script of the probes and returns the lines that it prints.
func (r *run) sh(ctx context.Context, id, name string, args ...string) (map[string]string, error) {
	return r.script(ctx, id, "", "/bin/sh", append([]string{dir + "/" + name}, args...)...)
}

func (r *run) script(ctx context.Context, id, user, cmd string, args ...string) (map[string]string, error) {
	result, err := r.api.Exec(ctx, id, client.Command{Cmd: cmd, Args: args, User: user, Timeout: probeTimeout})
	if err != nil {
		return nil, err
	}
	if result.ExitCode != 0 {
		return nil, fmt.Errorf("%s in sandbox %s: %s: %s", args[0], id, result.Status, clip(string(result.Stderr)))
	}
	return parse(string(result.Stdout)), nil
}

// clock reads a guest's clock three times and returns the reading that took the shortest time.
func (r *run) clock(ctx context.Context, id string) (reading, error) {
	var best reading
	for i := range 3 {
		var now reading
		now.sent = time.Now()
		result, err := r.api.Exec(ctx, id, client.Command{Cmd: "date", Args: []string{"-u", "+%s.%N"}})
		now.received = time.Now()
		if err != nil {
			return best, err
		}
		if now.guest, err = parseTime(strings.TrimSpace(string(result.Stdout))); err != nil {
			return best, fmt.Errorf("date in sandbox %s: %w", id, err)
		}
		if i == 0 || now.received.Sub(now.sent) < best.received.Sub(best.sent) {
			best = now
		}
	}
	return best, nil
}

// clean deletes all sandboxes of the run, also after an interrupt. It lists them,
// because the response with the ids of copies may have been lost.
func (r *run) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	var work errgroup.Group
	work.SetLimit(concurrent)
	for sb, err := range r.api.Sandboxes(ctx, client.ListSandboxes{Metadata: r.mark}) {
		if err != nil {
			return errors.Join(fmt.Errorf("list the sandboxes to delete: %w", err), work.Wait())
		}
		if sb.State == client.Stopped || sb.State == client.Failed {
			continue
		}
		work.Go(func() error {
			if err := r.api.DeleteSandbox(ctx, sb.ID); err != nil {
				return fmt.Errorf("delete sandbox %s: %w", sb.ID, err)
			}
			return nil
		})
	}
	return work.Wait()
}
