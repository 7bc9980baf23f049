package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"wrenn.dev/internal/durable"
)

// roundName is the file that has the round of uploads, in the state directory.
const roundName = "store-round"

// rounds numbers the uploads of this host, see package archive. A control plane tells the
// number, which never becomes less, also for the next agent.
type rounds struct {
	path string

	telling sync.Mutex // one tell at a time; before mu
	mu      sync.Mutex // guards what follows
	current uint64
	at      map[uint64]int // uploads that are at work, by their rounds
}

// openRounds reads the round of the agent before.
func openRounds(stateDir string) (*rounds, error) {
	r := &rounds{path: filepath.Join(stateDir, roundName), at: map[uint64]int{}}
	text, err := os.ReadFile(r.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return r, nil
	case err == nil:
		r.current, err = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	}
	if err != nil { // with an older round uploads could refer to what is being deleted
		return nil, fmt.Errorf("round of uploads: %w", err)
	}
	return r, nil
}

// tell lets uploads that begin from now on be of a round, unless they are of a later one.
// It survives a power cut.
func (r *rounds) tell(round uint64) error {
	r.telling.Lock()
	defer r.telling.Unlock()
	if current, _ := r.state(); round <= current {
		return nil
	}
	if err := durable.WriteFile(r.path, []byte(strconv.FormatUint(round, 10)+"\n"), 0o600); err != nil {
		return fmt.Errorf("round of uploads: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current = round
	return nil
}

// begin begins an upload, and returns its round. The caller calls end once, when what the
// upload has stored is in a journal or a manifest, or never will be.
func (r *rounds) begin() (round uint64, end func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	round = r.current
	r.at[round]++
	return round, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.at[round]--; r.at[round] == 0 {
			delete(r.at, round)
		}
	}
}

// state returns the round of uploads that begin now, and the earliest of those that are
// at work or begin.
func (r *rounds) state() (current, oldest uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	oldest = r.current
	for round := range r.at {
		oldest = min(oldest, round)
	}
	return r.current, oldest
}
