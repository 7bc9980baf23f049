package run

import (
	"os"
	"os/signal"
	"syscall"
)

// SurviveBrokenPipes lets the program run on when the reader of its standard output or error
// closes it: a write then fails with EPIPE, as it does on every other file. Without it Go ends the
// program, see "SIGPIPE" in package os/signal. Servers call it once; what they start is not
// affected, because a signal that is caught is reset by exec.
//
// The signal itself says nothing: once it is caught, Go delivers it for every write to a broken
// socket, too, which any client can cause. Never act on it; act on the error of the write.
func SurviveBrokenPipes() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
}
