package mcpserver

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
)

// maxError bounds the text of an error, which may be a guest's.
const maxError = 4 << 10

// advice is what a model can do about failures that it can do something about.
var advice = map[client.Code]string{
	client.Unauthorized:  "The API key is unknown or revoked. Ask the user for another one.",
	client.Forbidden:     "The API key does not allow this, or a file's permissions do not. For a file, try user=root; otherwise ask the user for a key with the scope sandboxes.",
	client.InvalidState:  "get_sandbox shows the state. resume_sandbox continues a paused sandbox; a stopped one is gone, so create another.",
	client.CutByPause:    "The sandbox was paused. resume_sandbox continues it.",
	client.RateLimited:   "Too many calls: wait, then repeat this one.",
	client.LimitExceeded: "A limit of the team or of the host is reached. Destroy sandboxes that are not needed, or ask for a smaller one.",
	client.NoSpace:       "The disk of the sandbox is full. Remove files with run_command.",
	client.NotResponding: "The sandbox does not answer. Wait a minute and repeat, or call restore_checkpoint, or destroy_sandbox.",
	client.TooLarge:      "Write it in several pieces, or let a command in the sandbox fetch it.",
}

// advise adds to an error what to do next.
func advise(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("the call was canceled") // no client reads it
	}
	failure, ok := errors.AsType[*client.Error](err)
	if !ok {
		return errors.New(plain.Cut(plain.Text(err.Error()), maxError))
	}
	text := plain.Cut(plain.Text(err.Error()), maxError)
	hint := advice[failure.Code]
	switch {
	case failure.Code == client.NotFound && strings.HasPrefix(failure.Message, "there is no sandbox"):
		hint = "list_sandboxes shows those that exist; one that was not used for its timeout is destroyed."
	case failure.Code == client.Unavailable && failure.Status == 0:
		hint = "The Wrenn server cannot be reached. Tell the user to check its address, or to start it with: sudo wrenn up"
	case failure.Code == client.Unavailable:
		hint = "Wait some seconds, then repeat the call."
	case failure.RequestID != "" && failure.Code == client.Internal:
		hint = fmt.Sprintf("This is a fault of the server; its log has request %s.", plain.Line(failure.RequestID))
	}
	if failure.RetryAfter > 0 {
		hint += fmt.Sprintf(" Repeat after %v.", failure.RetryAfter)
	}
	if hint == "" {
		return errors.New(text)
	}
	return errors.New(text + "\n" + hint)
}
