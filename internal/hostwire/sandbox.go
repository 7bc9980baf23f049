package hostwire

import (
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"wrenn.dev"
	"wrenn.dev/internal/wire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// CreateRequest asks for a sandbox.
func CreateRequest(id wrenn.SandboxID, spec wrenn.SandboxSpec) *pb.CreateSandboxRequest {
	return &pb.CreateSandboxRequest{
		SandboxId: string(id), Template: spec.Template, Generation: string(spec.Build),
		Vcpus: number(spec.VCPUs), MemoryMb: number(spec.MemoryMiB), DiskMb: number(spec.DiskMiB),
		TimeoutSec: seconds(spec.Timeout), OnTimeout: onTimeouts[spec.OnTimeout], AutoResume: spec.AutoResume, Env: spec.Env,
		AccessToken: spec.AccessToken, Volumes: volumes(spec.Volumes), TimeoutAbsolute: spec.Absolute,
		NetworkPolicy: NetworkPolicy(spec.Network), Secrets: secretValues(spec.Secrets), Team: string(spec.Team), TemplateKey: spec.BuildKey,
		Epoch: epoch(spec.Epoch), CheckpointEverySec: seconds(spec.CheckpointEvery),
	}
}

func volumes(mounts []wrenn.VolumeMount) (msgs []*pb.VolumeMount) {
	for _, m := range mounts {
		msgs = append(msgs, &pb.VolumeMount{VolumeId: string(m.Volume), Name: m.Name, Path: m.Path})
	}
	return msgs
}

func parseVolumes(msgs []*pb.VolumeMount) (mounts []wrenn.VolumeMount, err error) {
	for _, msg := range msgs {
		id, err := wrenn.ParseVolumeID(msg.GetVolumeId())
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, wrenn.VolumeMount{Volume: id, Name: msg.GetName(), Path: msg.GetPath()})
	}
	return mounts, nil
}

// ParseCreateRequest reads what sandbox is wanted. What the caller left out is zero.
func ParseCreateRequest(msg *pb.CreateSandboxRequest) (wrenn.SandboxID, wrenn.SandboxSpec, error) {
	spec := wrenn.SandboxSpec{
		Template: msg.GetTemplate(), Size: parseSandboxSize(msg), DiskMiB: int(msg.GetDiskMb()),
		EndOfLife:  wrenn.EndOfLife{Timeout: parseSeconds(msg.GetTimeoutSec()), Absolute: msg.GetTimeoutAbsolute()},
		AutoResume: msg.GetAutoResume(), Env: msg.GetEnv(), AccessToken: msg.GetAccessToken(), Team: wrenn.TeamID(msg.GetTeam()),
		Secrets: parseSecretValues(msg.GetSecrets()), BuildKey: msg.GetTemplateKey(), Epoch: parseEpoch(msg.GetEpoch()), CheckpointEvery: parseSeconds(msg.GetCheckpointEverySec()),
	}
	id, err := wrenn.ParseSandboxID(msg.GetSandboxId())
	if err != nil {
		return "", spec, err
	}
	if g := msg.GetGeneration(); g != "" {
		if spec.Build, err = wrenn.ParseBuildID(g); err != nil {
			return id, spec, err
		}
	}
	if spec.Volumes, err = parseVolumes(msg.GetVolumes()); err != nil {
		return id, spec, err
	}
	if spec.Network, err = parseNetworkPolicy(msg.GetNetworkPolicy()); err != nil {
		return id, spec, err
	}
	var known bool
	// A newer caller's wish is refused: to do something else instead could lose the sandbox.
	if spec.OnTimeout, known = parseOnTimeout(msg.GetOnTimeout()); !known {
		return id, spec, wrenn.Errorf(wrenn.Invalid, "this host does not know on_timeout %d: update its agent", msg.GetOnTimeout())
	}
	return id, spec, nil
}

// CreateResponse reports a sandbox that was asked for.
func CreateResponse(sb *wrenn.ObservedSandbox) *pb.CreateSandboxResponse {
	return &pb.CreateSandboxResponse{SandboxId: string(sb.ID), Status: Status(sb.State), NetworkPolicy: NetworkPolicy(sb.Network), DiskMb: number(sb.DiskMiB)}
}

