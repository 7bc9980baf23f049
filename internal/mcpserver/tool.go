package mcpserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"wrenn.dev/client"
)

// tool describes a tool to clients and to models.
type tool struct {
	name, title, text string

	reads    bool // changes nothing
	destroys bool // may lose something
	repeats  bool // twice is the same as once
	outside  bool // reaches the internet, or lets others reach the sandbox
	many     bool // is about several sandboxes: not for a server that is bound to one
	bounds   bounds
}

// bounds are those of the arguments, by name.
type bounds map[string]bound

// bound is what a schema says about an argument besides its type.
type bound struct {
	min, max float64 // of a number; of the length of a text
	initial  any     // when it is absent
	oneOf    []any
}

// target is the sandbox that a tool uses. A server that is bound to one sandbox does
// not ask for it.
type target struct {
	SandboxID string `json:"sandbox_id" jsonschema:"the sandbox, as create_sandbox or list_sandboxes returned it"`
}

const (
	argumentSandbox = "sandbox_id"
	maxIDLength     = 64
)

func (t *target) bind(id string) { t.SandboxID = id }

// call is one call of a tool.
type call struct {
	*client.Client

	s       *Server
	session string // the label for sandboxes that it makes; "" for none
}

// add adds a tool unless the server is configured to have no such tool.
func add[In, Out any](s *Server, t tool, handle func(context.Context, call, In) (Out, error)) error {
	if s.cfg.ReadOnly && !t.reads || s.cfg.Sandbox != "" && t.many {
		return nil
	}
	input, err := inputSchema[In](s, t)
	if err != nil {
		return fmt.Errorf("tool %s: %w", t.name, err)
	}
	mcp.AddTool(s.mcp, &mcp.Tool{
		Name: t.name, Title: t.title, Description: t.text, InputSchema: input,
		Annotations: &mcp.ToolAnnotations{
			Title: t.title, ReadOnlyHint: t.reads, DestructiveHint: &t.destroys, IdempotentHint: t.repeats || t.reads, OpenWorldHint: &t.outside,
		},
	}, func(ctx context.Context, request *mcp.CallToolRequest, in In) (*mcp.CallToolResult, Out, error) {
		var none Out
		c, err := s.call(request)
		if err != nil {
			return nil, none, err
		}
		if bound, ok := any(&in).(interface{ bind(string) }); ok && s.cfg.Sandbox != "" {
			bound.bind(s.cfg.Sandbox)
		}
		defer s.progress(ctx, request, t.title)()
		out, err := handle(ctx, c, in)
		if err != nil {
			return nil, none, advise(ctx, err)
		}
		return nil, out, nil
	})
	return nil
}

// progress tells a client that asked for it that a call has not ended, until the function
// that it returns is called.
func (s *Server) progress(ctx context.Context, request *mcp.CallToolRequest, what string) (stop func()) {
	token := request.Params.GetProgressToken()
	if token == nil {
		return func() {}
	}
	done := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		began := time.Now()
		ticker := time.NewTicker(s.beat)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				// A client that cannot be told has gone, which ends ctx.
				_ = request.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: token, Message: what, Progress: time.Since(began).Seconds()})
			}
		}
	})
	return func() {
		close(done)
		telling.Wait()
	}
}

// call returns the client for the caller.
func (s *Server) call(request *mcp.CallToolRequest) (call, error) {
	extra := request.GetExtra()
	if extra == nil || extra.TokenInfo == nil {
		if s.cfg.Client == nil {
			return call{}, errors.New("this call has no API key: send it as Authorization: Bearer KEY")
		}
		return call{Client: s.cfg.Client, s: s, session: s.session}, nil
	}
	api, ok := extra.TokenInfo.Extra[tokenClient].(*client.Client)
	if !ok {
		return call{}, errors.New("this call has no API key: send it as Authorization: Bearer KEY")
	}
	return call{Client: api, s: s, session: request.Session.ID()}, nil
}

// inputSchema returns the schema of a tool's arguments.
func inputSchema[In any](s *Server, t tool) (*jsonschema.Schema, error) {
	schema, err := jsonschema.For[In](nil)
	if err != nil {
		return nil, err
	}
	if id := schema.Properties[argumentSandbox]; id != nil {
		id.MinLength, id.MaxLength = new(1), new(maxIDLength)
		if s.cfg.Sandbox != "" {
			drop(schema, argumentSandbox)
		}
	}
	for name, b := range t.bounds {
		property := schema.Properties[name]
		if property == nil {
			return nil, fmt.Errorf("no argument %s", name)
		}
		if err := b.apply(property); err != nil {
			return nil, err
		}
	}
	return schema, nil
}

// apply writes the bound into the schema of an argument.
func (b bound) apply(schema *jsonschema.Schema) error {
	schema.Enum = b.oneOf
	switch {
	case schema.Type == "string" && b.max > 0:
		schema.MinLength, schema.MaxLength = new(int(b.min)), new(int(b.max))
	case schema.Type == "integer":
		schema.Minimum, schema.Maximum = &b.min, &b.max
	}
	if b.initial == nil {
		return nil
	}
	var err error
	schema.Default, err = json.Marshal(b.initial)
	return err
}

// drop removes a property.
func drop(schema *jsonschema.Schema, name string) {
	delete(schema.Properties, name)
	schema.Required = without(schema.Required, name)
	schema.PropertyOrder = without(schema.PropertyOrder, name)
}

func without(names []string, name string) (rest []string) {
	for _, n := range names {
		if n != name {
			rest = append(rest, n)
		}
	}
	return rest
}
