// Package house holds the rules of this source tree that no linter knows: plain
// words, names of errors, a doc comment for each package, and a suite for each
// test. It has nothing but tests.
package house