// CheckCreateResponse returns a FailedPrecondition error when the host has made
// the sandbox and does not do what spec asks for.
func CheckCreateResponse(msg *pb.CreateSandboxResponse, spec wrenn.SandboxSpec) error {
	got, err := parseNetworkPolicy(msg.GetNetworkPolicy())
	if err == nil && got.IsZero() != spec.Network.IsZero() {
		err = wrenn.Errorf(wrenn.FailedPrecondition, "the agent of the sandbox's host is too old to follow a network policy: update it")
	}
	if err == nil && len(got.Headers) != len(spec.Network.Headers) {
		err = wrenn.Errorf(wrenn.FailedPrecondition, "the agent of the sandbox's host is too old for header rules: update it")
	}
	if err == nil && !got.Proxy.Equal(spec.Network.Proxy) {
		err = wrenn.Errorf(wrenn.FailedPrecondition, "the agent of the sandbox's host is too old for egress proxies: update it")
	}
	if err == nil && len(got.Layers) != len(spec.Network.Layers) {
		err = wrenn.Errorf(wrenn.FailedPrecondition, "the agent of the sandbox's host is too old for network policies of teams and templates: update it")
	}
	if err == nil && spec.DiskMiB != 0 && int(msg.GetDiskMb()) != spec.DiskMiB {
		err = wrenn.Errorf(wrenn.FailedPrecondition, "the sandbox has a disk of %d MiB, not %d: the agent of its host is too old to choose the size; update it", msg.GetDiskMb(), spec.DiskMiB)
	}
	return err
}

// NetworkPolicy is what a sandbox may reach; absent when that is everything.
func NetworkPolicy(p wrenn.NetworkPolicy) *pb.NetworkPolicy {
	if p.IsZero() {
		return nil
	}
	msg := &pb.NetworkPolicy{DenyByDefault: p.DenyByDefault, Proxy: egressProxy(p.Proxy)}
	msg.Allow, msg.Deny = ruleTexts(p.Allow, p.Names), ruleTexts(p.Deny, p.DenyNames)
	for _, addr := range p.DNSServers {
		msg.DnsServers = append(msg.DnsServers, addr.String())
	}
	for _, l := range p.Layers {
		msg.Layers = append(msg.Layers, &pb.NetworkLayer{
			Layer: string(l.Layer), DenyByDefault: l.DenyByDefault, Allow: ruleTexts(l.Allow, l.Names), Deny: ruleTexts(l.Deny, l.DenyNames),
		})
	}
	for _, rule := range p.Headers {
		r := &pb.HeaderRule{Host: rule.Host.String()}
		for _, h := range rule.Headers {
			r.Headers = append(r.Headers, &pb.Header{Name: h.Name, Text: h.Text})
		}
		msg.Headers = append(msg.Headers, r)
	}
	return msg
}

// ruleTexts returns the rules of one list. A host that knows no names there refuses them.
func ruleTexts(networks []netip.Prefix, names []wrenn.NetworkName) (texts []string) {
	for _, n := range networks {
		texts = append(texts, n.String())
	}
	for _, n := range names {
		texts = append(texts, n.String())
	}
	return texts
}

func parseNetworkPolicy(msg *pb.NetworkPolicy) (wrenn.NetworkPolicy, error) {
	p, err := parseRules(msg)
	if err != nil {
		return p, err
	}
	for _, l := range msg.GetLayers() {
		layer, err := wrenn.ParseNetworkPolicy(l.GetDenyByDefault(), l.GetAllow(), l.GetDeny())
		if err != nil {
			return p, err
		}
		p.Layers = append(p.Layers, layer.AsLayer(wrenn.NetworkLayer(l.GetLayer())))
	}
	return p, nil
}

