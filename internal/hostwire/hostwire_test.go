package hostwire_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	"wrenn.dev"
	"wrenn.dev/internal/hostwire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// Calls whose words are several values.
type (
	create struct {
		ID   wrenn.SandboxID
		Spec wrenn.SandboxSpec
	}
	fork struct {
		ID   wrenn.SandboxID
		Spec wrenn.ForkSpec
	}
	forked struct {
		From    wrenn.CheckpointID
		Results []wrenn.ForkResult
	}
	setNetwork struct {
		ID      wrenn.SandboxID
		Policy  wrenn.NetworkPolicy
		Secrets wrenn.SecretValues
	}
	fetch struct {
		ID   wrenn.SandboxID
		From wrenn.StoredSandbox
	}
	metrics struct {
		ID       wrenn.SandboxID
		From, To time.Time
	}
	egress struct {
		ID    wrenn.SandboxID
		After uint64
		Wait  time.Duration
	}
	explain struct {
		ID   wrenn.SandboxID
		Host string
		Port uint16
	}
	command struct {
		ID    wrenn.SandboxID
		Owner wrenn.TeamID
		Cmd   wrenn.ExecCommand
	}
	start struct {
		ID    wrenn.SandboxID
		Start wrenn.ExecStart
	}
	checkpointCopy struct {
		ID   wrenn.SandboxID
		Spec wrenn.SandboxSpec
		From wrenn.CheckpointSource
	}
	attach struct {
		ID wrenn.SandboxID
		To wrenn.ExecAttach
	}
)

// dropPassword removes what a host gets as a secret alone.
func dropPassword(p wrenn.NetworkPolicy) {
	if p.Proxy != nil {
		p.Proxy.Sealed, p.Proxy.SealedKey, p.Proxy.Password = nil, "", ""
	}
}

