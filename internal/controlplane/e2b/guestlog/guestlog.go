// Package guestlog reads the console of a sandbox as log entries, which have a time
// and a level. The guest wrote the console and may have written anything.
package guestlog

import (
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"wrenn.dev/internal/plain"
)

const (
	// maxMessage and maxFields bound an entry. The rest is cut.
	maxMessage = 8 << 10
	maxFields  = 32
	// maxAhead is how far a guest's clock may be ahead of this machine's.
	maxAhead = time.Minute
)

// Entry is a line of a console.
type Entry struct {
	Time    time.Time // in whole milliseconds; no two entries of a console have the same
	Level   slog.Level
	Logger  string // kernel, envd, or console for the others
	Message string
	Fields  map[string]string // of envd's lines
}

// kernelLine is a message of the kernel, after the seconds since its boot.
var kernelLine = regexp.MustCompile(`^\[ *\d+\.\d{6}\] `)

// Parse returns the complete lines of a console, oldest first. Only envd's lines have
// a time. Another line is a millisecond later than the one before it, the first one
// than created; so is a line whose time is before that, or well after now. A later call
// gives a line the same time, unless the console has lost the line before it that
// has one.
func Parse(text string, created, now time.Time) []Entry {
	var entries []Entry
	last := created.UTC().Truncate(time.Millisecond)
	for line := range strings.Lines(text) {
		if !strings.HasSuffix(line, "\n") { // the rest comes later
			break
		}
		entry, stated := parseLine(strings.Trim(line, "\r\n"))
		if entry.Message == "" {
			continue
		}
		if entry.Time = last.Add(time.Millisecond); stated.After(entry.Time) && !stated.After(now.Add(maxAhead)) {
			entry.Time = stated.UTC().Truncate(time.Millisecond)
		}
		last = entry.Time
		entries = append(entries, entry)
	}
	return entries
}

// parseLine returns the entry of a line, and the time that the line states.
func parseLine(line string) (Entry, time.Time) {
	if entry, stated, ok := parseRecord(line); ok {
		return entry, stated
	}
	entry := Entry{Logger: "console"}
	if head := kernelLine.FindString(line); head != "" {
		entry.Logger, line = "kernel", line[len(head):]
	}
	entry.Message = clean(line)
	return entry, time.Time{}
}

func clean(text string) string { return plain.Shorten(plain.Line(text), maxMessage) }

// parseRecord reads a line of slog.TextHandler, which is how envd logs.
func parseRecord(line string) (Entry, time.Time, bool) {
	entry := Entry{Logger: "envd"}
	var stated time.Time
	for i := 0; line != "" && i < maxFields; i++ {
		key, value, rest, ok := cutPair(line)
		if !ok {
			break
		}
		line = rest
		var err error
		switch i {
		case 0:
			stated, err = time.Parse(time.RFC3339Nano, value)
			ok = key == slog.TimeKey
		case 1:
			err = entry.Level.UnmarshalText([]byte(value))
			ok = key == slog.LevelKey
		case 2:
			entry.Message = clean(value)
			ok = key == slog.MessageKey
		default:
			entry.setField(key, value)
		}
		if err != nil || !ok {
			return Entry{}, time.Time{}, false
		}
	}
	return entry, stated, entry.Message != ""
}

func (e *Entry) setField(key, value string) {
	if e.Fields == nil {
		e.Fields = map[string]string{}
	}
	e.Fields[clean(key)] = clean(value)
}

// cutPair cuts key=value or key="value" off the beginning of a line.
func cutPair(line string) (key, value, rest string, ok bool) {
	key, rest, ok = strings.Cut(line, "=")
	if !ok || key == "" || strings.ContainsAny(key, ` "`) {
		return "", "", "", false
	}
	quoted, err := strconv.QuotedPrefix(rest)
	if err != nil || quoted[0] != '"' {
		value, rest, _ = strings.Cut(rest, " ")
		return key, value, rest, true
	}
	value, err = strconv.Unquote(quoted)
	return key, value, strings.TrimPrefix(rest[len(quoted):], " "), err == nil
}

// Query selects entries.
type Query struct {
	// Cursor is the time of the first entry, if there is one; with Backward, entries
	// at this time and later are left out. Zero is the oldest, or the newest.
	Cursor   time.Time
	Backward bool // newest first
	Limit    int
	Level    slog.Level // and higher
	Search   string     // what messages must contain
}

// Select returns the entries that the query asks for, in its order. It changes the
// order of entries.
func (q Query) Select(entries []Entry) []Entry {
	if q.Backward {
		slices.Reverse(entries)
	}
	selected := []Entry{}
	for i := range entries {
		if len(selected) >= q.Limit {
			break
		}
		if q.wants(&entries[i]) {
			selected = append(selected, entries[i])
		}
	}
	return selected
}

func (q Query) wants(e *Entry) bool {
	if !q.Cursor.IsZero() && q.Backward != e.Time.Before(q.Cursor) {
		return false
	}
	return e.Level >= q.Level && strings.Contains(e.Message, q.Search)
}
