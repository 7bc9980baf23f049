package mcpserver

import (
	"context"
	"errors"
	"maps"
	"time"

	"wrenn.dev/client"
)

const (
	maxCopies     = 10
	maxCheckpoint = 100 // characters of a name
)

func (s *Server) addStateTools() error {
	return errors.Join(
		add(s, tool{
			name: "pause_sandbox", title: "Pause a sandbox", repeats: true,
			text: "Saves a sandbox with its running programs to disk and frees its memory. A paused sandbox has no timeout and stays until it is resumed or destroyed.",
		}, pauseSandbox),
		add(s, tool{
			name: "resume_sandbox", title: "Resume a sandbox", repeats: true,
			text: "Continues a paused sandbox with its programs where they were. Connections to the outside may have been closed by the other side.",
		}, resumeSandbox),
		add(s, tool{
			name: "fork_sandbox", title: "Fork a sandbox", many: true,
			text: "Makes running copies of a sandbox, with its files, memory and running programs of this moment. Use it to try several ways from one state: " +
				"prepare one sandbox, fork it, try a way in each copy, keep the best and destroy the others. The sandbox itself continues. errors names copies that failed.",
			bounds: bounds{"count": {min: 1, max: maxCopies, initial: 1}},
		}, forkSandbox),
		add(s, tool{
			name: "create_checkpoint", title: "Save a checkpoint",
			text:   "Saves the state of a running sandbox, files and running programs, under an id that restore_checkpoint goes back to. The sandbox continues after a short stop.",
			bounds: bounds{"name": {max: maxCheckpoint}},
		}, createCheckpoint),
		add(s, tool{
			name: "list_checkpoints", title: "List checkpoints", reads: true,
			text: "Lists the checkpoints of a sandbox, oldest first. parent_id is the one that the sandbox continued from when it was saved; head is the one that it continues from now.",
		}, listCheckpoints),
		add(s, tool{
			name: "restore_checkpoint", title: "Go back to a checkpoint", destroys: true,
			text: "Puts a sandbox back to a checkpoint: files and programs are as they were then. What it did since is lost, unless you save a checkpoint first. All checkpoints stay.",
		}, restoreCheckpoint),
		add(s, tool{
			name: "branch_from_checkpoint", title: "Make copies from a checkpoint", many: true,
			text:   "Makes running copies of a sandbox as it was at a checkpoint. The sandbox itself does not change.",
			bounds: bounds{"count": {min: 1, max: maxCopies, initial: 1}},
		}, branch),
		add(s, tool{
			name: "delete_checkpoint", title: "Delete a checkpoint", destroys: true, repeats: true,
			text: "Deletes a checkpoint to free disk space. The sandbox and the other checkpoints do not change.",
		}, deleteCheckpoint),
	)
}

func pauseSandbox(ctx context.Context, c call, in target) (sandboxOutput, error) {
	return described(c.PauseSandbox(ctx, in.SandboxID))
}

func resumeSandbox(ctx context.Context, c call, in target) (sandboxOutput, error) {
	return described(c.ResumeSandbox(ctx, in.SandboxID))
}

func described(sb *client.Sandbox, err error) (sandboxOutput, error) {
	if err != nil {
		return sandboxOutput{}, err
	}
	return describe(sb), nil
}

type forkInput struct {
	target

	Count int `json:"count,omitempty" jsonschema:"how many copies"`
}

type forkOutput struct {
	Copies []sandboxOutput `json:"copies"`
	Errors []string        `json:"errors,omitempty" jsonschema:"why the other copies failed"`
}

func forkSandbox(ctx context.Context, c call, in forkInput) (forkOutput, error) {
	return c.fork(ctx, in.SandboxID, client.Fork{Count: in.Count})
}

// fork makes copies with the sandbox's metadata, but its name.
func (c call) fork(ctx context.Context, id string, copies client.Fork) (forkOutput, error) {
	parent, err := c.Sandbox(ctx, id)
	if err != nil {
		return forkOutput{}, err
	}
	own := maps.Clone(parent.Metadata)
	delete(own, "name") // names are for one
	copies.Metadata = c.labels(own)
	made, err := c.ForkSandbox(ctx, id, copies)
	if err != nil {
		return forkOutput{}, err
	}
	out := forkOutput{Copies: []sandboxOutput{}}
	for _, sb := range made.Sandboxes {
		out.Copies = append(out.Copies, describe(&sb))
	}
	for _, failed := range made.Errors {
		out.Errors = append(out.Errors, failed.Message)
	}
	return out, nil
}

type checkpointInput struct {
	target

	Name string `json:"name,omitempty" jsonschema:"for people, such as before the upgrade"`
}

type checkpointOutput struct {
	CheckpointID string `json:"checkpoint_id"`
	ParentID     string `json:"parent_id,omitempty"`
	Name         string `json:"name,omitempty"`
	CreatedAt    string `json:"created_at"`
}

func describeCheckpoint(c client.Checkpoint) checkpointOutput {
	return checkpointOutput{CheckpointID: c.ID, ParentID: c.ParentID, Name: c.Name, CreatedAt: c.CreatedAt.UTC().Format(time.RFC3339)}
}

func createCheckpoint(ctx context.Context, c call, in checkpointInput) (checkpointOutput, error) {
	made, err := c.CreateCheckpoint(ctx, in.SandboxID, in.Name)
	if err != nil {
		return checkpointOutput{}, err
	}
	return describeCheckpoint(*made), nil
}

type checkpointsOutput struct {
	Checkpoints []checkpointOutput `json:"checkpoints"`
	Head        string             `json:"head,omitempty"`
}

func listCheckpoints(ctx context.Context, c call, in target) (checkpointsOutput, error) {
	all, err := c.Checkpoints(ctx, in.SandboxID)
	if err != nil {
		return checkpointsOutput{}, err
	}
	out := checkpointsOutput{Checkpoints: []checkpointOutput{}, Head: all.Head}
	for _, one := range all.Checkpoints {
		out.Checkpoints = append(out.Checkpoints, describeCheckpoint(one))
	}
	return out, nil
}

type atCheckpoint struct {
	target

	CheckpointID string `json:"checkpoint_id" jsonschema:"as create_checkpoint or list_checkpoints returned it"`
}

func restoreCheckpoint(ctx context.Context, c call, in atCheckpoint) (sandboxOutput, error) {
	return described(c.RestoreCheckpoint(ctx, in.SandboxID, in.CheckpointID))
}

type deletedOutput struct {
	Deleted bool `json:"deleted"`
}

func deleteCheckpoint(ctx context.Context, c call, in atCheckpoint) (deletedOutput, error) {
	err := c.DeleteCheckpoint(ctx, in.SandboxID, in.CheckpointID)
	return deletedOutput{Deleted: err == nil}, err
}

type branchInput struct {
	atCheckpoint

	Count int `json:"count,omitempty" jsonschema:"how many copies"`
}

func branch(ctx context.Context, c call, in branchInput) (forkOutput, error) {
	return c.fork(ctx, in.SandboxID, client.Fork{Count: in.Count, Checkpoint: in.CheckpointID})
}
