package process

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/guest/account"
)

// stdio are the two sides of a program's standard files.
type stdio struct {
	near nearSide
	far  [3]*os.File // stdin, stdout and stderr as the program gets them
}

// nearSide is the agent's side.
type nearSide struct {
	pty            *os.File // if set, the others are nil
	stdin          *os.File // nil: the program reads /dev/null
	stdout, stderr *os.File
}

func (s *stdio) tty() bool { return s.near.pty != nil }

func (s *stdio) fds() []uintptr {
	return []uintptr{s.far[0].Fd(), s.far[1].Fd(), s.far[2].Fd()}
}

// closeFar closes the agent's copies of the program's side, without which the
// program's end would not end its output.
func (s *stdio) closeFar() {
	for _, f := range s.far {
		f.Close() // nil and twice are errors, not panics
	}
}

func (n nearSide) close() {
	for _, f := range []*os.File{n.pty, n.stdin, n.stdout, n.stderr} {
		f.Close()
	}
}

// openPipes makes the files of a program without terminal. The caller closes
// both sides.
func openPipes(withStdin bool, user *account.User) (*stdio, error) {
	s := &stdio{}
	var errs [3]error
	if withStdin {
		s.far[0], s.near.stdin, errs[0] = os.Pipe()
	} else {
		s.far[0], errs[0] = os.Open(os.DevNull)
	}
	s.near.stdout, s.far[1], errs[1] = os.Pipe()
	s.near.stderr, s.far[2], errs[2] = os.Pipe()
	err := errors.Join(errs[:]...)
	if err == nil {
		err = s.give(user, withStdin)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("open pipes: %w", err)
	}
	return s, nil
}

// openTerminal makes the files of a program with a terminal. The caller
// closes both sides.
func openTerminal(size unix.Winsize, user *account.User) (*stdio, error) {
	near, far, err := openPTY(size)
	if err != nil {
		return nil, err
	}
	s := &stdio{near: nearSide{pty: near}, far: [3]*os.File{far, far, far}}
	if err := s.give(user, true); err != nil {
		s.close()
		return nil, fmt.Errorf("open terminal: %w", err)
	}
	return s, nil
}

// give changes the files' owner to the user, so that programs may open
// /dev/stdout or /dev/tty again by name.
func (s *stdio) give(user *account.User, withStdin bool) error {
	if int(user.UID) == os.Geteuid() {
		return nil
	}
	files := s.far[1:]
	if withStdin {
		files = s.far[:]
	}
	for _, f := range files {
		if err := f.Chown(int(user.UID), -1); err != nil {
			return err
		}
	}
	return nil
}

func (s *stdio) close() {
	s.closeFar()
	s.near.close()
}
