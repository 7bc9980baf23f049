// Package contract checks requests against an OpenAPI 3.1 document: their
// parameters, their media type and their JSON. The surfaces of the control plane
// serve the same document, so the two cannot differ.
//
// It is built on a JSON Schema library, not on an OpenAPI validator: those read a
// whole body into memory before they check it, where files are streamed here, know
// OpenAPI 3.1 only in part, and their errors are not made for users.
package contract

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-chi/chi/v5"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"go.yaml.in/yaml/v4"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"wrenn.dev"
	"wrenn.dev/internal/plain"
)

// JSON, Form and File are the media types of bodies.
const (
	JSON = "application/json"
	Form = "multipart/form-data"
	File = "application/octet-stream"
)

const (
	// maxValues bounds the values in one body: twice the arguments that a command may have.
	maxValues = 8192
	// maxMessage bounds the part of a request that a message repeats.
	maxMessage = 300
)

// Violation is the error of a request that is not what the document asks for.
type Violation struct {
	Status  int // 400, or 415 for another type of body
	Message string
	// InPath is the parameter of the path that is wrong; "" is something else.
	InPath string
}

func (v *Violation) Error() string { return v.Message }

func invalid(format string, args ...any) *Violation {
	return &Violation{Status: http.StatusBadRequest, Message: fmt.Sprintf(format, args...)}
}

// Schema is a compiled JSON Schema of the document.
type Schema struct{ schema *jsonschema.Schema }

// Contract is a document, compiled once: JSON Schema 2020-12, as OpenAPI 3.1 says.
// It may be used by several goroutines, but for Schema.
type Contract struct {
	// Operations are by method and route, "GET /v1/sandboxes/{id}".
	Operations map[string]*Operation

	compiler *jsonschema.Compiler
}

// Operation is the form of requests of one operation.
type Operation struct {
	ID            string
	Method, Route string
	Public        bool        // needs no key
	Scope         wrenn.Scope // that the key needs
	Media         string      // of the body; "" is none

	parameters []parameter
	needsBody  bool
	body       *jsonschema.Schema // of a body of JSON
}

type parameter struct {
	name, in string
	kind     string // the JSON type
	joined   bool   // an array is one value with commas
	schema   *jsonschema.Schema
}

// document is the part of OpenAPI that this package reads.
type document struct {
	Paths      map[string]map[string]json.RawMessage `json:"paths"`
	Components struct {
		Parameters    map[string]documentParameter `json:"parameters"`
		RequestBodies map[string]documentBody      `json:"requestBodies"`
		Schemas       map[string]documentSchema    `json:"schemas"`
	} `json:"components"`
}

type documentOperation struct {
	ID         string              `json:"operationId"`
	Security   *[]requirement      `json:"security"`
	Parameters []documentParameter `json:"parameters"`
	Body       *documentBody       `json:"requestBody"`
}

// requirement has the scopes that a key needs, by the form in which it is sent.
type requirement map[string][]wrenn.Scope

// scope returns the scope that a key needs: an operation that names none is an
// administrator's.
func (o *documentOperation) scope() wrenn.Scope {
	if o.Security != nil {
		for _, form := range *o.Security {
			for _, scopes := range form {
				for _, scope := range scopes {
					return scope
				}
			}
		}
	}
	return wrenn.ScopeAdmin
}

type documentParameter struct {
	Ref     string         `json:"$ref"`
	Name    string         `json:"name"`
	In      string         `json:"in"`
	Explode *bool          `json:"explode"`
	Schema  documentSchema `json:"schema"`
}

type documentBody struct {
	Ref      string         `json:"$ref"`
	Required bool           `json:"required"`
	Content  map[string]any `json:"content"`
}

type documentSchema struct {
	Ref  string   `json:"$ref"`
	Type typeName `json:"type"`
}

// typeName is the JSON type that a schema names: "" for several.
type typeName string

func (t *typeName) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*t = typeName(one)
	}
	return nil
}

