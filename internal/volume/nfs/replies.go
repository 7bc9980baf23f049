package nfs

import "sync"

// maxReplies is how many replies are kept. A client repeats a call after its connection broke;
// it has no more calls under way than the server answers at once, by all its connections.
const maxReplies = 64

// replies are the last replies to calls whose repetition would have another result:
// the second removal of a file fails. A client that lost its connection sends calls again.
type replies struct {
	mu   sync.Mutex
	kept map[replyKey]*reply
	age  []replyKey // oldest first
}

type replyKey struct {
	xid, procedure, checksum uint32
}

type reply struct {
	done chan struct{}
	data []byte
}

// do returns the reply of f, or the earlier one to the same call.
func (r *replies) do(key replyKey, f func() []byte) []byte {
	r.mu.Lock()
	if known := r.kept[key]; known != nil {
		r.mu.Unlock()
		<-known.done
		return known.data
	}
	if r.kept == nil {
		r.kept = make(map[replyKey]*reply)
	}
	own := &reply{done: make(chan struct{})}
	r.kept[key] = own
	r.age = append(r.age, key)
	if len(r.age) > maxReplies {
		delete(r.kept, r.age[0])
		r.age = r.age[1:]
	}
	r.mu.Unlock()
	own.data = f()
	close(own.done)
	return own.data
}
