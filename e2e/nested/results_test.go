//go:build nested

package nested

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"wrenn.dev/e2e/nested/l1"
	"wrenn.dev/internal/testkit"
)

// results collects what the programs in L1 print: lines of `go test -v`.
type results struct {
	t       *testing.T
	program string              // the one that runs now
	tests   map[string][]result // by program
	codes   map[string]int
}

type result struct{ name, verdict string }

// verdict matches the line at the end of a test; those of subtests are indented.
var verdict = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+)`)

// line handles a line of output, and shows it at once: the run takes minutes.
func (r *results) line(line string) {
	if r.tests == nil {
		r.tests, r.codes = map[string][]result{}, map[string]int{}
	}
	fmt.Printf("    %s| %s\n", r.program, line)
	switch {
	case strings.HasPrefix(line, l1.Begin):
		r.program = strings.TrimSpace(strings.TrimPrefix(line, l1.Begin))
	case strings.HasPrefix(line, l1.End):
		fields := strings.Fields(strings.TrimPrefix(line, l1.End))
		code, err := strconv.Atoi(fields[len(fields)-1])
		testkit.Must(r.t, err)
		r.codes[r.program] = code
		r.program = ""
	default:
		if m := verdict.FindStringSubmatch(line); m != nil {
			r.tests[r.program] = append(r.tests[r.program], result{name: m[2], verdict: m[1]})
		}
	}
}

// report makes a subtest of each test that ran in L1.
func (r *results) report(plan l1.Plan) {
	for _, p := range plan.Programs {
		r.t.Run(p.Name, func(t *testing.T) {
			for _, res := range r.tests[p.Name] {
				t.Run(res.name, func(t *testing.T) {
					switch res.verdict {
					case "FAIL":
						t.Fail()
					case "SKIP":
						skip(t, "left out in L1, see its output")
					}
				})
			}
			if code, ended := r.codes[p.Name]; !ended || code != 0 || len(r.tests[p.Name]) == 0 {
				t.Errorf("%d tests ended; exit code %d, known: %v", len(r.tests[p.Name]), code, ended)
			}
		})
	}
}
