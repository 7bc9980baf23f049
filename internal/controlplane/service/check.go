package service

import (
	"strings"
	"unicode/utf8"

	"wrenn"
)

const (
	maxMetadata  = 64
	maxKeyLen    = 128
	maxValueLen  = 1 << 10
	maxEnv       = 256
	maxEnvLen    = 32 << 10 // of one variable; Linux takes 128 KB, see execve(2)
	maxPath      = 4095     // PATH_MAX without its NUL
	maxUser      = 255
	maxArguments = 10_000
)

// isText says that a database and an exec can hold it.
func isText(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

func checkMetadata(m map[string]string) error {
	if len(m) > maxMetadata {
		return wrenn.Errorf(wrenn.Invalid, "a sandbox has at most %d pairs of metadata, not %d", maxMetadata, len(m))
	}
	for k, v := range m {
		if k == "" || len(k) > maxKeyLen || len(v) > maxValueLen || !isText(k) || !isText(v) {
			return wrenn.Errorf(wrenn.Invalid, "metadata %.40q: a key is text of 1 to %d bytes, a value of at most %d", k, maxKeyLen, maxValueLen)
		}
	}
	return nil
}

func checkEnv(m map[string]string) error {
	if len(m) > maxEnv {
		return wrenn.Errorf(wrenn.Invalid, "there can be at most %d variables, not %d", maxEnv, len(m))
	}
	for k, v := range m {
		if k == "" || strings.Contains(k, "=") || len(k)+len(v) > maxEnvLen || !isText(k) || !isText(v) {
			return wrenn.Errorf(wrenn.Invalid, "variable %.40q: a name is text without = in it, and with its value it has at most %d bytes", k, maxEnvLen)
		}
	}
	return nil
}

func (s *Service) checkCommand(cmd ExecCommand) error {
	if cmd.Cmd == "" || len(cmd.Cmd) > maxPath || len(cmd.Args) > maxArguments {
		return wrenn.Errorf(wrenn.Invalid, "a command has a name and at most %d arguments", maxArguments)
	}
	for _, word := range append([]string{cmd.Cmd, cmd.Cwd, cmd.User}, cmd.Args...) {
		if !isText(word) {
			return wrenn.Errorf(wrenn.Invalid, "%.40q: a command's words are UTF-8 without NUL", word)
		}
	}
	if cmd.Timeout < 0 || cmd.Timeout > s.cfg.Limits.ExecTimeout {
		return wrenn.Errorf(wrenn.Invalid, "a command's timeout is 0 to %v", s.cfg.Limits.ExecTimeout)
	}
	return checkEnv(cmd.Env)
}

func checkFile(user, path string) error {
	if path == "" || len(path) > maxPath || !isText(path) {
		return wrenn.Errorf(wrenn.Invalid, "a path is UTF-8 of 1 to %d bytes", maxPath)
	}
	if len(user) > maxUser || !isText(user) {
		return wrenn.Errorf(wrenn.Invalid, "%.40q is no user's name", user)
	}
	return nil
}
