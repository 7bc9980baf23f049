package account

import (
	"encoding/base64"
	"net/http"
	"strings"
)

// NameFromHeader returns the user that a request names, "" when it names none:
// SDKs send "Authorization: Basic base64(user:)" and no password.
func NameFromHeader(h http.Header) string {
	encoded, ok := strings.CutPrefix(h.Get("Authorization"), "Basic ")
	if !ok {
		return ""
	}
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return ""
	}
	name, _, _ := strings.Cut(string(raw), ":")
	return name
}
