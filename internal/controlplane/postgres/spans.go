package postgres

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"wrenn.dev/internal/tracing"
)

// querySpans is a pgx.QueryTracer: it makes a span of each query within a recorded
// request. Spans have the query's name, and neither its text nor its values.
type querySpans struct{}

// querySpan is the key of a query's span.
type querySpan struct{}

// TraceQueryStart begins the span of a query.
func (querySpans) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	span := tracing.Child(ctx, "query "+nameOf(data.SQL), attribute.String("db.system.name", "postgresql"))
	if span == nil {
		return ctx
	}
	return context.WithValue(ctx, querySpan{}, span)
}

// TraceQueryEnd ends it.
func (querySpans) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	span, ok := ctx.Value(querySpan{}).(trace.Span)
	if !ok {
		return
	}
	if data.Err != nil && !errors.Is(data.Err, pgx.ErrNoRows) {
		span.SetStatus(codes.Error, "")
	}
	span.End()
}

// nameOf returns the name that a query has in db/queries. Others are of this package:
// their first word tells what they do.
func nameOf(sql string) string {
	if rest, ok := strings.CutPrefix(sql, "-- name: "); ok {
		name, _, _ := strings.Cut(rest, " ")
		return name
	}
	first, _, _ := strings.Cut(strings.TrimSpace(sql), " ")
	switch word := strings.ToUpper(first); word {
	case "SELECT", "INSERT", "UPDATE", "DELETE", "BEGIN", "COMMIT", "ROLLBACK", "LISTEN", "WITH", "SET":
		return word
	}
	return "other"
}
