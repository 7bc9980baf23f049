package mcpserver

import (
	"context"
	"errors"
	"maps"
	"time"

	"wrenn.dev/client"
)

const (
	maxTimeoutMinutes = 24 * 60
	maxListed         = 100 // sandboxes of one answer
	maxLabels         = 32
)

var living = []client.State{client.Pending, client.Starting, client.Running, client.Pausing, client.Paused, client.Resuming, client.Stopping}

func (s *Server) addSandboxTools() error {
	return errors.Join(
		add(s, tool{
			name: "create_sandbox", title: "Create a sandbox", outside: !s.cfg.Offline, many: true,
			text: "Creates a Linux virtual machine and returns when it runs, usually within a second. Use one for each task that must not see the files of another. " +
				"Its file system is empty but for the template's programs; use write_file or run_command to bring files in.",
			bounds: bounds{
				"vcpus": {min: 1, max: 32}, "memory_mb": {min: 64, max: 65536}, "disk_mb": {min: 1, max: 1 << 20},
				"timeout_minutes": {min: 1, max: maxTimeoutMinutes}, "on_timeout": {oneOf: []any{"destroy", "pause"}, initial: "destroy"},
			},
		}, createSandbox),
		add(s, tool{
			name: "list_sandboxes", title: "List sandboxes", reads: true, many: true,
			text:   "Lists the sandboxes that have not ended, newest first, including those that other programs of the team made.",
			bounds: bounds{"limit": {min: 1, max: maxListed, initial: 20}},
		}, listSandboxes),
		add(s, tool{
			name: "list_templates", title: "List templates", reads: true, many: true,
			text: "Lists the templates that create_sandbox can start from, with the programs that each was built with. base is always there: Debian with Python and common tools.",
		}, listTemplates),
		add(s, tool{
			name: "get_sandbox", title: "Show a sandbox", reads: true,
			text: "Shows the state of a sandbox, its size, its timeout and what it may reach of the network. A sandbox that has ended says why.",
		}, getSandbox),
		add(s, tool{
			name: "set_network", title: "Set what a sandbox may reach", destroys: true, repeats: true, outside: true,
			many: true, // the user has set it for the one
			text: "Replaces what a running sandbox may reach of the internet, at once. Typical: install packages, then set internet=false before running code that is not trusted. " +
				"Open connections that are not allowed any more are cut.",
		}, setNetwork),
		add(s, tool{
			name: "expose_port", title: "Get the URL of a port", reads: true, outside: true,
			text: "Returns the URL of a web server that runs in the sandbox, for the user's browser or for requests. It opens nothing: every port is served, " +
				"to everyone who knows the URL, unless the sandbox has private ports. listening is true if a program listens now.",
			bounds: bounds{"port": {min: 1, max: 65535}},
		}, exposePort),
		add(s, tool{
			name: "destroy_sandbox", title: "Destroy a sandbox", destroys: true, repeats: true, many: true,
			text: "Ends a sandbox and deletes its files and checkpoints for good. Its copies continue.",
		}, destroySandbox),
	)
}

type networkInput struct {
	Internet bool     `json:"internet" jsonschema:"true: the whole internet except deny; false: nothing except allow"`
	Allow    []string `json:"allow,omitempty" jsonschema:"IPv4 addresses and networks that are allowed; with internet=false also host names such as pypi.org or *.pythonhosted.org"`
	Deny     []string `json:"deny,omitempty" jsonschema:"IPv4 addresses and networks that are denied"`
}

func (n *networkInput) policy() *client.NetworkPolicy {
	p := &client.NetworkPolicy{Default: client.DenyByDefault, Allow: n.Allow, Deny: n.Deny}
	if n.Internet {
		p.Default = client.AllowByDefault
	}
	return p
}

type createInput struct {
	Template       string            `json:"template,omitempty" jsonschema:"what it starts from, see list_templates; usually leave it out"`
	VCPUs          int               `json:"vcpus,omitempty" jsonschema:"virtual CPUs; default 1. Templates other than base have a fixed number"`
	MemoryMB       int               `json:"memory_mb,omitempty" jsonschema:"memory in MiB; default 512. Templates other than base have a fixed size"`
	DiskMB         int               `json:"disk_mb,omitempty" jsonschema:"disk in MiB, if the template's is too small"`
	TimeoutMinutes int               `json:"timeout_minutes,omitempty" jsonschema:"minutes without use after which on_timeout happens"`
	OnTimeout      string            `json:"on_timeout,omitempty" jsonschema:"destroy, or pause: keep it on disk; the next tool that uses it resumes it"`
	Env            map[string]string `json:"env,omitempty" jsonschema:"environment variables of every command in it"`
	Network        *networkInput     `json:"network,omitempty" jsonschema:"what it may reach; default: the whole internet, or nothing if the user started this server so"`
	Name           string            `json:"name,omitempty" jsonschema:"a short name for people"`
	Labels         map[string]string `json:"labels,omitempty" jsonschema:"labels to find it again"`
}