// parseRules reads a policy without its layers.
func parseRules(msg *pb.NetworkPolicy) (wrenn.NetworkPolicy, error) {
	p, err := wrenn.ParseNetworkPolicy(msg.GetDenyByDefault(), msg.GetAllow(), msg.GetDeny())
	if err != nil {
		return p, err
	}
	if p.DNSServers, err = wrenn.ParseDNSServers(msg.GetDnsServers()); err != nil {
		return p, err
	}
	for _, r := range msg.GetHeaders() {
		host, err := wrenn.ParseNetworkName(r.GetHost())
		if err != nil {
			return p, err
		}
		rule := wrenn.HeaderRule{Host: host}
		for _, h := range r.GetHeaders() {
			rule.Headers = append(rule.Headers, wrenn.Header{Name: h.GetName(), Text: h.GetText()})
		}
		p.Headers = append(p.Headers, rule)
	}
	p.Proxy = parseEgressProxy(msg.GetProxy())
	return p, nil
}

// egressProxy has no password, encrypted or not.
func egressProxy(p *wrenn.EgressProxy) *pb.EgressProxy {
	if p == nil {
		return nil
	}
	msg := &pb.EgressProxy{Protocol: string(p.Protocol), Host: p.Host, Port: uint32(p.Port), Username: p.Username, HasPassword: p.HasPassword}
	if p.TLS != nil {
		msg.Tls, msg.ServerName, msg.Ca = true, p.TLS.ServerName, p.TLS.CA
	}
	return msg
}

// parseEgressProxy reads a proxy that NetworkPolicy.Check must still be asked about.
func parseEgressProxy(msg *pb.EgressProxy) *wrenn.EgressProxy {
	if msg == nil {
		return nil
	}
	p := &wrenn.EgressProxy{
		Protocol: wrenn.ProxyProtocol(msg.GetProtocol()), Host: msg.GetHost(), Port: port(msg.GetPort()),
		Username: msg.GetUsername(), HasPassword: msg.GetHasPassword(),
	}
	if msg.GetTls() {
		p.TLS = &wrenn.ProxyTLS{ServerName: msg.GetServerName(), CA: msg.GetCa()}
	}
	return p
}

func secretValues(v wrenn.SecretValues) *pb.SecretValues {
	if v.Tag == "" && len(v.Values) == 0 {
		return nil
	}
	return &pb.SecretValues{Tag: v.Tag, Values: v.Values}
}

func parseSecretValues(msg *pb.SecretValues) wrenn.SecretValues {
	return wrenn.SecretValues{Tag: msg.GetTag(), Values: msg.GetValues()}
}

// SetNetworkRequest asks to change what a sandbox may reach, and the secrets for its
// header rules.
func SetNetworkRequest(id wrenn.SandboxID, p wrenn.NetworkPolicy, secrets wrenn.SecretValues) *pb.SetNetworkPolicyRequest {
	return &pb.SetNetworkPolicyRequest{SandboxId: string(id), NetworkPolicy: NetworkPolicy(p), Secrets: secretValues(secrets)}
}

// ParseSetNetworkRequest reads what a sandbox is to reach, and the secrets for its header rules.
func ParseSetNetworkRequest(msg *pb.SetNetworkPolicyRequest) (wrenn.SandboxID, wrenn.NetworkPolicy, wrenn.SecretValues, error) {
	id, err := wrenn.ParseSandboxID(msg.GetSandboxId())
	if err != nil {
		return "", wrenn.NetworkPolicy{}, wrenn.SecretValues{}, err
	}
	p, err := parseNetworkPolicy(msg.GetNetworkPolicy())
	return id, p, parseSecretValues(msg.GetSecrets()), err
}

// sized is every message with a size.
type sized interface {
	GetVcpus() uint32
	GetMemoryMb() uint32
}

func parseSandboxSize(msg sized) wrenn.Size {
	return wrenn.Size{VCPUs: int(msg.GetVcpus()), MemoryMiB: int(msg.GetMemoryMb())}
}

var onTimeouts = map[wrenn.OnTimeout]pb.OnTimeout{
	"":                     pb.OnTimeout_ON_TIMEOUT_DESTROY,
	wrenn.DestroyOnTimeout: pb.OnTimeout_ON_TIMEOUT_DESTROY,
	wrenn.PauseOnTimeout:   pb.OnTimeout_ON_TIMEOUT_PAUSE,

	wrenn.PauseDiskOnTimeout: pb.OnTimeout_ON_TIMEOUT_PAUSE_DISK,
}

