package contract

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// scan refuses JSON that costs its reader much more than its sender, before it is
// decoded: a million values, which take 100 MB and of which the validator makes an
// error each. It also refuses an object with two members of one name: the validator
// would see one and the handler, or a program in front of this one, the other.
func scan(text []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	s := scanner{values: maxValues}
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return invalid("this is not JSON: %s", Shorten(err.Error()))
		}
		if err := s.next(token); err != nil {
			return err
		}
	}
}

// scanner is where scan is in a text.
type scanner struct {
	values int     // that are still allowed
	open   []names // the arrays and objects around the next token
}

// names are those of the members of an object that were seen; nil for an array.
type names struct {
	seen  map[string]bool
	value bool // the next token is a member's value
}

func (s *scanner) next(token json.Token) error {
	if token == json.Delim('}') || token == json.Delim(']') {
		s.open = s.open[:len(s.open)-1]
		return nil
	}
	if isName, err := s.member(token); isName {
		return err
	}
	if s.values--; s.values < 0 {
		return invalid("the body has more than %d values", maxValues)
	}
	switch token {
	case json.Delim('{'):
		s.open = append(s.open, names{seen: map[string]bool{}})
	case json.Delim('['):
		s.open = append(s.open, names{})
	}
	return nil
}

// member reports whether the token is the name of a member, and refuses one that the
// object has already.
func (s *scanner) member(token json.Token) (isName bool, err error) {
	if len(s.open) == 0 {
		return false, nil
	}
	around := &s.open[len(s.open)-1]
	if around.seen == nil {
		return false, nil
	}
	if around.value {
		around.value = false
		return false, nil
	}
	name, _ := token.(string) // the decoder allows nothing else here
	if around.seen[name] {
		return true, invalid("%q is given twice in one object", Shorten(name))
	}
	around.seen[name], around.value = true, true
	return true, nil
}

// checkCase refuses members whose names differ from properties of the schema only in
// case: encoding/json would take them for those, although they were not validated.
func checkCase(schema *jsonschema.Schema, value any) error {
	if schema == nil {
		return nil
	}
	for _, other := range append(append(append([]*jsonschema.Schema{schema.Ref}, schema.AllOf...), schema.AnyOf...), schema.OneOf...) {
		if err := checkCase(other, value); err != nil {
			return err
		}
	}
	switch value := value.(type) {
	case []any:
		for _, element := range value {
			if err := checkCase(schema.Items2020, element); err != nil {
				return err
			}
		}
	case map[string]any:
		return checkNames(schema, value)
	}
	return nil
}

func checkNames(schema *jsonschema.Schema, object map[string]any) error {
	for name, value := range object {
		if property, ok := schema.Properties[name]; ok {
			if err := checkCase(property, value); err != nil {
				return err
			}
			continue
		}
		for known := range schema.Properties {
			if strings.EqualFold(name, known) {
				return invalid("there is no %q: write it as %q", Shorten(name), known)
			}
		}
	}
	return nil
}
