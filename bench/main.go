// Command bench measures Wrenn's promises, each against the bare limit in the
// same run: machines are shared and noisy, so only ratios are worth quoting.
//
//	go run ./bench [-run regexp] [-rounds N] […]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"text/tabwriter"
	"time"

	"wrenn.dev/internal/host/fakehost"
	program "wrenn.dev/internal/run"
)

// row is one line of the table.
type row struct {
	what  string
	ours  string
	bare  string // "" without a bare limit
	ratio spread
	limit string // the promise; "" when the number is only informative
}

// spread is the median of many values and the quartiles.
type spread struct{ low, median, high float64 }

// benchmark measures one subject. It cleans up after itself, also when ctx ends.
type benchmark struct {
	name string
	run  func(ctx context.Context, b *bench) ([]row, error)
}

// bench has the settings and files that the benchmarks share.
type bench struct {
	rounds int
	dir    string // a temporary directory with a short path
	stacks int    // number of stacks started

	prefix string       // of the names of namespaces and links
	slots  netip.Prefix // addresses for them

	fileMiB   int           // size of a file to move
	clients   int           // concurrent clients
	think     time.Duration // a client's average pause between two requests
	lasts     time.Duration // duration of load and of watching a fleet
	hosts     int           // simulated hosts
	sandboxes int           // sandboxes on each simulated host
	live      int           // sandboxes running at the same time
	codeMB    int           // translated code that each of them keeps; 0 means the agent's default
	window    time.Duration // how long an idle sandbox is watched
	sockets   int           // idle WebSockets
	python    string        // an interpreter with E2B's SDK; "" measures without it
}

var benchmarks = []benchmark{
	{"boot", coldBoot},
	{"restore", restore},
	{"memory", restoreByMemory},
	{"forks", tenAtOnce},
	{"envd", envd},
	{"slots", slots},
	{"exec", execRoundTrip},
	{"upload", upload},
	{"download", download},
	{"create", create},
	{"ready", createReady},
	{"copies", copies},
	{"resume", resume},
	{"still", still},
	{"sizes", sizes},
	{"idle", idle},
	{"density", density},
	{"load", load},
	{"neighbors", neighbors},
	{"byname", byName},
	{"fleet", fleet},
	{"gateway", ofEachKind(gatewayRequests)},
	{"bodies", ofEachKind(gatewayTransfers)},
	{"sockets", gatewaySockets},
	{"wake", wake},
	{"sdk", sdk},
	{"builds", builds},
	{"rolling", rolling},
	{"drain", drainFifty},
}

func main() {
	if part, ok := fakehost.Part(); ok {
		program.Main(part)
	}
	if part, ok := partOf(os.Args[1:]); ok {
		if err := part(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// partOf returns what a process of a benchmark that runs this program does.
func partOf(args []string) (part func() error, ok bool) {
	switch {
	case len(args) == 2 && args[0] == fakeHostCommand:
		return func() error { return serveFakeHost(args[1]) }, true
	case len(args) == 1 && args[0] == guestServerCommand:
		return serveGuest, true
	default:
		return nil, false
	}
}

func run(ctx context.Context) (err error) {
	only := flag.String("run", ".", "regular expression of the benchmarks to run")
	rounds := flag.Int("rounds", 5, "pairs of measurements of each number; the median counts")
	b := &bench{}
	flag.StringVar(&b.prefix, "prefix", "wbe", "of the names of network namespaces and links, at most 7 letters and digits")
	flag.TextVar(&b.slots, "range", netip.MustParsePrefix("10.224.0.0/16"), "private addresses for network slots, a /16 or larger")
	flag.IntVar(&b.fileMiB, "file", 128, "MiB of a file that is moved")
	flag.IntVar(&b.clients, "clients", 200, "clients at once")
	flag.DurationVar(&b.think, "think", time.Second, "how long each of them waits between two requests, on average; 0 is as fast as they are answered")
	flag.DurationVar(&b.lasts, "for", time.Minute, "how long clients ask, and a simulated fleet is watched")
	flag.IntVar(&b.hosts, "hosts", 1000, "simulated hosts")
	flag.IntVar(&b.sandboxes, "sandboxes", 100, "sandboxes on each of them")
	flag.IntVar(&b.live, "live", 8, "sandboxes that are alive at once")
	flag.IntVar(&b.codeMB, "code", 0, "MiB of translated code that each of them keeps (driver.qemu_code_mb); 0 is the agent's default")
	flag.DurationVar(&b.window, "window", 30*time.Second, "how long something idle is watched")
	flag.IntVar(&b.sockets, "sockets", 5000, "idle WebSockets")
	flag.StringVar(&b.python, "python", "", "a Python interpreter that has the package e2b, for sdk")
	flag.Parse()
	chosen, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/tmp", "wb")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o711); err != nil { // machines run as other users
		return err
	}
	b.rounds, b.dir = *rounds, dir
	var rows []row
	for _, bm := range benchmarks {
		if !chosen.MatchString(bm.name) {
			continue
		}
		fmt.Fprintln(os.Stderr, "measuring", bm.name, "…")
		r, err := bm.run(ctx, b)
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", bm.name, err), print(rows))
		}
		rows = append(rows, r...)
	}
	return print(rows)
}

func print(rows []row) error {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "what\tWrenn\tbare\tratio\tquartiles\tpromised")
	for _, r := range rows {
		ratio, quartiles := "", ""
		if r.ratio != (spread{}) {
			ratio, quartiles = fmt.Sprintf("%.2f", r.ratio.median), fmt.Sprintf("%.2f-%.2f", r.ratio.low, r.ratio.high)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", r.what, r.ours, r.bare, ratio, quartiles, r.limit)
	}
	return table.Flush()
}

// sample is one measurement of one or more figures.
type sample []float64

// comparison compares a figure of Wrenn with that of the bare limit: the medians, and
// the ratios of each pair.
type comparison struct {
	ours, bare float64
	ratio      spread
}

// pairs measures ours and bare in turn, so that a machine whose speed drifts does
// not favor either, and compares each figure of the samples.
func pairs(ctx context.Context, rounds int, ours, bare func(context.Context) (sample, error)) ([]comparison, error) {
	var all []struct{ ours, bare sample }
	for range rounds {
		o, err := ours(ctx)
		if err != nil {
			return nil, err
		}
		b, err := bare(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, struct{ ours, bare sample }{o, b})
	}
	var result []comparison
	for i := range all[0].ours {
		var os, bs, ratios []float64
		for _, pair := range all {
			os, bs, ratios = append(os, pair.ours[i]), append(bs, pair.bare[i]), append(ratios, pair.ours[i]/pair.bare[i])
		}
		result = append(result, comparison{median(os), median(bs), spreadOf(ratios)})
	}
	return result, nil
}

func median(xs []float64) float64 { return quantile(xs, 0.5) }

// quantile returns the q-quantile of xs, 0 when xs is empty.
func quantile(xs []float64, q float64) float64 {
	xs = slices.Sorted(slices.Values(xs))
	if len(xs) == 0 {
		return 0
	}
	return xs[min(int(q*float64(len(xs))), len(xs)-1)]
}

func spreadOf(xs []float64) spread {
	return spread{quantile(xs, 0.25), median(xs), quantile(xs, 0.75)}
}

func ms(seconds float64) string { return fmt.Sprintf("%.1f ms", seconds*1000) }

func mibs(perSecond float64) string { return fmt.Sprintf("%.0f MiB/s", perSecond) }

// timed returns how long f took, in seconds.
func timed(f func() error) (float64, error) {
	began := time.Now()
	err := f()
	return time.Since(began).Seconds(), err
}
