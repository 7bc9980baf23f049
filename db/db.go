// Package db holds the schema of the control plane's database: migrations,
// the queries that sqlc turns into Go, and schema.sql, what the migrations
// come to, for reading and reviewing.
package db

import "embed"

// Migrations are goose's; they are only ever added to.
//
//go:embed migrations/*.sql
var Migrations embed.FS