// pointer returns the fragment for path elements, see RFC 6901.
func pointer(elements ...string) string {
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	var b strings.Builder
	for _, e := range elements {
		b.WriteString("/" + url.PathEscape(escape.Replace(e)))
	}
	return "#" + b.String()
}

// Load compiles a document in YAML.
func Load(text []byte) (*Contract, error) {
	var tree any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		return nil, fmt.Errorf("parse the contract: %w", err)
	}
	plain, err := json.Marshal(tree)
	if err != nil {
		return nil, fmt.Errorf("parse the contract: %w", err)
	}
	var doc document
	if err := json.Unmarshal(plain, &doc); err != nil {
		return nil, fmt.Errorf("parse the contract: %w", err)
	}
	resource, err := jsonschema.UnmarshalJSON(bytes.NewReader(plain))
	if err != nil {
		return nil, fmt.Errorf("parse the contract: %w", err)
	}
	c := &Contract{compiler: jsonschema.NewCompiler(), Operations: map[string]*Operation{}}
	if err := c.compiler.AddResource(contractURL, resource); err != nil {
		return nil, fmt.Errorf("read the contract: %w", err)
	}
	for route, methods := range doc.Paths {
		if err := c.addRoute(&doc, route, methods); err != nil {
			return nil, fmt.Errorf("read %s of the contract: %w", route, err)
		}
	}
	return c, nil
}

// contractURL names the document among the compiler's; nothing is fetched.
const contractURL = "wrenn:///openapi.yaml"

func (c *Contract) compile(elements ...string) (*jsonschema.Schema, error) {
	return c.compiler.Compile(contractURL + pointer(elements...))
}

// Schema compiles a schema of the document's components, by its name.
func (c *Contract) Schema(name string) (Schema, error) {
	compiled, err := c.compile("components", "schemas", name)
	return Schema{compiled}, err
}

func (c *Contract) addRoute(doc *document, route string, methods map[string]json.RawMessage) error {
	var shared []documentParameter
	if raw, ok := methods["parameters"]; ok {
		if err := json.Unmarshal(raw, &shared); err != nil {
			return err
		}
	}
	common, err := c.parameters(doc, shared, "paths", route, "parameters")
	if err != nil {
		return err
	}
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		key := strings.ToLower(method)
		raw, ok := methods[key]
		if !ok {
			continue
		}
		var from documentOperation
		if err := json.Unmarshal(raw, &from); err != nil {
			return err
		}
		own, err := c.parameters(doc, from.Parameters, "paths", route, key, "parameters")
		if err != nil {
			return err
		}
		op := &Operation{
			ID: from.ID, Method: method, Route: route, Public: from.Security != nil && len(*from.Security) == 0, Scope: from.scope(),
			parameters: slices.Concat(common, own),
		}
		if err := c.addBody(op, doc, from.Body, "paths", route, key, "requestBody"); err != nil {
			return err
		}
		c.Operations[method+" "+route] = op
	}
	return nil
}

func (c *Contract) parameters(doc *document, list []documentParameter, at ...string) ([]parameter, error) {
	var out []parameter
	for i, p := range list {
		where := append(slices.Clone(at), strconv.Itoa(i))
		if p.Ref != "" {
			name := p.Ref[strings.LastIndex(p.Ref, "/")+1:]
			p, where = doc.Components.Parameters[name], []string{"components", "parameters", name}
		}
		schema, err := c.compile(append(where, "schema")...)
		if err != nil {
			return nil, err
		}
		kind := p.Schema
		if kind.Ref != "" {
			kind = doc.Components.Schemas[kind.Ref[strings.LastIndex(kind.Ref, "/")+1:]]
		}
		out = append(out, parameter{name: p.Name, in: p.In, kind: string(kind.Type), joined: p.Explode != nil && !*p.Explode, schema: schema})
	}
	return out, nil
}