// TestRoundTrip fills every field of each word, and of each message, and
// translates it there and back: a field that either direction forgets is lost.
func TestRoundTrip(t *testing.T) {
	roundTrip(t, "host info", hostwire.HostInfo, never(hostwire.ParseHostInfo), nil)
	roundTrip(t, "create", func(w create) *pb.CreateSandboxRequest { return hostwire.CreateRequest(w.ID, w.Spec) },
		func(m *pb.CreateSandboxRequest) (w create, err error) {
			w.ID, w.Spec, err = hostwire.ParseCreateRequest(m)
			return w, err
		}, func(w *create) { dropPassword(w.Spec.Network) })
	roundTrip(t, "inventory", hostwire.Inventory, never(func(m *pb.ListSandboxesResponse) wrenn.Inventory {
		return hostwire.ParseInventory("host", m)
	}), func(w *wrenn.Inventory) {
		w.Host = "host" // which the caller knows
		for _, sb := range w.Sandboxes {
			dropPassword(sb.Network)
		}
	})
	roundTrip(t, "fork", func(w fork) *pb.ForkSandboxRequest { return hostwire.ForkRequest(w.ID, w.Spec) },
		func(m *pb.ForkSandboxRequest) (w fork, err error) {
			w.ID, w.Spec, err = hostwire.ParseForkRequest(m)
			return w, err
		}, nil)
	roundTrip(t, "network policy", func(w setNetwork) *pb.SetNetworkPolicyRequest {
		return hostwire.SetNetworkRequest(w.ID, w.Policy, w.Secrets)
	},
		func(m *pb.SetNetworkPolicyRequest) (w setNetwork, err error) {
			w.ID, w.Policy, w.Secrets, err = hostwire.ParseSetNetworkRequest(m)
			return w, err
		}, func(w *setNetwork) { dropPassword(w.Policy) })
	roundTrip(t, "fetch", func(w fetch) *pb.FetchSandboxRequest { return hostwire.FetchRequest(w.ID, w.From) },
		func(m *pb.FetchSandboxRequest) (w fetch, err error) {
			w.ID, w.From, err = hostwire.ParseFetchRequest(m)
			return w, err
		}, nil)
	roundTrip(t, "copy", func(w checkpointCopy) *pb.CopyCheckpointRequest { return hostwire.CopyRequest(w.ID, w.Spec, w.From) },
		func(m *pb.CopyCheckpointRequest) (w checkpointCopy, err error) {
			w.ID, w.Spec, w.From, err = hostwire.ParseCopyRequest(m)
			return w, err
		}, func(w *checkpointCopy) { dropPassword(w.Spec.Network) })
	roundTrip(t, "metrics request", func(w metrics) *pb.ReadMetricsRequest { return hostwire.MetricsRequest(w.ID, w.From, w.To) },
		func(m *pb.ReadMetricsRequest) (w metrics, err error) {
			w.ID, w.From, w.To, err = hostwire.ParseMetricsRequest(m)
			return w, err
		}, nil)
	roundTrip(t, "egress request", func(w egress) *pb.ReadEgressRequest { return hostwire.EgressRequest(w.ID, w.After, w.Wait) },
		func(m *pb.ReadEgressRequest) (w egress, err error) {
			w.ID, w.After, w.Wait, err = hostwire.ParseEgressRequest(m)
			return w, err
		}, nil)
	roundTrip(t, "egress", hostwire.Egress, never(hostwire.ParseEgress), nil)
	roundTrip(t, "explain request", func(w explain) *pb.ExplainEgressRequest { return hostwire.ExplainRequest(w.ID, w.Host, w.Port) },
		func(m *pb.ExplainEgressRequest) (w explain, err error) {
			w.ID, w.Host, w.Port, err = hostwire.ParseExplainRequest(m)
			return w, err
		}, nil)
	roundTrip(t, "explanation", hostwire.Explanation, never(hostwire.ParseExplanation), nil)
	roundTrip(t, "metrics", hostwire.Metrics, never(hostwire.ParseMetrics), nil)
	roundTrip(t, "volume entry", hostwire.VolumeEntry, never(hostwire.ParseVolumeEntry), nil)
	roundTrip(t, "volume attributes", hostwire.VolumeAttributes, never(hostwire.ParseVolumeAttributes), nil)
	roundTrip(t, "fork results", func(w forked) *pb.ForkSandboxResponse { return hostwire.ForkResults(w.From, w.Results) },
		never(func(m *pb.ForkSandboxResponse) (w forked) {
			w.From, w.Results = hostwire.ParseForkResults(m)
			return w
		}), nil)
	roundTrip(t, "checkpoint", hostwire.Checkpoint, never(hostwire.ParseCheckpoint), nil)
	roundTrip(t, "checkpoints", hostwire.Checkpoints, never(hostwire.ParseCheckpoints), nil)
	roundTrip(t, "build", hostwire.BuildRequest, hostwire.ParseBuildRequest, func(w *wrenn.BuildRequest) {
		if w.Spec.From.OCI == "" {
			w.Login = wrenn.RegistryLogin{}
		}
		if w.Spec.From.Sandbox != "" {
			w.Spec, w.Network = wrenn.TemplateSpec{From: w.Spec.From}, wrenn.NetworkPolicy{} // which has the rest
		}
		dropPassword(w.Network)
	})
	roundTrip(t, "build event", hostwire.BuildEvent, never(hostwire.ParseBuildEvent), nil)
}

func TestRoundTripOfCommands(t *testing.T) {
	roundTrip(t, "exec", func(w command) *pb.ExecRequest { return hostwire.ExecRequest(w.ID, w.Owner, w.Cmd) },
		func(m *pb.ExecRequest) (w command, err error) {
			w.ID, w.Cmd, err = hostwire.ParseExecRequest(m)
			w.Owner = wrenn.TeamID(m.GetOwner())
			return w, err
		}, nil)
	roundTrip(t, "exec result", hostwire.ExecResult, never(hostwire.ParseExecResult),
		func(w *wrenn.ExecResult) { w.Duration = 0 }) // which the caller measures
	roundTrip(t, "start", func(w start) *pb.ExecStart { return hostwire.ExecStart(w.ID, w.Start).GetStart() },
		func(m *pb.ExecStart) (w start, err error) {
			w.ID, w.Start, err = hostwire.ParseExecStart(m)
			return w, err
		}, func(w *start) { w.Start.Stdin = nil }) // input comes by the stream
	roundTrip(t, "attach", func(w attach) *pb.ExecAttach { return hostwire.ExecAttach(w.ID, w.To).GetAttach() },
		func(m *pb.ExecAttach) (w attach, err error) {
			w.ID, w.To, err = hostwire.ParseExecAttach(m)
			return w, err
		}, nil)
	roundTrip(t, "input", func(w wrenn.ExecInput) *pb.ExecStreamRequest {
		m, err := hostwire.ExecInput(w)
		if err != nil {
			t.Error(err)
		}
		return m
	}, hostwire.ParseExecInput, nil)
	roundTrip(t, "output", hostwire.ExecOutput, func(m *pb.ExecStreamResponse) (wrenn.ExecOutput, error) {
		w, ok := hostwire.ParseExecOutput(m)
		if !ok {
			return w, fmt.Errorf("nothing in %v", m)
		}
		return w, nil
	}, nil)
}

