package cli

import (
	"fmt"
	"strconv"
	"time"
)

// count is the value of a flag that is at least 1; 0 means that it was not given.
type count int

// UnmarshalText reads a whole number.
func (c *count) UnmarshalText(text []byte) error {
	n, err := strconv.ParseInt(string(text), 10, 32)
	if err != nil || n < 1 {
		return fmt.Errorf("%.40q is not a whole number above 0", text)
	}
	*c = count(n)
	return nil
}

// span is the value of a flag that is a time above 0; 0 means that it was not given.
type span struct{ time.Duration }

// UnmarshalText reads "90s" or "1h30m".
func (d *span) UnmarshalText(text []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(text))
	if err != nil || d.Duration <= 0 {
		return fmt.Errorf("%.40q is not a time above 0: write 90s or 1h30m", text)
	}
	return nil
}

// String returns the time in one unit, rounded down.
func (d span) String() string {
	switch t := max(0, d.Duration); {
	case t < time.Minute:
		return fmt.Sprintf("%ds", int(t.Seconds()))
	case t < time.Hour:
		return fmt.Sprintf("%dm", int(t.Minutes()))
	case t < 48*time.Hour:
		return fmt.Sprintf("%dh", int(t.Hours()))
	default:
		return fmt.Sprintf("%dd", int(t.Hours()/24))
	}
}
