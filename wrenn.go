// Package wrenn holds the words and the laws of Wrenn, a sandbox platform
// that gives programs Linux machines of their own: identifiers and errors. It
// imports the standard library alone and does no I/O.
package wrenn
