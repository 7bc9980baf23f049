// Package render has a program that renders the Helm chart: main.go, which builds of the
// repository leave out.
package render
