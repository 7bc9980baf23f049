// Package postgres keeps what the control plane must not forget. It is the
// only package that speaks SQL: rows become words before they leave it.
package postgres

// Store is a pool of connections to one database.
type Store struct{}
