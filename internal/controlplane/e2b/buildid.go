package e2b

import (
	"encoding/hex"
	"math/big"
	"strings"

	"wrenn.dev"
)

// Clients read the ids of builds as UUIDs. Ours has 20 digits of base 36 after its
// prefix, which fit into the 122 free bits of a UUID of version 8 (RFC 9562).
const (
	idDigits = 20
	idBase   = 36
	noBuild  = "00000000-0000-0000-0000-000000000000" // of the base, which is no build
)

// uuidOf returns the id of a build as a UUID.
func uuidOf(id wrenn.BuildID) string {
	n, ok := new(big.Int).SetString(strings.TrimPrefix(string(id), "t"), idBase)
	if !ok {
		return noBuild
	}
	var payload [16]byte
	n.FillBytes(payload[:]) // 104 bits at most
	// The low 62 bits follow the variant; the 12 before them the version.
	low := new(big.Int).And(n, new(big.Int).SetUint64(1<<62-1)).Uint64() | 1<<63
	high := new(big.Int).Rsh(n, 62).Uint64() // 42 bits
	high = high>>12<<16 | 8<<12 | high&0xfff
	text := hex.EncodeToString(new(big.Int).Or(new(big.Int).Lsh(new(big.Int).SetUint64(high), 64), new(big.Int).SetUint64(low)).FillBytes(payload[:]))
	return text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]
}

// buildIDOf returns the build that uuidOf made the UUID of.
func buildIDOf(uuid string) (wrenn.BuildID, error) {
	raw, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil || len(raw) != 16 {
		return "", invalid("%.60q is not the id of a build: that is a UUID", uuid)
	}
	high, low := new(big.Int).SetBytes(raw[:8]).Uint64(), new(big.Int).SetBytes(raw[8:]).Uint64()
	high = high>>16<<12 | high&0xfff
	n := new(big.Int).Lsh(new(big.Int).SetUint64(high), 62)
	n.Or(n, new(big.Int).SetUint64(low&(1<<62-1)))
	digits := n.Text(idBase)
	if len(digits) > idDigits {
		return "", noBuildOf(uuid)
	}
	id := wrenn.BuildID("t" + strings.Repeat("0", idDigits-len(digits)) + digits)
	if uuidOf(id) != strings.ToLower(uuid) { // of another version
		return "", noBuildOf(uuid)
	}
	return id, nil
}

func noBuildOf(uuid string) error {
	return wrenn.Errorf(wrenn.NotFound, "there is no build %.60s", uuid)
}
