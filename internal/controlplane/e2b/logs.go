package e2b

import (
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/e2b/guestlog"
	"wrenn.dev/internal/controlplane/e2b/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

const (
	// maxLogs is how many entries one answer has, at most and by default.
	maxLogs = 1000
	// maxConsole bounds what is read of a console. Hosts keep 256 KiB.
	maxConsole = 1 << 20
)

// logsV1 answers as the command line needs it: each entry also as a line of JSON.
func (s *Server) logsV1(r *http.Request, c service.Caller) (int, any, error) {
	query, err := logQuery(r.URL.Query(), "start")
	if err != nil {
		return 0, nil, err
	}
	query.Level = slog.LevelDebug
	entries, err := s.consoleEntries(r, c, query)
	if err != nil {
		return 0, nil, err
	}
	out := oapi.SandboxLogs{Logs: []oapi.SandboxLog{}, LogEntries: []oapi.SandboxLogEntry{}}
	for i := range entries {
		entry := logEntryOf(&entries[i])
		line := maps.Clone(entry.Fields)
		line["level"], line["message"] = string(entry.Level), entry.Message
		text, err := json.Marshal(line)
		if err != nil {
			return 0, nil, err
		}
		out.Logs = append(out.Logs, oapi.SandboxLog{Timestamp: entry.Timestamp, Line: string(text)})
		out.LogEntries = append(out.LogEntries, entry)
	}
	return http.StatusOK, out, nil
}

func (s *Server) logs(r *http.Request, c service.Caller) (int, any, error) {
	params := r.URL.Query()
	query, err := logQuery(params, "cursor")
	if err != nil {
		return 0, nil, err
	}
	query.Backward, query.Search, query.Level = params.Get("direction") == "backward", params.Get("search"), slog.LevelDebug
	if level := params.Get("level"); level != "" {
		if err := query.Level.UnmarshalText([]byte(level)); err != nil {
			return 0, nil, invalid("level is one of debug, info, warn, error")
		}
	}
	entries, err := s.consoleEntries(r, c, query)
	if err != nil {
		return 0, nil, err
	}
	out := oapi.SandboxLogsV2{Logs: []oapi.SandboxLogEntry{}}
	for i := range entries {
		out.Logs = append(out.Logs, logEntryOf(&entries[i]))
	}
	return http.StatusOK, out, nil
}

// logQuery reads the limit, and the cursor under its name, in Unix milliseconds.
func logQuery(params url.Values, cursor string) (guestlog.Query, error) {
	query := guestlog.Query{Limit: maxLogs}
	if text := params.Get("limit"); text != "" {
		limit, err := strconv.Atoi(text)
		if err != nil || limit < 0 {
			return query, invalid("limit is a number from 0 to %d", maxLogs)
		}
		query.Limit = min(limit, maxLogs)
	}
	if text := params.Get(cursor); text != "" {
		ms, err := strconv.ParseInt(text, 10, 64)
		if err != nil || ms < 0 {
			return query, invalid("%s is a number of Unix milliseconds", cursor)
		}
		query.Cursor = time.UnixMilli(ms)
	}
	return query, nil
}

// consoleEntries returns the entries of a sandbox's console that the query asks for.
// The sandbox may have ended, if its console is kept.
func (s *Server) consoleEntries(r *http.Request, c service.Caller, query guestlog.Query) ([]guestlog.Entry, error) {
	id, err := id(r)
	if err != nil {
		return nil, err
	}
	sb, err := s.service.Sandbox(r.Context(), c, id)
	if wrenn.CodeOf(err) == wrenn.NotFound {
		return nil, notFound(id)
	}
	if err != nil {
		return nil, err
	}
	console, err := s.service.Logs(r.Context(), c, id, wrenn.ConsoleQuery{})
	if err != nil {
		return nil, err
	}
	defer console.Close()
	text, err := io.ReadAll(io.LimitReader(console, maxConsole))
	if err != nil {
		return nil, err
	}
	return query.Select(guestlog.Parse(string(text), sb.CreatedAt, time.Now())), nil
}

func logEntryOf(e *guestlog.Entry) oapi.SandboxLogEntry {
	fields := map[string]string{}
	maps.Copy(fields, e.Fields)
	fields["logger"] = e.Logger
	return oapi.SandboxLogEntry{Timestamp: e.Time, Level: logLevel(e.Level), Message: e.Message, Fields: fields}
}

func logLevel(level slog.Level) oapi.LogLevel {
	name, _, _ := strings.Cut(level.String(), "+") // as in WARN+1
	return oapi.LogLevel(strings.ToLower(name))
}