func parseOnTimeout(msg pb.OnTimeout) (_ wrenn.OnTimeout, known bool) {
	switch msg {
	case pb.OnTimeout_ON_TIMEOUT_UNSPECIFIED, pb.OnTimeout_ON_TIMEOUT_DESTROY:
		return wrenn.DestroyOnTimeout, true
	case pb.OnTimeout_ON_TIMEOUT_PAUSE:
		return wrenn.PauseOnTimeout, true
	case pb.OnTimeout_ON_TIMEOUT_PAUSE_DISK:
		return wrenn.PauseDiskOnTimeout, true
	}
	return "", false
}

var statuses = map[wrenn.ObservedState]pb.SandboxStatus{
	wrenn.ObservedStarting:    pb.SandboxStatus_SANDBOX_STATUS_STARTING,
	wrenn.ObservedRunning:     pb.SandboxStatus_SANDBOX_STATUS_RUNNING,
	wrenn.ObservedPaused:      pb.SandboxStatus_SANDBOX_STATUS_PAUSED,
	wrenn.ObservedStopping:    pb.SandboxStatus_SANDBOX_STATUS_STOPPING,
	wrenn.ObservedStopped:     pb.SandboxStatus_SANDBOX_STATUS_STOPPED,
	wrenn.ObservedFailed:      pb.SandboxStatus_SANDBOX_STATUS_FAILED,
	wrenn.ObservedQuarantined: pb.SandboxStatus_SANDBOX_STATUS_QUARANTINED,
	wrenn.ObservedUnknown:     pb.SandboxStatus_SANDBOX_STATUS_UNSPECIFIED,
}

// Status is an observed state.
func Status(s wrenn.ObservedState) pb.SandboxStatus { return statuses[s] }

// ParseStatus reads an observed state; ObservedUnknown for a newer host's.
func ParseStatus(msg pb.SandboxStatus) wrenn.ObservedState {
	for state, status := range statuses {
		if status == msg {
			return state
		}
	}
	return wrenn.ObservedUnknown
}

// Inventory is the list of a host's sandboxes. The host's id is not in it: the
// caller knows it.
func Inventory(inv wrenn.Inventory) *pb.ListSandboxesResponse {
	msg := &pb.ListSandboxesResponse{Instance: inv.Instance, TakenAt: timestamppb.New(inv.TakenAt)}
	for i := range inv.Sandboxes {
		msg.Sandboxes = append(msg.Sandboxes, sandboxInfo(&inv.Sandboxes[i]))
	}
	return msg
}

// ParseInventory reads the list of the sandboxes of a host.
func ParseInventory(host wrenn.HostID, msg *pb.ListSandboxesResponse) wrenn.Inventory {
	inv := wrenn.Inventory{Host: host, Instance: Text(msg.GetInstance()), TakenAt: msg.GetTakenAt().AsTime()}
	for _, info := range msg.GetSandboxes() {
		inv.Sandboxes = append(inv.Sandboxes, parseSandboxInfo(info))
	}
	return inv
}

func sandboxInfo(sb *wrenn.ObservedSandbox) *pb.SandboxInfo {
	return &pb.SandboxInfo{
		SandboxId: string(sb.ID), Status: Status(sb.State), Reason: sb.Reason, Template: sb.Template,
		Vcpus: number(sb.VCPUs), MemoryMb: number(sb.MemoryMiB), DiskMb: number(sb.DiskMiB),
		TimeoutSec: seconds(sb.Timeout), OnTimeout: onTimeouts[sb.OnTimeout], TimeoutAbsolute: sb.Absolute, AutoResume: sb.AutoResume,
		NetworkPolicy: NetworkPolicy(sb.Network), SecretsTag: sb.SecretsTag,
		CreatedAtUnix: sb.CreatedAt.Unix(), LastActiveAtUnix: sb.LastActiveAt.Unix(), Version: sb.Version,
		Unresponsive: unresponsive(sb.Unresponsive), EndCause: endCauses[sb.EndCause],
		StoredAt: storedAt(sb.Stored), StoredKey: sb.Stored.Key, Epoch: epoch(sb.Epoch), SupersededBy: epoch(sb.SupersededBy),
		NewestStored: newestStored(sb.NewestStored), Settings: settings(sb.Settings),
	}
}

