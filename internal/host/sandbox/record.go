package sandbox

import (
	"wrenn/internal/durable"
	"wrenn/internal/host/sandbox/journal"
)

// commit changes the journal, on the disk and in memory. After an error neither
// has changed.
func (s *Sandbox) commit(what string, change func(*journal.Journal)) error {
	return s.commitBy(durable.WriteFile, what, change)
}

// giveBack is a commit by which space is given back: it works on a full disk.
func (s *Sandbox) giveBack(what string, change func(*journal.Journal)) error {
	return s.commitBy(s.m.reserve.WriteFile, what, change)
}

func (s *Sandbox) commitBy(write durable.WriteFunc, what string, change func(*journal.Journal)) error {
	s.crash(what + " to be noted")
	s.need(append(s.journal.Snapshots(), s.journal.With(change).Snapshots()...))
	err := s.journal.Commit(write, change)
	s.need(s.journal.Snapshots())
	if err != nil {
		return err
	}
	s.crash(what + " noted")
	return nil
}
