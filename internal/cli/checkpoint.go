package cli

import (
	"context"
	"fmt"
	"io"

	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
)

type checkpointCommands struct {
	Create  checkpointCreateCommand  `cmd:"" help:"Save the current state of a running sandbox, and print the checkpoint's id."`
	List    checkpointListCommand    `cmd:"" aliases:"ls" help:"List the checkpoints of a sandbox, oldest first."`
	Tree    checkpointTreeCommand    `cmd:"" help:"Print the checkpoints of a sandbox as a tree, and mark the one that it continues from."`
	Restore checkpointRestoreCommand `cmd:"" help:"Return a sandbox to a checkpoint. Its current state is lost."`
	Delete  checkpointDeleteCommand  `cmd:"" aliases:"rm" help:"Delete checkpoints. Their children get their parent."`
}

type checkpointCreateCommand struct {
	Sandbox string `arg:"" complete:"sandbox" help:"The sandbox, which keeps running."`
	Name    string `arg:"" optional:"" help:"A name by which people recognize the checkpoint."`
}

// Run prints the id alone, for scripts.
func (c *checkpointCreateCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	var made *client.Checkpoint
	err = s.during(ctx, "creating a checkpoint", func(ctx context.Context) (err error) {
		made, err = api.CreateCheckpoint(ctx, c.Sandbox, c.Name)
		return err
	})
	if err != nil {
		return err
	}
	return s.print(made, func(w io.Writer) { fmt.Fprintln(w, made.ID) })
}

type checkpointListCommand struct {
	Sandbox string `arg:"" complete:"sandbox" help:"The sandbox."`
}

// Run prints a table, or the checkpoints and the head as JSON.
func (c *checkpointListCommand) Run(ctx context.Context, s *session) error {
	return s.checkpoints(ctx, c.Sandbox, func(w io.Writer, all *client.Checkpoints) {
		rows := [][]string{{"ID", "PARENT", "AGE", "SIZE", "OWN", "STORED", "NAME"}}
		for _, cp := range all.Checkpoints {
			rows = append(rows, []string{cp.ID, orDash(cp.ParentID), age(cp.CreatedAt), size(cp.SizeBytes), knownSize(cp.OwnBytes), yesNo(!cp.StoredAt.IsZero()), orDash(cp.Name)})
		}
		table(w, rows)
		if all.DiskBytes != nil && len(all.Checkpoints) > 1 {
			fmt.Fprintf(s.Err, "together %s\n", size(*all.DiskBytes))
		}
	})
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// size formats a number of bytes in whole MiB, rounded up.
func size(bytes int64) string { return fmt.Sprintf("%dM", (bytes+1<<20-1)>>20) }

// knownSize is size of a number that may be unknown.
func knownSize(bytes *int64) string {
	if bytes == nil {
		return "-"
	}
	return size(*bytes)
}

func (s *session) checkpoints(ctx context.Context, sandbox string, text func(io.Writer, *client.Checkpoints)) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	all, err := api.Checkpoints(ctx, sandbox)
	if err != nil {
		return err
	}
	return s.print(all, func(w io.Writer) { text(w, all) })
}

type checkpointTreeCommand struct {
	Sandbox string `arg:"" complete:"sandbox" help:"The sandbox."`
}

// Run draws the tree as tree(1) does.
func (c *checkpointTreeCommand) Run(ctx context.Context, s *session) error {
	return s.checkpoints(ctx, c.Sandbox, func(w io.Writer, all *client.Checkpoints) {
		t := checkpointTree{session: s, head: all.Head, children: map[string][]client.Checkpoint{}}
		known := map[string]bool{}
		for _, cp := range all.Checkpoints {
			known[cp.ID] = true
		}
		for _, cp := range all.Checkpoints {
			parent := cp.ParentID
			if !known[parent] {
				parent = ""
			}
			t.children[parent] = append(t.children[parent], cp)
		}
		fmt.Fprintln(w, c.Sandbox+t.here(""))
		t.draw(w, "", "")
	})
}

type checkpointTree struct {
	*session

	head     string
	children map[string][]client.Checkpoint // by parent, oldest first
}

// draw writes the children of a checkpoint below it. Checkpoints in a cycle, which
// only a faulty server could send, have no root and are not drawn.
func (t *checkpointTree) draw(w io.Writer, parent, indent string) {
	children := t.children[parent]
	for i, cp := range children {
		branch, below := "├── ", "│   "
		if i == len(children)-1 {
			branch, below = "└── ", "    "
		}
		line := indent + branch + plain.Line(cp.ID)
		if cp.Name != "" {
			line += "  " + plain.Line(cp.Name)
		}
		fmt.Fprintln(w, line+t.paint(w, faint, "  "+age(cp.CreatedAt)+" ago")+t.here(cp.ID))
		t.draw(w, cp.ID, indent+below)
	}
}

// here returns the mark of the checkpoint that the sandbox continues from.
func (t *checkpointTree) here(id string) string {
	if id != t.head {
		return ""
	}
	return t.paint(t.Out, green, "  <- the sandbox goes on from here")
}

type checkpointRestoreCommand struct {
	Sandbox    string `arg:"" complete:"sandbox" help:"The sandbox."`
	Checkpoint string `arg:"" complete:"checkpoint" help:"The checkpoint's id, as list prints it."`
}

// Run returns when the sandbox is restored.
func (c *checkpointRestoreCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	var sb *client.Sandbox
	err = s.during(ctx, "restoring the checkpoint", func(ctx context.Context) (err error) {
		sb, err = api.RestoreCheckpoint(ctx, c.Sandbox, c.Checkpoint)
		return err
	})
	if err != nil {
		return err
	}
	return s.print(sb, func(w io.Writer) { fmt.Fprintln(w, sb.ID) })
}

type checkpointDeleteCommand struct {
	Sandbox string   `arg:"" complete:"sandbox" help:"The sandbox."`
	IDs     []string `arg:"" name:"id" complete:"checkpoint" help:"The checkpoints."`
}

// Run deletes them one by one.
func (c *checkpointDeleteCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	return s.each(ctx, "deleting", c.IDs, func(ctx context.Context, id string) error { return api.DeleteCheckpoint(ctx, c.Sandbox, id) })
}