func settings(s *wrenn.Settings) *pb.SandboxSettings {
	if s == nil {
		return nil
	}
	return &pb.SandboxSettings{OnTimeout: onTimeouts[s.OnTimeout], AutoResume: s.AutoResume, CheckpointEverySec: seconds(s.CheckpointEvery)}
}

// parseSettings is the inverse of settings. It reports whether this version knows them.
func parseSettings(msg *pb.SandboxSettings) (s *wrenn.Settings, known bool) {
	if msg == nil {
		return nil, true
	}
	onTimeout, known := parseOnTimeout(msg.GetOnTimeout())
	return &wrenn.Settings{OnTimeout: onTimeout, AutoResume: msg.GetAutoResume(), CheckpointEvery: parseSeconds(msg.GetCheckpointEverySec())}, known
}

// SettingsRequest asks for other settings of a sandbox.
func SettingsRequest(id wrenn.SandboxID, s wrenn.Settings) *pb.SetSandboxSettingsRequest {
	return &pb.SetSandboxSettingsRequest{SandboxId: string(id), Settings: settings(&s)}
}

// ParseSettingsRequest reads which settings are wanted.
func ParseSettingsRequest(msg *pb.SetSandboxSettingsRequest) (wrenn.SandboxID, wrenn.Settings, error) {
	id, err := wrenn.ParseSandboxID(msg.GetSandboxId())
	if err != nil {
		return id, wrenn.Settings{}, err
	}
	s, known := parseSettings(msg.GetSettings())
	if s == nil || !known {
		return id, wrenn.Settings{}, wrenn.Errorf(wrenn.Invalid, "this host does not know the settings: update its agent")
	}
	return id, *s, wrenn.CheckCheckpointEvery(s.CheckpointEvery)
}

func newestStored(c *wrenn.Checkpoint) *pb.Checkpoint {
	if c == nil {
		return nil
	}
	return Checkpoint(*c)
}

func parseNewestStored(msg *pb.Checkpoint) *wrenn.Checkpoint {
	if msg == nil {
		return nil
	}
	return new(ParseCheckpoint(msg))
}

func storedAt(s wrenn.Stored) *timestamppb.Timestamp {
	if s == (wrenn.Stored{}) {
		return nil
	}
	return timestamppb.New(s.At)
}

func parseStored(msg interface {
	GetStoredAt() *timestamppb.Timestamp
	GetStoredKey() string
}) wrenn.Stored {
	if msg.GetStoredAt() == nil || msg.GetStoredKey() == "" {
		return wrenn.Stored{}
	}
	return wrenn.Stored{At: msg.GetStoredAt().AsTime(), Key: Text(msg.GetStoredKey())}
}

// FetchRequest asks for a sandbox that is stored.
func FetchRequest(id wrenn.SandboxID, from wrenn.StoredSandbox) *pb.FetchSandboxRequest {
	return &pb.FetchSandboxRequest{SandboxId: string(id), Team: string(from.Team), Key: from.Key, Epoch: epoch(from.Epoch)}
}

// ImportStart says which sandbox follows, as in FetchRequest, with at most so many bytes.
func ImportStart(id wrenn.SandboxID, as wrenn.StoredSandbox, most int64) *pb.ImportStart {
	return &pb.ImportStart{SandboxId: string(id), Team: string(as.Team), Epoch: epoch(as.Epoch), MaxBytes: uint64(max(most, 0))}
}

// CopyRequest asks for a sandbox that is made from a stored checkpoint.
func CopyRequest(id wrenn.SandboxID, spec wrenn.SandboxSpec, from wrenn.CheckpointSource) *pb.CopyCheckpointRequest {
	return &pb.CopyCheckpointRequest{Sandbox: CreateRequest(id, spec), ParentId: string(from.Sandbox), CheckpointId: string(from.Checkpoint), Key: from.Key}
}