func (c *Contract) addBody(op *Operation, doc *document, body *documentBody, at ...string) (err error) {
	if body == nil {
		return nil
	}
	if body.Ref != "" {
		name := body.Ref[strings.LastIndex(body.Ref, "/")+1:]
		shared := doc.Components.RequestBodies[name]
		body, at = &shared, []string{"components", "requestBodies", name}
	}
	op.needsBody = body.Required
	for media := range body.Content {
		op.Media = media // each body has one
	}
	if op.Media == JSON {
		op.body, err = c.compile(append(at, "content", JSON, "schema")...)
	}
	return err
}

// CheckParameters validates path, query and headers. The request has passed a chi router.
func (op *Operation) CheckParameters(r *http.Request) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return invalid("the query is not URL-encoded: %s", Shorten(err.Error()))
	}
	for _, p := range op.parameters {
		values := query[p.name]
		if p.in == "path" {
			value, err := url.PathUnescape(chi.URLParam(r, p.name))
			if err != nil {
				return invalid("%s: %s", p.name, Shorten(err.Error()))
			}
			values = []string{value}
		}
		if p.in == "header" {
			values = r.Header.Values(p.name)
		}
		if len(values) == 0 {
			continue // all others are optional
		}
		value, err := p.value(values)
		if err != nil {
			return p.place(err)
		}
		if err := p.schema.Validate(value); err != nil {
			return p.refuse(err)
		}
	}
	return nil
}

// refuse returns the violation for a value that the schema of the parameter refuses.
func (p *parameter) refuse(err error) error { return p.place(explain(p.name, err)) }

// place notes in a violation that the parameter is one of the path.
func (p *parameter) place(refused error) error {
	if v, ok := errors.AsType[*Violation](refused); ok && p.in == "path" {
		v.InPath = p.name
	}
	return refused
}

// CheckNames refuses parameters of the query that the operation does not have: a
// client that misspells a filter would get everything.
func (op *Operation) CheckNames(r *http.Request) error {
	for name := range r.URL.Query() { // CheckParameters has parsed it
		known := slices.ContainsFunc(op.parameters, func(p parameter) bool { return p.in == "query" && p.name == name })
		if !known {
			return invalid("the query has no parameter %q%s", Shorten(name), op.known())
		}
	}
	return nil
}

