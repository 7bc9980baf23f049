// Package settings holds what the host told the agent about this sandbox
// (POST /init): who and where commands run by default, and with what
// environment. The zero Settings is ready and safe for concurrent use.
package settings

import (
	"maps"
	"sync"
)

// Values are the settings at one moment.
type Values struct {
	Env map[string]string // for every process; requests override it
	// Trust are variables by which programs trust the host's authority. Get has them in Env, which wins.
	Trust   map[string]string
	User    string // runs what names no user; "root" until told otherwise
	Workdir string // resolves relative paths; "" is the user's home
	Token   string // X-Access-Token that callers must send; "" admits everybody
}

// Settings guards the current values.
type Settings struct {
	mu     sync.RWMutex // guards values
	values Values
}

// Get returns a copy that the caller may change.
func (s *Settings) Get() Values {
	s.mu.RLock()
	defer s.mu.RUnlock()
	v := s.values
	v.Env = maps.Clone(v.Env)
	if v.Env == nil && len(v.Trust) > 0 {
		v.Env = map[string]string{}
	}
	for name, value := range v.Trust {
		if _, ok := v.Env[name]; !ok {
			v.Env[name] = value
		}
	}
	if v.User == "" {
		v.User = "root"
	}
	return v
}

// Token returns the Token of the values. Every request needs it, and Get copies the
// environment.
func (s *Settings) Token() string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.values.Token
}

// Update changes the values in one step; change must not call s.
func (s *Settings) Update(change func(*Values)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.values)
}