// ParseCopyRequest reads what sandbox is wanted, and from which checkpoint.
func ParseCopyRequest(msg *pb.CopyCheckpointRequest) (id wrenn.SandboxID, spec wrenn.SandboxSpec, from wrenn.CheckpointSource, err error) {
	if id, spec, err = ParseCreateRequest(msg.GetSandbox()); err != nil {
		return id, spec, from, err
	}
	from = wrenn.CheckpointSource{Checkpoint: wrenn.CheckpointID(msg.GetCheckpointId()), Key: msg.GetKey()}
	from.Sandbox, err = wrenn.ParseSandboxID(msg.GetParentId())
	return id, spec, from, err
}

// ParseFetchRequest reads which stored sandbox is wanted.
func ParseFetchRequest(msg *pb.FetchSandboxRequest) (id wrenn.SandboxID, from wrenn.StoredSandbox, err error) {
	id, err = wrenn.ParseSandboxID(msg.GetSandboxId())
	return id, wrenn.StoredSandbox{Team: wrenn.TeamID(msg.GetTeam()), Key: msg.GetKey(), Epoch: parseEpoch(msg.GetEpoch())}, err
}

func unresponsive(u *wrenn.Unresponsive) *pb.Unresponsive {
	if u == nil {
		return nil
	}
	return &pb.Unresponsive{Since: timestamppb.New(u.Since), Reason: u.Reason}
}

func parseUnresponsive(msg *pb.Unresponsive) *wrenn.Unresponsive {
	if msg == nil {
		return nil
	}
	return &wrenn.Unresponsive{Since: msg.GetSince().AsTime(), Reason: Text(msg.GetReason())}
}

var endCauses = map[wrenn.EndCause]pb.EndCause{
	wrenn.CauseUnknown:       pb.EndCause_END_CAUSE_UNSPECIFIED,
	wrenn.CauseUser:          pb.EndCause_END_CAUSE_USER,
	wrenn.CauseTimeout:       pb.EndCause_END_CAUSE_TIMEOUT,
	wrenn.CausePoweredOff:    pb.EndCause_END_CAUSE_GUEST_POWERED_OFF,
	wrenn.CausePanicked:      pb.EndCause_END_CAUSE_GUEST_PANICKED,
	wrenn.CauseGuestMemory:   pb.EndCause_END_CAUSE_GUEST_OUT_OF_MEMORY,
	wrenn.CauseHostMemory:    pb.EndCause_END_CAUSE_HOST_OUT_OF_MEMORY,
	wrenn.CauseVMM:           pb.EndCause_END_CAUSE_VMM_CRASHED,
	wrenn.CauseHostRestarted: pb.EndCause_END_CAUSE_HOST_RESTARTED,
	wrenn.CauseLost:          pb.EndCause_END_CAUSE_HOST_LOST,
	wrenn.CauseStart:         pb.EndCause_END_CAUSE_START_FAILED,
	wrenn.CauseQuarantined:   pb.EndCause_END_CAUSE_QUARANTINED,
	wrenn.CauseInternal:      pb.EndCause_END_CAUSE_INTERNAL,
}

// parseEndCause reads why a sandbox ended; CauseUnknown for a newer host's reason.
func parseEndCause(msg pb.EndCause) wrenn.EndCause {
	for cause, known := range endCauses {
		if known == msg {
			return cause
		}
	}
	return wrenn.CauseUnknown
}

