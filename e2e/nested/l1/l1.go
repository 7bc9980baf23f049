// Package l1 has the definitions that the nested test shares with the init program
// of its virtual machine (L1).
package l1

// PlanPath is where L1's disk holds the Plan, as JSON.
const PlanPath = "/plan.json"

// Results is the serial port that the programs' output goes to, raw; the
// kernel's console is the port before it.
const Results = "/dev/ttyS1"

// The lines between the programs' output, each followed by a space and details;
// no test prints them by accident.
const (
	Begin = "@@l1 begin" // name of the program
	End   = "@@l1 end"   // name, exit code
	Fault = "@@l1 fault" // what the init program could not do
	Done  = "@@l1 done"  // "ok": all of the plan was run
)

// Plan is what L1 runs, one program after the other.
type Plan struct {
	Programs []Program
}

// Program is run as root in L1, its output (both streams) goes to Results.
type Program struct {
	Name string
	Args []string // [0] is the path on L1's disk
	Env  []string
}
