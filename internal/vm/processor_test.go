package vm

import "testing"

func TestProcessorOf(t *testing.T) {
	info := "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 23\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nstepping\t: 2\n\n" +
		"processor\t: 1\nvendor_id\t: Other\n"
	if got := processorOf([]byte(info)); got != "AuthenticAMD 23 1 2" {
		t.Errorf("processorOf() = %q", got)
	}
}
