package contract_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"wrenn.dev/internal/controlplane/contract"
	"wrenn.dev/internal/testkit"
)

const document = `
openapi: 3.1.0
paths:
  /things:
    post:
      operationId: make
      requestBody:
        required: true
        content:
          application/json:
            schema: {$ref: '#/components/schemas/Thing'}
components:
  schemas:
    Thing:
      type: object
      properties:
        timeout: {type: integer, maximum: 10}
        env: {type: object, additionalProperties: {type: string}}
        parts: {type: array, items: {$ref: '#/components/schemas/Thing'}}
        choice: {anyOf: [{type: string}, {$ref: '#/components/schemas/Thing'}]}
`

// TestBodies: what the validator saw is what the handler decodes.
func TestBodies(t *testing.T) {
	loaded, err := contract.Load([]byte(document))
	testkit.Must(t, err)
	op := loaded.Operations["POST /things"]
	for body, want := range map[string]string{
		`{"timeout": 5, "unknown": {"a": [1, {"a": 2}]}}`: "",
		`{"env": {"TIMEOUT": "x", "timeout": "y"}}`:       "",
		`{"parts": [{"timeout": 1}, {"timeout": 2}]}`:     "",
		`[1, 1]`:                                    "object",
		`{"timeout": 5, "timeout": 99}`:             `"timeout" is given twice`,
		`{"timeout": 5, "tim\u0065out": 99}`:        `"timeout" is given twice`,
		`{"unknown": {"a": 1, "b": {}, "a": 1}}`:    `"a" is given twice`,
		`{"parts": [{"timeout": 1, "timeout": 2}]}`: `"timeout" is given twice`,
		`{"TIMEOUT": 99}`:                           `write it as "timeout"`,
		`{"parts": [{"Timeout": 99}]}`:              `write it as "timeout"`,
		`{"choice": {"timeOut": 99}}`:               `write it as "timeout"`,
		`{"timeout": 5} {}`:                         "not JSON",
		`{"timeout": 5`:                             "not JSON",
		`[` + strings.Repeat("1,", 1<<20) + `1]`:    "more than 8192 values",
		`[` + strings.Repeat("[", 20_000):           "more than 8192 values",
		`{"a": {` + strings.Repeat(`"`, 3):          "not JSON",
	} {
		err := op.CheckJSON(httptest.NewRequest(http.MethodPost, "/things", strings.NewReader(body)))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.60s: %v, want %q", body, err, want)
		}
	}
}

// BenchmarkManyValues: see TestBodies.
func BenchmarkManyValues(b *testing.B) {
	loaded, err := contract.Load([]byte(document))
	testkit.Must(b, err)
	op, body := loaded.Operations["POST /things"], "["+strings.Repeat("1,", 1<<20)+"1]"
	for b.Loop() {
		_ = op.CheckJSON(httptest.NewRequest(http.MethodPost, "/things", strings.NewReader(body)))
	}
}
