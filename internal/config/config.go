// Package config loads the configuration of a program from its defaults, a TOML
// file and the environment, and reports all errors in it at once.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"wrenn.dev"
)

// Configuration is a pointer to a configuration of type T.
type Configuration[T any] interface {
	*T
	// Complete runs after the file was read. It replaces values by those of the
	// environment, and fills in defaults that depend on other values.
	Complete(getenv func(string) string) error
	// Check reports everything that is wrong, without starting anything.
	Check(problems *Problems)
}

// Load returns the configuration in the TOML file at path, on top of defaults;
// "" is no file. An unknown key is an error. The error is an Invalid with all
// problems, a line or more each, unless the file cannot be read.
func Load[T any, C Configuration[T]](path string, defaults T, getenv func(string) string) (T, error) {
	cfg := defaults
	var problems Problems
	if path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			return cfg, fmt.Errorf("read the configuration: %w", err)
		}
		readable := decode(text, &cfg, &problems)
		if !readable {
			return cfg, problems.in(path)
		}
	}
	if err := C(&cfg).Complete(getenv); err != nil {
		return cfg, err
	}
	C(&cfg).Check(&problems)
	return cfg, problems.in(path)
}

// decode reads text into cfg. It reports whether the values can be checked.
func decode(text []byte, cfg any, problems *Problems) bool {
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(cfg)
	// By line and key alone: the text around a mistake may hold a password.
	if unknown, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		for _, key := range unknown.Errors {
			line, _ := key.Position()
			problems.Addf("line %d: unknown key %s", line, strings.Join(key.Key(), "."))
		}
		return true // all others were read
	}
	if wrong, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, column := wrong.Position()
		problems.Addf("line %d, column %d (%s): %w", line, column, keyIn(text, line), wrong)
		return false
	}
	if err != nil {
		problems.Add(err)
	}
	return err == nil
}

// keyIn returns what is before the equals sign in a line of text.
func keyIn(text []byte, line int) string {
	for range line - 1 {
		_, text, _ = bytes.Cut(text, []byte("\n"))
	}
	text, _, _ = bytes.Cut(text, []byte("\n"))
	key, _, _ := bytes.Cut(text, []byte("="))
	return strings.TrimSpace(string(key))
}

// Problems collects what is wrong with a configuration. The zero value is ready.
type Problems struct{ all []error }

// Add adds a problem, unless err is nil.
func (p *Problems) Add(err error) {
	if err != nil {
		p.all = append(p.all, err)
	}
}

// Addf adds a problem: the key, what is wrong with its value, and what to write.
func (p *Problems) Addf(format string, args ...any) { p.Add(fmt.Errorf(format, args...)) }

// in returns the problems of the file at path as one error, in a fixed order,
// nil if there are none.
func (p *Problems) in(path string) error {
	if len(p.all) == 0 {
		return nil
	}
	slices.SortStableFunc(p.all, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	all := errors.Join(p.all...)
	message := all.Error()
	if path != "" {
		message = path + ": " + message
	}
	return &wrenn.Error{Code: wrenn.Invalid, Message: message}
}
