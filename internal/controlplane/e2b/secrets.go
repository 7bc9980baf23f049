package e2b

import (
	"bytes"
	"context"
	"encoding/base64"
	"net/http"
	"strconv"
	"unicode/utf8"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/e2b/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

// Secrets is the part of Service that keeps secrets.
type Secrets interface {
	CreateSecret(context.Context, service.Caller, service.NewSecret) (*wrenn.Secret, error)
	UpdateSecret(ctx context.Context, c service.Caller, name, value string, metadata map[string]string) (*wrenn.Secret, error)
	Secret(ctx context.Context, c service.Caller, name string) (*wrenn.Secret, error)
	ListSecrets(ctx context.Context, c service.Caller, after string, limit int) ([]wrenn.Secret, error)
	DeleteSecret(ctx context.Context, c service.Caller, name string) error
}

func secretOf(s *wrenn.Secret) oapi.Secret {
	metadata := oapi.Metadata(s.Metadata)
	if metadata == nil {
		metadata = oapi.Metadata{}
	}
	return oapi.Secret{SecretID: string(s.ID), Name: s.Name, CurrentVersion: s.Version, Metadata: metadata, CreatedAt: s.CreatedAt, UpdatedAt: s.UpdatedAt}
}

func (s *Server) createSecret(r *http.Request, c service.Caller) (int, any, error) {
	var req oapi.NewSecret
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	secret, err := s.service.CreateSecret(r.Context(), c, service.NewSecret{Name: req.Name, Value: req.Value, Metadata: req.Metadata})
	switch {
	case wrenn.CodeOf(err) == wrenn.Exhausted:
		return 0, nil, &failure{Status: http.StatusConflict, Message: err.Error(), Code: "secret_limit_reached"}
	case err != nil:
		return 0, nil, err
	}
	return http.StatusCreated, secretOf(secret), nil
}

func (s *Server) listSecrets(r *http.Request, c service.Caller) (int, any, error) {
	limit := maxPage
	if text := r.URL.Query().Get("limit"); text != "" {
		limit, _ = strconv.Atoi(text) // the document has checked it
	}
	after, err := base64.RawURLEncoding.DecodeString(r.URL.Query().Get("nextToken"))
	if err != nil || !utf8.Valid(after) || bytes.ContainsRune(after, 0) {
		return 0, nil, invalid("nextToken is not one of this list: begin with the first page")
	}
	found, err := s.service.ListSecrets(r.Context(), c, string(after), limit+1)
	if err != nil {
		return 0, nil, err
	}
	out, entries := page{}, []oapi.Secret{}
	if len(found) > limit {
		found = found[:limit]
		out.next = base64.RawURLEncoding.EncodeToString([]byte(found[limit-1].Name))
	}
	for i := range found {
		entries = append(entries, secretOf(&found[i]))
	}
	out.entries = entries
	return http.StatusOK, out, nil
}

func (s *Server) getSecret(r *http.Request, c service.Caller) (int, any, error) {
	name, err := pathText(r, "secretID")
	if err != nil {
		return 0, nil, err
	}
	secret, err := s.service.Secret(r.Context(), c, name)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, secretOf(secret), nil
}

func (s *Server) updateSecret(r *http.Request, c service.Caller) (int, any, error) {
	name, err := pathText(r, "secretID")
	if err != nil {
		return 0, nil, err
	}
	var req oapi.SecretUpdate
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	var metadata map[string]string
	if req.Metadata != nil {
		metadata = *req.Metadata
	}
	secret, err := s.service.UpdateSecret(r.Context(), c, name, req.Value, metadata)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, secretOf(secret), nil
}

func (s *Server) deleteSecret(r *http.Request, c service.Caller) (int, any, error) {
	name, err := pathText(r, "secretID")
	if err != nil {
		return 0, nil, err
	}
	return http.StatusNoContent, nil, s.service.DeleteSecret(r.Context(), c, name)
}