func parseSandboxInfo(msg *pb.SandboxInfo) wrenn.ObservedSandbox {
	id, err := wrenn.ParseSandboxID(msg.GetSandboxId())
	if err != nil {
		// A host may find things with strange names: an operator sees them, in quotes, and they match no row.
		id = wrenn.SandboxID(fmt.Sprintf("%.60q", msg.GetSandboxId()))
	}
	onTimeout, _ := parseOnTimeout(msg.GetOnTimeout())       // "" for a newer host's
	network, _ := parseNetworkPolicy(msg.GetNetworkPolicy()) // that of a newer host: the row's is set again
	now, _ := parseSettings(msg.GetSettings())               // likewise
	return wrenn.ObservedSandbox{
		ID: id, State: ParseStatus(msg.GetStatus()), Reason: Text(msg.GetReason()), Template: Text(msg.GetTemplate()),
		Size: parseSandboxSize(msg), DiskMiB: int(msg.GetDiskMb()),
		EndOfLife:  wrenn.EndOfLife{Timeout: parseSeconds(msg.GetTimeoutSec()), OnTimeout: onTimeout, Absolute: msg.GetTimeoutAbsolute()},
		AutoResume: msg.GetAutoResume(), Network: network, SecretsTag: Text(msg.GetSecretsTag()),
		CreatedAt: time.Unix(msg.GetCreatedAtUnix(), 0).UTC(), LastActiveAt: time.Unix(msg.GetLastActiveAtUnix(), 0).UTC(),
		Version: msg.GetVersion(), Unresponsive: parseUnresponsive(msg.GetUnresponsive()), EndCause: parseEndCause(msg.GetEndCause()),
		Stored: parseStored(msg), Epoch: parseEpoch(msg.GetEpoch()), SupersededBy: parseEpoch(msg.GetSupersededBy()),
		NewestStored: parseNewestStored(msg.GetNewestStored()), Settings: now,
	}
}

// PauseRequest asks for a pause.
func PauseRequest(id wrenn.SandboxID, options wrenn.PauseOptions) *pb.PauseSandboxRequest {
	return &pb.PauseSandboxRequest{
		SandboxId: string(id), DiskOnly: options.DiskOnly, Hold: options.Hold,
		Force: options.Guest == wrenn.PauseForced, IfAble: options.Guest == wrenn.PauseIfAble,
		Epoch: epoch(options.Epoch), SupersededBy: epoch(options.SupersededBy),
	}
}

// ParsePauseRequest reads how a sandbox is to be paused.
func ParsePauseRequest(msg *pb.PauseSandboxRequest) wrenn.PauseOptions {
	options := wrenn.PauseOptions{
		DiskOnly: msg.GetDiskOnly(), Hold: msg.GetHold(), Epoch: parseEpoch(msg.GetEpoch()), SupersededBy: parseEpoch(msg.GetSupersededBy()),
	}
	switch {
	case msg.GetForce():
		options.Guest = wrenn.PauseForced
	case msg.GetIfAble():
		options.Guest = wrenn.PauseIfAble
	}
	return options
}

// ForkRequest asks for copies of a sandbox.
func ForkRequest(id wrenn.SandboxID, fork wrenn.ForkSpec) *pb.ForkSandboxRequest {
	msg := &pb.ForkSandboxRequest{SandboxId: string(id), CheckpointId: string(fork.Checkpoint), Epoch: epoch(fork.Epoch)}
	for _, id := range fork.IDs {
		msg.NewIds = append(msg.NewIds, string(id))
	}
	for id, token := range fork.Tokens {
		if msg.AccessTokens == nil {
			msg.AccessTokens = map[string]string{}
		}
		msg.AccessTokens[string(id)] = token
	}
	return msg
}

// ParseForkRequest reads which copies of a sandbox are wanted.
func ParseForkRequest(msg *pb.ForkSandboxRequest) (id wrenn.SandboxID, fork wrenn.ForkSpec, err error) {
	if id, err = wrenn.ParseSandboxID(msg.GetSandboxId()); err != nil {
		return "", wrenn.ForkSpec{}, err
	}
	fork.Checkpoint, fork.Epoch = wrenn.CheckpointID(msg.GetCheckpointId()), parseEpoch(msg.GetEpoch())
	for _, text := range msg.GetNewIds() {
		copied, err := wrenn.ParseSandboxID(text)
		if err != nil {
			return "", wrenn.ForkSpec{}, err
		}
		fork.IDs = append(fork.IDs, copied)
	}
	for copied, token := range msg.GetAccessTokens() { // one of no copy has no effect
		if fork.Tokens == nil {
			fork.Tokens = map[wrenn.SandboxID]string{}
		}
		fork.Tokens[wrenn.SandboxID(copied)] = token
	}
	return id, fork, nil
}

