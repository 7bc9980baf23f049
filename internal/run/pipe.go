package run

import (
	"os"
	"os/signal"
	"syscall"
)

// SurviveBrokenPipes keeps the program running when the reader of its standard output or error
// closes it: a write then fails with EPIPE, as on every other file. Without it Go ends the
// program, see "SIGPIPE" in package os/signal. Servers call it once; programs that they start are
// not affected, because exec resets a signal that is caught.
//
// The signal itself means nothing: once it is caught, Go also delivers it for every write to a
// broken socket, which any client can cause. Never act on it; act on the error of the write.
func SurviveBrokenPipes() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
}