func never[M, W any](parse func(M) W) func(M) (W, error) {
	return func(m M) (W, error) { return parse(m), nil }
}

// choices is as many as the largest of the words and messages has alternatives.
const choices = 9

// roundTrip takes words and messages there and back, one for each alternative.
// unsent clears what a word holds and a message does not.
func roundTrip[W any, M proto.Message](t *testing.T, name string, message func(W) M, word func(M) (W, error), unsent func(*W)) {
	t.Helper()
	for choice := range choices {
		var want W
		fillWord(t, reflect.ValueOf(&want).Elem(), choice)
		if unsent != nil {
			unsent(&want)
		}
		if got, err := word(overTheWire(t, message(want))); err != nil {
			t.Errorf("%s, alternative %d: %v", name, choice, err)
		} else if diff := cmp.Diff(want, got, sameAddr); diff != "" {
			t.Errorf("%s, alternative %d: word to message and back (-want +got):\n%s", name, choice, diff)
		}
		msg := message(want).ProtoReflect().New()
		if !fillMessage(msg, choice) {
			continue
		}
		got, err := word(overTheWire(t, msg.Interface().(M)))
		if err != nil {
			t.Errorf("%s, alternative %d: %v", name, choice, err)
		} else if diff := cmp.Diff(msg.Interface(), proto.Message(message(got)), protocmp.Transform()); diff != "" {
			t.Errorf("%s, alternative %d: message to word and back (-want +got):\n%s", name, choice, diff)
		}
	}
}

func overTheWire[M proto.Message](t *testing.T, msg M) M {
	t.Helper()
	data, err := proto.Marshal(msg)
	if err != nil {
		t.Fatal(err)
	}
	out := msg.ProtoReflect().New().Interface().(M)
	if err := proto.Unmarshal(data, out); err != nil {
		t.Fatal(err)
	}
	return out
}

var (
	moment   = time.Unix(1_700_000_000, 0).UTC()
	sandbox  = wrenn.NewSandboxID()
	template = wrenn.NewBuildID()
	volume   = wrenn.NewVolumeID()
)

// sameAddr compares addresses, which have no Equal method.
var sameAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// words holds a value of each type that has a form.
var words = map[reflect.Type]any{
	reflect.TypeFor[wrenn.SandboxID]():     sandbox,
	reflect.TypeFor[wrenn.BuildID]():       template,
	reflect.TypeFor[wrenn.VolumeID]():      volume,
	reflect.TypeFor[wrenn.FileType]():      wrenn.Directory,
	reflect.TypeFor[wrenn.OnTimeout]():     wrenn.PauseOnTimeout,
	reflect.TypeFor[wrenn.ObservedState](): wrenn.ObservedQuarantined,
	reflect.TypeFor[wrenn.Signal]():        wrenn.SIGKILL,
	reflect.TypeFor[wrenn.EndReason]():     wrenn.EndOutOfMemory,
	reflect.TypeFor[wrenn.EndCause]():      wrenn.CauseInternal,
	reflect.TypeFor[time.Duration]():       77 * time.Second,
	reflect.TypeFor[time.Time]():           moment,
	reflect.TypeFor[netip.Prefix]():        netip.MustParsePrefix("192.0.2.0/24"),
	reflect.TypeFor[netip.Addr]():          netip.MustParseAddr("192.0.2.1"),
	reflect.TypeFor[wrenn.NetworkName]():   wrenn.NetworkName{Domain: "*.example.com", Port: 443},
	reflect.TypeFor[error]():               wrenn.Errorf(wrenn.Exhausted, "full"),
	reflect.TypeFor[[]byte]():              []byte("bytes"),
}