// known lists the parameters of the query for an error.
func (op *Operation) known() string {
	var names []string
	for _, p := range op.parameters {
		if p.in == "query" {
			names = append(names, p.name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return ": there are " + strings.Join(names, ", ")
}

// value returns the JSON value that the schema describes.
func (p *parameter) value(values []string) (any, error) {
	if p.joined {
		values = strings.Split(strings.Join(values, ","), ",")
	}
	if p.kind == "array" {
		list := make([]any, len(values))
		for i, v := range values {
			list[i] = v
		}
		return list, nil
	}
	if len(values) > 1 {
		return nil, invalid("%s: given %d times, but has one value", p.name, len(values))
	}
	switch {
	case p.kind == "boolean" && (values[0] == "true" || values[0] == "false"):
		return values[0] == "true", nil
	case p.kind == "boolean":
		return nil, invalid("%s: %q is neither true nor false", p.name, Shorten(values[0]))
	case p.kind != "integer":
		return values[0], nil
	}
	if _, err := strconv.ParseInt(values[0], 10, 64); err != nil {
		return nil, invalid("%s: %q is not a whole number", p.name, Shorten(values[0]))
	}
	return json.Number(values[0]), nil
}

// CheckMedia validates the type of the body.
func (op *Operation) CheckMedia(r *http.Request) error {
	if op.Media == "" || (r.ContentLength == 0 && !op.needsBody) {
		return nil
	}
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != op.Media {
		return &Violation{Status: http.StatusUnsupportedMediaType, Message: fmt.Sprintf("send the body as %s, with that Content-Type", op.Media)}
	}
	return nil
}

// CheckJSON validates a JSON body, if the operation has one, and puts it back for the
// handler. An error of reading it is returned as it is.
func (op *Operation) CheckJSON(r *http.Request) error {
	if op.body == nil {
		return nil
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	if len(body) == 0 && op.needsBody {
		return invalid("the request needs a body of %s", op.Media)
	}
	if len(body) > 0 {
		if body, err = (Schema{op.body}).Check(body); err != nil {
			return err
		}
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// CheckText validates a value that is a text. name is told in the error.
func (s Schema) CheckText(name, value string) error {
	if err := s.schema.Validate(value); err != nil {
		return explain(name, err)
	}
	return nil
}

// Check validates text, which must be one JSON value, and returns it for
// decoding: 2.0 is an integer in JSON Schema, but not in encoding/json.
func (s Schema) Check(text []byte) ([]byte, error) {
	if !utf8.Valid(text) { // encoding/json would change it silently
		return nil, invalid("the JSON is not UTF-8 text: it cannot carry other bytes, such as names in another encoding")
	}
	if err := scan(text); err != nil {
		return nil, err
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, invalid("this is not JSON: %s", Shorten(err.Error()))
	}
	n := normalizer{}
	if value, err = n.normalize(value); err != nil {
		return nil, err
	}
	if err := s.schema.Validate(value); err != nil {
		return nil, explain("", err)
	}
	if err := checkCase(s.schema, value); err != nil {
		return nil, err
	}
	if !n.changed {
		return text, nil
	}
	return json.Marshal(value)
}

// normalizer rewrites whole numbers as integers, and refuses numbers that cost the
// validator much more than their sender: of 1e1000000 it makes a million digits.
type normalizer struct{ changed bool }

func (n *normalizer) normalize(value any) (any, error) {
	var err error
	switch v := value.(type) {
	case map[string]any:
		for name := range v {
			if v[name], err = n.normalize(v[name]); err != nil {
				return nil, err
			}
		}
	case []any:
		for i := range v {
			if v[i], err = n.normalize(v[i]); err != nil {
				return nil, err
			}
		}
	case json.Number:
		return n.number(v)
	}
	return value, nil
}

// exactInteger is above all integers of the contract, and below those that a
// float64 cannot represent.
const exactInteger = 1 << 53

func (n *normalizer) number(v json.Number) (any, error) {
	f, err := v.Float64()
	if err != nil || len(v) > 64 {
		return nil, invalid("the number %s is out of range", Shorten(v.String()))
	}
	if strings.ContainsAny(v.String(), ".eE") && f == math.Trunc(f) && math.Abs(f) < exactInteger {
		n.changed = true
		return json.Number(strconv.FormatInt(int64(f), 10)), nil
	}
	return v, nil
}

// explain returns the first validation error and its place, in one line. name is
// that of the parameter, "" for bodies.
func explain(name string, err error) error {
	fault, ok := errors.AsType[*jsonschema.ValidationError](err)
	if !ok {
		return err
	}
	for len(fault.Causes) > 0 && !isChoice(fault) {
		fault = fault.Causes[0]
	}
	where := strings.Join(fault.InstanceLocation, ".")
	if name != "" {
		where = strings.TrimSuffix(name+"."+where, ".")
	}
	return invalid("%s: %s", Shorten(cmp.Or(where, "the body")), Shorten(describe(fault)))
}

func isChoice(fault *jsonschema.ValidationError) bool {
	_, ok := fault.ErrorKind.(*kind.AnyOf)
	return ok
}

// describe returns the text of a validation error: for a choice, that of each option.
func describe(fault *jsonschema.ValidationError) string {
	if !isChoice(fault) {
		return fault.ErrorKind.LocalizedString(message.NewPrinter(language.English))
	}
	options := make([]string, len(fault.Causes))
	for i, option := range fault.Causes {
		options[i] = describe(option)
	}
	return strings.Join(options, ", or ")
}

// Shorten bounds a part of a request that a message repeats.
func Shorten(text string) string {
	return plain.Shorten(strings.ToValidUTF8(text, "�"), maxMessage)
}
