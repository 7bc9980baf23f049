package mcpserver

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"wrenn.dev/client"
)

const (
	maxContent     = 2 << 20 // characters of one write: a file of 1.5 MiB in base64
	maxRead        = 512 << 10
	defaultRead    = 64 << 10
	maxSkip        = 64 << 20 // bytes before what is read, which are sent as well
	maxEntries     = 1000
	defaultEntries = 200
	maxDepth       = 8

	encodingText   = "text"
	encodingBase64 = "base64"
)

func (s *Server) addFileTools() error {
	return errors.Join(
		add(s, tool{
			name: "write_file", title: "Write a file", destroys: true, repeats: true,
			text: "Writes a file in the sandbox and makes missing directories. An existing file is replaced as a whole, in one step.",
			bounds: bounds{
				"path": {min: 1, max: maxPath}, "content": {max: maxContent}, "encoding": {oneOf: []any{encodingText, encodingBase64}, initial: encodingText},
			},
		}, writeFile),
		add(s, tool{
			name: "read_file", title: "Read a file", reads: true,
			text: "Reads a file in the sandbox. Text is returned as it is, other bytes as base64: see encoding in the answer. If more is true, the file continues at next_offset. " +
				"For parts of long files, run_command with grep, sed or tail is quicker.",
			bounds: bounds{
				"path": {min: 1, max: maxPath}, "offset": {min: 0, max: maxSkip, initial: 0}, "max_bytes": {min: 1, max: maxRead, initial: defaultRead},
			},
		}, readFile),
		add(s, tool{
			name: "list_files", title: "List files", reads: true,
			text: "Lists what is in a directory of the sandbox: type, size, time of the last change and path, sorted by path. truncated is true if there was more than limit.",
			bounds: bounds{
				"path": {min: 1, max: maxPath, initial: "."}, "depth": {min: 1, max: maxDepth, initial: 1}, "limit": {min: 1, max: maxEntries, initial: defaultEntries},
			},
		}, listFiles),
	)
}

type writeInput struct {
	target

	Path     string `json:"path" jsonschema:"a relative one starts at the user's home"`
	Content  string `json:"content" jsonschema:"all of the file"`
	Encoding string `json:"encoding,omitempty" jsonschema:"of content: text, or base64 for other bytes"`
	User     string `json:"user,omitempty" jsonschema:"the user that owns the file; default: the template's user"`
}

type writeOutput struct {
	Bytes int `json:"bytes" jsonschema:"the size of the file"`
}

func writeFile(ctx context.Context, c call, in writeInput) (writeOutput, error) {
	content := []byte(in.Content)
	if in.Encoding == encodingBase64 {
		var err error
		if content, err = base64.StdEncoding.DecodeString(in.Content); err != nil {
			return writeOutput{}, errors.New("content is not base64: correct it, or use encoding=text")
		}
	}
	err := c.WriteFile(ctx, in.SandboxID, in.Path, bytes.NewReader(content), client.FileOptions{User: in.User})
	return writeOutput{Bytes: len(content)}, err
}

type readInput struct {
	target

	Path     string `json:"path" jsonschema:"a relative one starts at the user's home"`
	Offset   int64  `json:"offset,omitempty" jsonschema:"where to begin, in bytes"`
	MaxBytes int    `json:"max_bytes,omitempty" jsonschema:"how much to return at most"`
	User     string `json:"user,omitempty" jsonschema:"the user that reads the file; default: the template's user"`
}

type readFileOutput struct {
	Content    string `json:"content"`
	Encoding   string `json:"encoding" jsonschema:"of content: text or base64"`
	Bytes      int    `json:"bytes" jsonschema:"how many bytes content stands for"`
	More       bool   `json:"more" jsonschema:"the file continues"`
	NextOffset int64  `json:"next_offset" jsonschema:"where content ends: the next offset"`
}

func readFile(ctx context.Context, c call, in readInput) (readFileOutput, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the transfer of the rest
	file, err := c.ReadFile(ctx, in.SandboxID, in.Path, client.FileOptions{User: in.User})
	if err != nil {
		return readFileOutput{}, err
	}
	defer file.Close()
	if skipped, err := io.CopyN(io.Discard, file, in.Offset); errors.Is(err, io.EOF) {
		return readFileOutput{}, fmt.Errorf("the file has %d bytes: use a smaller offset", skipped)
	} else if err != nil {
		return readFileOutput{}, err
	}
	content, err := io.ReadAll(io.LimitReader(file, int64(in.MaxBytes)+1))
	if err != nil {
		return readFileOutput{}, err
	}
	out := readFileOutput{More: len(content) > in.MaxBytes, Encoding: encodingText}
	if out.More {
		content = wholeCharacters(content[:in.MaxBytes])
	}
	out.Content, out.Bytes, out.NextOffset = string(content), len(content), in.Offset+int64(len(content))
	if !utf8.Valid(content) || bytes.IndexByte(content, 0) >= 0 {
		out.Content, out.Encoding = base64.StdEncoding.EncodeToString(content), encodingBase64
	}
	return out, nil
}

// wholeCharacters removes a character at the end that is cut, if the rest is text.
func wholeCharacters(content []byte) []byte {
	for n := range min(utf8.UTFMax, len(content)) {
		if shorter := content[:len(content)-n]; len(shorter) > 0 && utf8.Valid(shorter) {
			return shorter
		}
	}
	return content
}

type listFilesInput struct {
	target

	Path  string `json:"path,omitempty" jsonschema:"the directory; a relative one starts at the user's home"`
	Depth int    `json:"depth,omitempty" jsonschema:"1 is what is in the directory, 2 also what is in its directories"`
	Limit int    `json:"limit,omitempty" jsonschema:"how many at most"`
	User  string `json:"user,omitempty" jsonschema:"the user that looks; default: the template's user"`
}

type fileOutput struct {
	Path     string `json:"path" jsonschema:"absolute"`
	Type     string `json:"type" jsonschema:"file, directory, symlink or unknown"`
	Bytes    int64  `json:"bytes"`
	Modified string `json:"modified"`
}

type filesOutput struct {
	Files     []fileOutput `json:"files"`
	Truncated bool         `json:"truncated"`
}

func listFiles(ctx context.Context, c call, in listFilesInput) (filesOutput, error) {
	out := filesOutput{Files: []fileOutput{}}
	list := client.ListFiles{FileOptions: client.FileOptions{User: in.User}, Depth: in.Depth, PageSize: in.Limit + 1}
	for entry, err := range c.Files(ctx, in.SandboxID, in.Path, list) {
		if err != nil {
			return filesOutput{}, err
		}
		if len(out.Files) == in.Limit {
			out.Truncated = true
			break
		}
		out.Files = append(out.Files, fileOutput{
			Path: entry.Path, Type: entry.Type, Bytes: entry.Size, Modified: entry.ModifiedAt.UTC().Format(time.RFC3339),
		})
	}
	return out, nil
}
