package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"wrenn.dev"
)

// hidden are features of the host's processor that no guest gets. Virtualization inside
// of a guest would open a large part of KVM to it; performance counters show what else
// runs on the core.
const hidden = "pmu=off,vmx=off,svm=off"

// describeHost asks QEMU, by its control protocol, what its processor "host" has without
// what is hidden.
const describeHost = `{"execute":"qmp_capabilities"}
{"execute":"query-cpu-model-expansion","arguments":{"type":"static","model":{"name":"host","props":{"pmu":false,"vmx":false,"svm":false}}}}
{"execute":"quit"}
`

// hostFeatures returns the names, in order, of the features that QEMU and KVM can give
// a guest of the host's processor. FailedPrecondition if QEMU does not run with KVM.
// They may differ between boots of a host, with its kernel and microcode, and between
// processors that vm.HostProcessor does not tell apart.
func hostFeatures(ctx context.Context, path string) ([]string, error) {
	cmd := exec.CommandContext(ctx, path, "-machine", "none", "-accel", "kvm", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio")
	cmd.Stdin = strings.NewReader(describeHost)
	out, err := cmd.Output()
	if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // Output returns it as it is
		err = fmt.Errorf("%w: %.200s", err, bytes.TrimSpace(exit.Stderr))
	}
	if err != nil {
		return nil, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "QEMU does not run with KVM", Err: err}
	}
	return parseFeatures(out)
}

// parseFeatures finds the features in the messages that QEMU prints.
func parseFeatures(messages []byte) ([]string, error) {
	for line := range bytes.Lines(messages) {
		var m struct {
			Return struct {
				Model struct {
					Props map[string]any `json:"props"`
				} `json:"model"`
			} `json:"return"`
		}
		if json.Unmarshal(line, &m) != nil || len(m.Return.Model.Props) == 0 {
			continue // another message
		}
		var features []string
		for name, value := range m.Return.Model.Props {
			if value == true { // others are numbers, such as the processor's model
				features = append(features, name)
			}
		}
		slices.Sort(features)
		return features, nil
	}
	return nil, wrenn.Errorf(wrenn.FailedPrecondition, "QEMU does not say what the host's processor has: %.80q", messages)
}

// without returns the elements of all that are not in some.
func without(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(some, s) })
}
