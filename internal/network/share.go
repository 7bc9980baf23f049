package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"wrenn.dev/internal/netns"
)

// All connections of all guests are in the connection table of the host, next to
// the host's own. A full table refuses connections to everybody, so each slot has
// a share of it. A share is for connections that are open, which the kernel counts,
// and for those that were closed and stay in the table for closingSeconds, which
// it does not count: the rate of new connections bounds them.
const (
	closingSeconds = 10   // TIME_WAIT; the kernel's default of 120 holds twelve times as many
	burstSeconds   = 5    // of new connections at once
	largestShare   = 6144 // 4096 open ones, and 136 a second
	smallestShare  = 1024 // with less, ordinary programs fail
	// The slots together have three quarters of the table.
	tableParts, slotParts = 4, 3

	largestTable    = 1 << 20 // to which a smaller one is raised
	defaultTable    = 1 << 16 // where the kernel does not show its limit
	bytesPerEntry   = 384
	tableSysctl     = "net/netfilter/nf_conntrack_max"
	timeWaitSysctl  = "net/netfilter/nf_conntrack_tcp_timeout_time_wait"
	fiveDaysSeconds = 5 * 24 * 60 * 60 // the kernel's default for an established connection
)

// share is what one slot may have of the connection table.
type share struct {
	open      int    // connections at a time
	perSecond uint64 // new ones
	burst     uint32 // new ones at once
}

// shareOf returns the share of each slot in a table of that many entries.
func (c Config) shareOf(entries int) share {
	each := min(max(entries/tableParts*slotParts/c.Max, smallestShare), largestShare)
	if c.Connections != 0 {
		each = c.Connections * 3 / 2
	}
	perSecond := max(1, each/3/(closingSeconds+burstSeconds))
	return share{open: cmp.Or(c.Connections, each*2/3), perSecond: uint64(perSecond), burst: uint32(perSecond * burstSeconds)}
}

// wantedTable returns how large the table must be for the largest share of every
// slot. It takes at most a 64th of the memory.
func (c Config) wantedTable(memory uint64) int {
	return min(c.Max*largestShare/slotParts*tableParts, largestTable, int(memory/64/bytesPerEntry))
}

// setShare sets the share of each slot, by the size of the host's table, which it
// raises if it is too small. The limit of the table is the whole host's, and is
// never lowered. The table must have been written: that loads the kernel's module.
func (h *host) setShare(ctx context.Context) error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("memory of this machine: %w", err)
	}
	entries, err := h.tableSize()
	if err != nil {
		return err
	}
	if wanted := h.cfg.wantedTable(info.Totalram * uint64(info.Unit)); entries < wanted {
		err := netns.Do(h.cfg.HostNamespace, func() error { return writeSysctl(tableSysctl, strconv.Itoa(wanted)) })
		if err == nil {
			h.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "raised the limit of the host's connection table",
				slog.String("sysctl", tableSysctl), slog.Int("from", entries), slog.Int("to", wanted))
			entries = wanted
		}
	}
	h.cfg.share = h.cfg.shareOf(entries)
	return nil
}

// tableSize returns how many entries the host's connection table may have.
func (h *host) tableSize() (entries int, err error) {
	err = netns.Do(h.cfg.HostNamespace, func() error {
		text, err := os.ReadFile(sysctlDir + tableSysctl)
		if errors.Is(err, os.ErrNotExist) {
			entries = defaultTable
			return nil
		}
		if err == nil {
			entries, err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		return err
	})
	return cmp.Or(entries, defaultTable), err // 0 is no limit
}

// timeouts guards the library's table of default timeouts, which it writes when it
// encodes others.
var timeouts sync.Mutex

// shortTimeWait adds the object that shortens TIME_WAIT for the connections of
// the rules that have it.
func (t table) shortTimeWait() []expr.Any {
	timeouts.Lock()
	defer timeouts.Unlock()
	const name = "closing"
	t.conn.AddObj(&nftables.NamedObj{Table: t.Table, Name: name, Type: nftables.ObjTypeCtTimeout, Obj: &expr.CtTimeout{
		L3Proto: unix.NFPROTO_IPV4, L4Proto: unix.IPPROTO_TCP,
		Policy: expr.CtStatePolicyTimeout{expr.CtStateTCPTIMEWAIT: closingSeconds, expr.CtStateTCPESTABLISHED: fiveDaysSeconds},
	}})
	return []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_CT_TIMEOUT, Name: name}}
}
