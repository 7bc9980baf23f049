package wrenn

import "time"

// StoreRounds is how far a host is with the rounds of its uploads to the snapshot store.
// An upload of a round refers to objects of that round and the last alone, so what nothing
// refers to two rounds later is garbage.
type StoreRounds struct {
	Known   bool   // false of an agent that knows no rounds
	Current uint64 // of uploads that begin now
	Oldest  uint64 // of those that are at work, or begin now
}

// StoreReferences are the keys in the snapshot store that a host refers to.
type StoreReferences struct {
	Keys    []string
	Unknown []SandboxID // whose keys the host cannot tell
}

// StoreCollection says what is kept when what nothing needs of a team is deleted from the
// snapshot store.
type StoreCollection struct {
	Team TeamID
	// Records must be in the store, and keep what they refer to. So do Lost, if they exist.
	// Others are kept if they exist.
	Records, Lost, Others []string
	Through               uint64        // the last round of which objects are deleted
	MinAge                time.Duration // of what is deleted, by the store's clock
	DryRun                bool
}

// StoreCollected is what was deleted or, in a dry run, would be.
type StoreCollected struct {
	Objects, Bytes int64
	// YoungObjects are those that nothing needs and that are kept for now, with YoungBytes:
	// an upload that is at work may still refer to them.
	YoungObjects, YoungBytes int64

	More   bool          // than one call deletes
	Listed []StoreObject // the first of Objects
}

// StoreObject is an object of the snapshot store.
type StoreObject struct {
	Key   string
	Bytes int64
}
