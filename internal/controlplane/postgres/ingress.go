package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// insertIngress writes the ingress of new sandboxes that are like sb.
func insertIngress(ctx context.Context, q *dbsqlc.Queries, sb *wrenn.Sandbox, ids []string) error {
	if sb.Parent != "" {
		return q.CopyIngress(ctx, ids, string(sb.Parent))
	}
	if sb.Ingress.IsZero() {
		return nil
	}
	ports := []int32{}
	for _, port := range sb.Ingress.HTTPSPorts {
		ports = append(ports, int32(port))
	}
	for _, id := range ids {
		err := q.InsertIngress(ctx, dbsqlc.InsertIngressParams{SandboxID: id, Private: sb.Ingress.Private, MaskHost: sb.Ingress.MaskHost, HTTPSPorts: ports})
		if err != nil {
			return err
		}
	}
	return nil
}

// Ingress returns who reaches the ports of a sandbox, of any team, which never
// changes. NotFound also when the sandbox has ended.
func (s *Store) Ingress(ctx context.Context, id wrenn.SandboxID) (out wrenn.Ingress, err error) {
	err = s.call(ctx, "read who may reach the sandbox", func(ctx context.Context) error {
		row, err := s.queries.GetIngress(ctx, string(id))
		if errors.Is(err, pgx.ErrNoRows) {
			return wrenn.Errorf(wrenn.NotFound, "there is no sandbox %s", id)
		}
		out = wrenn.Ingress{Private: row.Private, MaskHost: row.MaskHost}
		for _, port := range row.HTTPSPorts {
			out.HTTPSPorts = append(out.HTTPSPorts, uint16(port))
		}
		return err
	})
	return out, err
}