type sandboxOutput struct {
	SandboxID      string            `json:"sandbox_id"`
	State          string            `json:"state" jsonschema:"running, paused, stopped, failed, or on the way to one of these"`
	Reason         string            `json:"reason,omitempty" jsonschema:"why it ended"`
	Unresponsive   string            `json:"unresponsive,omitempty" jsonschema:"set if it runs and does not answer: why"`
	Template       string            `json:"template"`
	VCPUs          int               `json:"vcpus"`
	MemoryMB       int               `json:"memory_mb"`
	DiskMB         int               `json:"disk_mb"`
	TimeoutMinutes float64           `json:"timeout_minutes" jsonschema:"minutes without use until on_timeout happens; 0 is never"`
	OnTimeout      string            `json:"on_timeout"`
	Network        *networkOutput    `json:"network,omitempty" jsonschema:"what it may reach; absent: the whole internet"`
	ForkedFrom     string            `json:"forked_from,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	CreatedAt      string            `json:"created_at"`
}

type networkOutput struct {
	Internet bool     `json:"internet" jsonschema:"what is in neither list is reachable"`
	Allow    []string `json:"allow,omitempty"`
	Deny     []string `json:"deny,omitempty"`
}

func describe(sb *client.Sandbox) sandboxOutput {
	out := sandboxOutput{
		SandboxID: sb.ID, State: string(sb.State), Reason: sb.Reason, Template: sb.Template, VCPUs: sb.VCPUs, MemoryMB: sb.MemoryMB, DiskMB: sb.DiskMB,
		TimeoutMinutes: (time.Duration(sb.TimeoutSec) * time.Second).Minutes(), OnTimeout: string(sb.OnTimeout), Network: describeNetwork(sb.Network),
		ForkedFrom: sb.ParentID, Labels: sb.Metadata, CreatedAt: sb.CreatedAt.UTC().Format(time.RFC3339),
	}
	if sb.Unresponsive != nil {
		out.Unresponsive = sb.Unresponsive.Reason
	}
	return out
}

func describeNetwork(p *client.NetworkPolicy) *networkOutput {
	if p == nil {
		return nil
	}
	return &networkOutput{Internet: p.Default != client.DenyByDefault, Allow: p.Allow, Deny: p.Deny}
}

// labels returns those of a sandbox that this call makes.
func (c call) labels(own map[string]string) map[string]string {
	out := maps.Clone(own)
	if out == nil {
		out = map[string]string{}
	}
	out[LabelMadeBy] = MadeBy
	delete(out, LabelSession)
	if c.session != "" {
		out[LabelSession] = c.session
	}
	return out
}

func createSandbox(ctx context.Context, c call, in createInput) (sandboxOutput, error) {
	request := client.CreateSandbox{
		Template: in.Template, VCPUs: in.VCPUs, MemoryMB: in.MemoryMB, DiskMB: in.DiskMB, Env: in.Env, Metadata: c.labels(in.Labels),
		Timeout: time.Duration(in.TimeoutMinutes) * time.Minute, OnTimeout: client.OnTimeout(in.OnTimeout), AutoResume: true,
	}
	if len(in.Labels) > maxLabels {
		return sandboxOutput{}, errors.New("a sandbox has at most 32 labels")
	}
	if in.Name != "" {
		request.Metadata["name"] = in.Name
	}
	if request.Template == "" {
		request.Template = c.s.cfg.Template
	}
	if request.Timeout == 0 {
		request.Timeout = c.s.cfg.Timeout
	}
	if err := c.s.allows(in.Network); err != nil {
		return sandboxOutput{}, err
	}
	if in.Network != nil {
		request.Network = in.Network.policy()
	} else if c.s.cfg.Offline {
		request.Network = new(networkInput).policy()
	}
	sb, err := c.CreateSandbox(ctx, request)
	if err != nil {
		return sandboxOutput{}, err
	}
	return describe(sb), nil
}

// allows refuses a policy that opens what the user closed.
func (s *Server) allows(n *networkInput) error {
	if s.cfg.Offline && n != nil && (n.Internet || len(n.Allow) > 0) {
		return errors.New("the user started this server without network for sandboxes: leave out network, or set internet=false without allow")
	}
	return nil
}

type listInput struct {
	Mine  bool `json:"mine,omitempty" jsonschema:"only those that were made in this session"`
	Limit int  `json:"limit,omitempty" jsonschema:"how many at most"`
}

type listOutput struct {
	Sandboxes []sandboxOutput `json:"sandboxes"`
	More      bool            `json:"more" jsonschema:"there are more than limit"`
}

func listSandboxes(ctx context.Context, c call, in listInput) (listOutput, error) {
	out := listOutput{Sandboxes: []sandboxOutput{}}
	selected := client.ListSandboxes{States: living, PageSize: in.Limit + 1}
	if in.Mine {
		if c.session == "" {
			return out, errors.New("this connection has no session: leave out mine")
		}
		selected.Metadata = map[string]string{LabelSession: c.session}
	}
	for sb, err := range c.Sandboxes(ctx, selected) {
		if err != nil {
			return out, err
		}
		if len(out.Sandboxes) == in.Limit {
			out.More = true
			break
		}
		out.Sandboxes = append(out.Sandboxes, describe(&sb))
	}
	return out, nil
}

type noInput struct{}

type templateOutput struct {
	Name     string `json:"name"`
	VCPUs    int    `json:"vcpus,omitempty" jsonschema:"absent: create_sandbox chooses"`
	MemoryMB int    `json:"memory_mb,omitempty" jsonschema:"absent: create_sandbox chooses"`
	StartCmd string `json:"start_command,omitempty" jsonschema:"already runs in each new sandbox"`
}

type templatesOutput struct {
	Templates []templateOutput `json:"templates"`
}

func getSandbox(ctx context.Context, c call, in target) (sandboxOutput, error) {
	sb, err := c.Sandbox(ctx, in.SandboxID)
	if err != nil {
		return sandboxOutput{}, err
	}
	return describe(sb), nil
}

type setNetworkInput struct {
	target
	networkInput
}

func setNetwork(ctx context.Context, c call, in setNetworkInput) (networkOutput, error) {
	if err := c.s.allows(&in.networkInput); err != nil {
		return networkOutput{}, err
	}
	policy := in.policy()
	if now, err := c.Network(ctx, in.SandboxID); err != nil {
		return networkOutput{}, err
	} else if now != nil {
		policy.Headers = now.Headers // which the agent does not see
	}
	set, err := c.SetNetwork(ctx, in.SandboxID, *policy)
	if err != nil {
		return networkOutput{}, err
	}
	return *describeNetwork(set), nil
}

type portInput struct {
	target

	Port int `json:"port" jsonschema:"the TCP port on which a program in the sandbox serves HTTP"`
}

type portOutput struct {
	URL       string            `json:"url"`
	Headers   map[string]string `json:"headers,omitempty" jsonschema:"that requests need, because the ports are private"`
	Listening bool              `json:"listening" jsonschema:"whether a program listens on the port now"`
}

// exposePort does not resume a paused sandbox.
func exposePort(ctx context.Context, c call, in portInput) (portOutput, error) {
	sb, err := c.Sandbox(ctx, in.SandboxID)
	if err != nil {
		return portOutput{}, err
	}
	if sb.State == client.Stopped || sb.State == client.Failed {
		return portOutput{}, errors.New("the sandbox has ended: create another")
	}
	out := portOutput{URL: c.PortURLOf(sb, in.Port)}
	if sb.Ports != nil && sb.Ports.Token != "" {
		out.Headers = map[string]string{client.TrafficHeader: sb.Ports.Token}
	}
	if sb.State != client.Running {
		return out, nil
	}
	conn, err := c.DialPort(ctx, in.SandboxID, in.Port)
	switch {
	case err == nil:
		out.Listening = true
		return out, conn.Close()
	case client.CodeOf(err) == client.InvalidState:
		return out, nil
	}
	return portOutput{}, err
}

type destroyOutput struct {
	Destroyed bool `json:"destroyed"`
}

func destroySandbox(ctx context.Context, c call, in target) (destroyOutput, error) {
	err := c.DeleteSandbox(ctx, in.SandboxID)
	return destroyOutput{Destroyed: err == nil}, err
}

func listTemplates(ctx context.Context, c call, _ noInput) (templatesOutput, error) {
	all, err := c.Templates(ctx)
	if err != nil {
		return templatesOutput{}, err
	}
	out := templatesOutput{Templates: []templateOutput{}}
	for _, t := range all {
		switch {
		case t.Current != nil:
			out.Templates = append(out.Templates, templateOutput{Name: t.Name, VCPUs: t.Current.VCPUs, MemoryMB: t.Current.MemoryMB, StartCmd: t.Current.StartCmd})
		case t.Builtin:
			out.Templates = append(out.Templates, templateOutput{Name: t.Name})
		}
	}
	return out, nil
}