// ForkResults says what became of each copy, and of which checkpoint they are copies.
// The message of an error is for the user.
func ForkResults(from wrenn.CheckpointID, results []wrenn.ForkResult) *pb.ForkSandboxResponse {
	msg := &pb.ForkSandboxResponse{CheckpointId: string(from)}
	for _, r := range results {
		code, message := wire.ToResult(r.Err)
		msg.Results = append(msg.Results, &pb.ForkResult{SandboxId: string(r.ID), Code: code, Message: message})
	}
	return msg
}

// ParseForkResults reads what became of each copy, in the host's order, and of which
// checkpoint they are copies.
func ParseForkResults(msg *pb.ForkSandboxResponse) (from wrenn.CheckpointID, results []wrenn.ForkResult) {
	for _, r := range msg.GetResults() {
		results = append(results, wrenn.ForkResult{ID: wrenn.SandboxID(r.GetSandboxId()), Err: wire.FromResult(r.GetCode(), Text(r.GetMessage()))})
	}
	return wrenn.CheckpointID(msg.GetCheckpointId()), results
}

// Checkpoint is one of a sandbox's checkpoints.
func Checkpoint(c wrenn.Checkpoint) *pb.Checkpoint {
	return &pb.Checkpoint{
		Id: string(c.ID), Parent: string(c.Parent), Name: c.Name, CreatedAtUnixMs: c.CreatedAt.UnixMilli(), SizeBytes: size(c.SizeBytes),
		StoredAt: storedAt(c.Stored), StoredKey: c.Stored.Key, Automatic: c.Automatic, OwnBytes: measured(c.OwnBytes),
	}
}

// ParseCheckpoint reads one of a sandbox's checkpoints.
func ParseCheckpoint(msg *pb.Checkpoint) wrenn.Checkpoint {
	return wrenn.Checkpoint{
		ID: wrenn.CheckpointID(Text(msg.GetId())), Parent: wrenn.CheckpointID(Text(msg.GetParent())), Name: Text(msg.GetName()),
		CreatedAt: time.UnixMilli(msg.GetCreatedAtUnixMs()).UTC(), SizeBytes: parseSize(msg.GetSizeBytes()),
		Stored: parseStored(msg), Automatic: msg.GetAutomatic(), OwnBytes: ownBytes(msg),
	}
}

func ownBytes(msg *pb.Checkpoint) *int64 {
	if msg == nil {
		return nil
	}
	return parseMeasured(msg.OwnBytes)
}

// measured is a size that may be unknown.
func measured(bytes *int64) *uint64 {
	if bytes == nil {
		return nil
	}
	return new(size(*bytes))
}

func parseMeasured(bytes *uint64) *int64 {
	if bytes == nil {
		return nil
	}
	return new(parseSize(*bytes))
}

// Checkpoints lists a sandbox's checkpoints, and which one it continues from.
func Checkpoints(all wrenn.Checkpoints) *pb.ListCheckpointsResponse {
	msg := &pb.ListCheckpointsResponse{Head: string(all.Head), DiskBytes: measured(all.DiskBytes)}
	for _, c := range all.List {
		msg.Checkpoints = append(msg.Checkpoints, Checkpoint(c))
	}
	return msg
}

// ParseCheckpoints reads the list of a sandbox's checkpoints.
func ParseCheckpoints(msg *pb.ListCheckpointsResponse) wrenn.Checkpoints {
	all := wrenn.Checkpoints{Head: wrenn.CheckpointID(Text(msg.GetHead()))}
	if msg != nil {
		all.DiskBytes = parseMeasured(msg.DiskBytes)
	}
	for _, c := range msg.GetCheckpoints() {
		all.List = append(all.List, ParseCheckpoint(c))
	}
	return all
}

// ExtendRequest sets the time without use after which a sandbox ends; 0 is never.
func ExtendRequest(id wrenn.SandboxID, timeout time.Duration) *pb.ExtendSandboxRequest {
	return &pb.ExtendSandboxRequest{SandboxId: string(id), TimeoutSec: seconds(timeout)}
}

// ParseExtendRequest reads the time without use after which a sandbox is to end.
func ParseExtendRequest(msg *pb.ExtendSandboxRequest) (wrenn.SandboxID, time.Duration, error) {
	id, err := wrenn.ParseSandboxID(msg.GetSandboxId())
	return id, parseSeconds(msg.GetTimeoutSec()), err
}
