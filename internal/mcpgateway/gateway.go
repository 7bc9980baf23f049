// Package mcpgateway is the program mcp-gateway of the template of that name: it starts
// servers of the Model Context Protocol in a sandbox, which speak on their standard input
// and output, and serves their tools, prompts and resources together by streamable HTTP.
// E2B's SDKs start it when a sandbox is created with mcp; docs/templates.md describes it.
package mcpgateway

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/auth"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const (
	path        = "/mcp"
	maxBody     = 16 << 20 // of a request
	maxFeatures = 2000     // tools, prompts and resources of a server, each
	sessionIdle = time.Hour
)

// gateway serves what its servers have.
type gateway struct {
	mcp      *mcp.Server
	log      *slog.Logger
	backends []*backend
}

// features are what a server has.
type features struct {
	tools     []*mcp.Tool
	prompts   []*mcp.Prompt
	resources []*mcp.Resource
	templates []*mcp.ResourceTemplate
}

// open starts the programs, all at once, and returns the gateway in front of them. If
// one does not start, none is left. stderr is where they write. The caller closes it.
func open(ctx context.Context, programs []program, stderr io.Writer, log *slog.Logger) (*gateway, error) {
	g := &gateway{mcp: mcp.NewServer(&mcp.Implementation{Name: "wrenn-mcp-gateway", Version: "1"}, nil), log: log}
	found, errs := make([]features, len(programs)), make([]error, len(programs))
	var all sync.WaitGroup
	for i, p := range programs {
		b := &backend{program: p, stderr: stderr, log: log}
		g.backends = append(g.backends, b)
		all.Go(func() { found[i], errs[i] = b.features(ctx) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		g.close()
		return nil, err
	}
	names := shared(found)
	for i, b := range g.backends {
		g.add(b, found[i], names)
	}
	return g, nil
}

// close ends the programs.
func (g *gateway) close() {
	var all sync.WaitGroup
	for _, b := range g.backends {
		all.Go(b.close)
	}
	all.Wait()
}

// features asks the server what it has.
func (b *backend) features(ctx context.Context) (f features, err error) {
	session, err := b.open(ctx)
	if err != nil {
		return f, err
	}
	can := session.InitializeResult().Capabilities
	if can == nil {
		return f, nil
	}
	if can.Tools != nil {
		f.tools, err = collect(session.Tools(ctx, nil))
	}
	if err == nil && can.Prompts != nil {
		f.prompts, err = collect(session.Prompts(ctx, nil))
	}
	if err == nil && can.Resources != nil {
		if f.resources, err = collect(session.Resources(ctx, nil)); err == nil {
			f.templates, err = collect(session.ResourceTemplates(ctx, nil))
		}
	}
	if err != nil {
		return f, fmt.Errorf("server %s: %w", b.name, err)
	}
	return f, nil
}

// collect reads all pages of a list.
func collect[T any](pages func(func(T, error) bool)) (all []T, err error) {
	for one, err := range pages {
		if err != nil {
			return nil, err
		}
		if all = append(all, one); len(all) > maxFeatures {
			return nil, fmt.Errorf("it has more than %d tools, prompts or resources of a kind", maxFeatures)
		}
	}
	return all, nil
}

// shared returns the names of tools and of prompts that several servers have.
func shared(all []features) map[string]bool {
	count := map[string]int{}
	for _, f := range all {
		for _, t := range f.tools {
			count["tool "+t.Name]++
		}
		for _, p := range f.prompts {
			count["prompt "+p.Name]++
		}
	}
	names := map[string]bool{}
	for name, n := range count {
		names[name] = n > 1
	}
	return names
}

// unique returns the name by which the gateway has what several servers may have.
func (b *backend) unique(kind, name string, shared map[string]bool) string {
	if shared[kind+" "+name] {
		return b.name + "_" + name
	}
	return name
}

// add has the gateway serve what a server has.
func (g *gateway) add(b *backend, f features, shared map[string]bool) {
	for _, tool := range f.tools {
		own := *tool
		own.Name = b.unique("tool", tool.Name, shared)
		g.try(b, "tool "+tool.Name, func() { g.mcp.AddTool(&own, b.callTool(tool.Name)) })
	}
	for _, prompt := range f.prompts {
		own := *prompt
		own.Name = b.unique("prompt", prompt.Name, shared)
		g.try(b, "prompt "+prompt.Name, func() { g.mcp.AddPrompt(&own, b.getPrompt(prompt.Name)) })
	}
	for _, resource := range f.resources {
		g.try(b, "resource "+resource.URI, func() { g.mcp.AddResource(resource, b.readResource) })
	}
	for _, template := range f.templates {
		g.try(b, "resources "+template.URITemplate, func() { g.mcp.AddResourceTemplate(template, b.readResource) })
	}
}

// try leaves out what the library panics at, such as a tool whose input is no object: it
// offers no other check.
func (g *gateway) try(b *backend, what string, add func()) {
	defer func() {
		if reason := recover(); reason != nil {
			g.log.Warn("left out what a server has", slog.String("server", b.name), slog.String("what", what), slog.Any("err", reason))
		}
	}()
	add()
}

func (b *backend) callTool(name string) mcp.ToolHandler {
	return func(ctx context.Context, req *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return call(ctx, b, func(s *mcp.ClientSession) (*mcp.CallToolResult, error) {
			return s.CallTool(ctx, &mcp.CallToolParams{Name: name, Arguments: req.Params.Arguments})
		})
	}
}

func (b *backend) getPrompt(name string) mcp.PromptHandler {
	return func(ctx context.Context, req *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
		return call(ctx, b, func(s *mcp.ClientSession) (*mcp.GetPromptResult, error) {
			return s.GetPrompt(ctx, &mcp.GetPromptParams{Name: name, Arguments: req.Params.Arguments})
		})
	}
}

func (b *backend) readResource(ctx context.Context, req *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
	return call(ctx, b, func(s *mcp.ClientSession) (*mcp.ReadResourceResult, error) {
		return s.ReadResource(ctx, &mcp.ReadResourceParams{URI: req.Params.URI})
	})
}

// handler serves the gateway at path to callers that have the token.
func (g *gateway) handler(token string) http.Handler {
	verify := func(_ context.Context, got string, _ *http.Request) (*auth.TokenInfo, error) {
		if subtle.ConstantTimeCompare([]byte(got), []byte(token)) != 1 {
			return nil, auth.ErrInvalidToken
		}
		return &auth.TokenInfo{}, nil
	}
	streams := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return g.mcp }, &mcp.StreamableHTTPOptions{
		Logger: g.log, SessionTimeout: sessionIdle, MaxRequestBodyBytes: maxBody, PropagateRequestCancellation: true,
		DisableLocalhostProtection: true, // the token protects it
	})
	mux := http.NewServeMux()
	mux.Handle(path, auth.RequireBearerToken(verify, &auth.RequireBearerTokenOptions{AllowMissingExpiration: true})(streams))
	return mux
}
