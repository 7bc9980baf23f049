package sandbox

import (
	"slices"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/wake"
)

const (
	// bootsToSnapshot is how many sandboxes of a size boot before the size gets a snapshot.
	bootsToSnapshot = 3
	// maxSizeCounts bounds the sizes that are counted; callers choose them.
	maxSizeCounts = 1000
)

// sizes decides which sizes get a base snapshot because they are asked for often,
// and which lose it because others were used since and there are too many.
type sizes struct {
	most int       // snapshots, besides those of Warm; 0 is none
	wake wake.Chan // a snapshot is wanted

	mu     sync.Mutex               // guards what follows
	boots  map[wrenn.Size]int       // since the last snapshot of it was wanted
	wanted []wrenn.Size             // that are to get a snapshot, the oldest wish first
	kept   map[wrenn.Size]bool      // those of Warm
	uses   map[wrenn.Size]time.Time // when the snapshot was last used
}

func newSizes(most int) sizes {
	return sizes{most: most, wake: wake.New(), boots: map[wrenn.Size]int{}, kept: map[wrenn.Size]bool{}, uses: map[wrenn.Size]time.Time{}}
}

// booted records that a sandbox of the size boots for lack of a snapshot.
func (s *sizes) booted(size wrenn.Size) {
	if s.most == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.boots) >= maxSizeCounts {
		clear(s.boots)
	}
	s.boots[size]++
	if s.boots[size] < bootsToSnapshot || slices.Contains(s.wanted, size) {
		return
	}
	delete(s.boots, size)
	s.wanted = append(s.wanted, size)
	s.wake.Notify()
}

// used records that a sandbox is made from the size's snapshot.
func (s *sizes) used(size wrenn.Size) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uses[size] = time.Now()
}

// keep excepts a size from removal.
func (s *sizes) keep(size wrenn.Size) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept[size] = true
}

// next returns the size that is to get a snapshot next.
func (s *sizes) next() (wrenn.Size, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.wanted) == 0 {
		return wrenn.Size{}, false
	}
	return s.wanted[0], true
}

// isWanted reports whether the size is to get a snapshot, which is not usable yet.
func (s *sizes) isWanted(size wrenn.Size) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.wanted, size)
}

// done removes the size from those that are wanted.
func (s *sizes) done(size wrenn.Size) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = slices.DeleteFunc(s.wanted, func(other wrenn.Size) bool { return other == size })
}

// extra returns those of the sizes that have a snapshot, and forgets them, that are
// too many: the ones that were not used for the longest time. Those of an earlier run
// of the agent were not used.
func (s *sizes) extra(have []wrenn.Size) []wrenn.Size {
	s.mu.Lock()
	defer s.mu.Unlock()
	have = slices.DeleteFunc(have, func(size wrenn.Size) bool { return s.kept[size] })
	slices.SortFunc(have, func(a, b wrenn.Size) int { return s.uses[a].Compare(s.uses[b]) })
	extra := have[:max(0, len(have)-s.most)]
	for _, size := range extra {
		delete(s.uses, size)
	}
	return extra
}
