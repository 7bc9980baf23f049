package filesystem

import (
	"strconv"
	"strings"

	"wrenn.dev"
)

// encoding is the content coding of an answer.
type encoding string

const (
	identity encoding = "identity"
	gzipped  encoding = "gzip"
)

// chooseEncoding chooses by an Accept-Encoding header, RFC 9110 §12.5.3: gzip if it
// is named and weighs no less than identity, which need not be named. It is an
// error when the client refuses both.
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

// acceptWeights parses "gzip;q=0.5, br, *;q=0". It leaves out malformed elements.
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
