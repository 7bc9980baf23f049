package filesystem

import (
	"strconv"
	"strings"

	"wrenn"
)

// encoding is how the body of an answer is coded.
type encoding string

const (
	identity encoding = "identity"
	gzipped  encoding = "gzip"
)

// chooseEncoding picks by an Accept-Encoding header, RFC 9110 §12.5.3: gzip
// where it is named and liked no less than identity, which need not be named.
// The error says that the client refuses both.
func chooseEncoding(header string) (encoding, error) {
	weights := acceptWeights(header)
	gzip, named := weights[string(gzipped)]
	plain, plainNamed := weights[string(identity)]
	rest, restNamed := weights["*"]
	if !plainNamed && restNamed {
		plain = rest
	}
	plainOK := plain > 0 || !plainNamed && !restNamed
	if !named {
		gzip = rest
	}
	switch {
	case named && gzip > 0 && (!plainNamed || gzip >= plain):
		return gzipped, nil
	case plainOK:
		return identity, nil
	case gzip > 0:
		return gzipped, nil
	default:
		return "", wrenn.Errorf(wrenn.Invalid, "only gzip and identity can be sent, and Accept-Encoding refuses both")
	}
}

// acceptWeights reads "gzip;q=0.5, br, *;q=0". What is not well formed is left
// out: a client that cannot be understood asked for nothing.
func acceptWeights(header string) map[string]float64 {
	weights := map[string]float64{}
	for element := range strings.SplitSeq(header, ",") {
		coding, parameters, weighted := strings.Cut(element, ";")
		coding = strings.ToLower(strings.TrimSpace(coding))
		if coding == "" {
			continue
		}
		weight := 1.0
		if weighted {
			value, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(parameters)), "q=")
			q, err := strconv.ParseFloat(value, 64)
			if !ok || err != nil || !(q >= 0 && q <= 1) { // also NaN
				continue
			}
			weight = q
		}
		weights[coding] = weight
	}
	return weights
}
