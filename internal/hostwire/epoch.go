package hostwire

import (
	"strconv"

	"wrenn.dev"
)

// EpochHeader is the header of a call that names the epoch of the sandbox which it means.
const EpochHeader = "Wrenn-Epoch"

// EpochText is the value of EpochHeader.
func EpochText(epoch wrenn.Epoch) string { return strconv.FormatInt(int64(epoch), 10) }

// ParseEpochText reads EpochHeader; "" is 0.
func ParseEpochText(text string) (wrenn.Epoch, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, wrenn.Errorf(wrenn.Invalid, "%s %.40q is not a number of a placement", EpochHeader, text)
	}
	return wrenn.Epoch(n), nil
}

func epoch(e wrenn.Epoch) uint64 { return size(int64(e)) }

func parseEpoch(n uint64) wrenn.Epoch { return wrenn.Epoch(parseSize(n)) }