// unions are the words of which one field is set, and of which fields that is
// the other one.
var unions = map[reflect.Type]map[string][]string{
	reflect.TypeFor[wrenn.TemplateSource](): {},
	reflect.TypeFor[wrenn.BuildEvent]():     {},
	reflect.TypeFor[wrenn.ExecInput]():      {},
	reflect.TypeFor[wrenn.ExecOutput]():     {"Offset": {"Stdout", "Stderr", "PTY"}},
}

// fillWord sets every field, and of a union the one that is chosen.
func fillWord(t *testing.T, v reflect.Value, choice int) {
	t.Helper()
	if value, ok := words[v.Type()]; ok {
		v.Set(reflect.ValueOf(value))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("text of a " + v.Type().Name())
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(77)
	case reflect.Float64:
		v.SetFloat(7.5)
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(78)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillWord(t, v.Elem(), choice)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fillWord(t, v.Index(i), choice)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("name").Convert(v.Type().Key()), reflect.ValueOf("value"))
	case reflect.Struct:
		fillStruct(t, v, choice)
	default:
		t.Fatalf("no value for a %v", v.Type())
	}
}

func fillStruct(t *testing.T, v reflect.Value, choice int) {
	t.Helper()
	beside, union := unions[v.Type()]
	var chosen string
	if union {
		var alternatives []string
		for i := range v.NumField() {
			if name := v.Type().Field(i).Name; beside[name] == nil {
				alternatives = append(alternatives, name)
			}
		}
		if len(alternatives) > choices {
			t.Fatalf("%v has %d alternatives, more than the %d that are tried", v.Type(), len(alternatives), choices)
		}
		chosen = alternatives[choice%len(alternatives)]
	}
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if !union || name == chosen || slices.Contains(beside[name], chosen) {
			fillWord(t, v.Field(i), choice)
		}
	}
}

// untranslated are the fields that no word has.
var untranslated = map[protoreflect.FullName]string{
	"hostagent.v1.SandboxInfo.host_ip": "always empty: no address of the host leads to a guest",
}

// fillMessage sets every field, and of alternatives the one that is chosen. It
// reports whether the alternative is one that is translated.
func fillMessage(m protoreflect.Message, choice int) bool {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if one := field.ContainingOneof(); one != nil && !one.IsSynthetic() {
			if chosen := one.Fields().Get(choice % one.Fields().Len()); chosen != field {
				continue
			}
		}
		if untranslated[field.FullName()] != "" {
			continue
		}
		switch {
		case field.FullName() == "hostagent.v1.BuildTemplateRequest.sandbox_id",
			field.FullName() == "hostagent.v1.ExecStreamRequest.start", field.FullName() == "hostagent.v1.ExecStreamRequest.attach":
			return false // goes without the other fields; is translated by its own functions
		case field.IsMap():
			m.Mutable(field).Map().Set(protoreflect.ValueOfString("name").MapKey(), protoreflect.ValueOfString("value"))
		case field.IsList() && field.Message() != nil:
			fillMessage(m.Mutable(field).List().AppendMutable().Message(), choice)
		case field.IsList():
			m.Mutable(field).List().Append(valueOf(field))
		case field.Message() != nil:
			fillMessage(m.Mutable(field).Message(), choice)
		case field.FullName() == "hostagent.v1.ExecStreamResponse.offset" && (choice == 0 || choice > 3):
			// is that of output
		default:
			m.Set(field, valueOf(field))
		}
	}
	return true
}

func valueOf(field protoreflect.FieldDescriptor) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(textOf(field))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("bytes"))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		values := field.Enum().Values()
		return protoreflect.ValueOfEnum(values.Get(values.Len() - 1).Number())
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(77)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(7.5)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(78)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(1_700_000_000)
	case protoreflect.Int32Kind, protoreflect.Sint32Kind:
		return protoreflect.ValueOfInt32(79)
	default:
		panic(field.FullName())
	}
}

func textOf(field protoreflect.FieldDescriptor) string {
	switch field.Name() {
	case "sandbox_id", "new_ids", "parent_id":
		return string(sandbox)
	case "volume_id":
		return string(volume)
	case "generation", "base_generation":
		return string(template)
	case "allow", "deny":
		return "192.0.2.0/24"
	case "dns_servers":
		return "192.0.2.1"
	case "host":
		if field.ContainingMessage().Name() == "HeaderRule" {
			return "*.example.com:443"
		}
	case "address":
		return "192.0.2.1"
	case "code":
		return "not_found"
	}
	return "text of " + string(field.Name())
}
