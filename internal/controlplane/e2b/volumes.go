package e2b

import (
	"net/http"

	"github.com/go-chi/chi/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/e2b/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

func (s *Server) createVolume(r *http.Request, c service.Caller) (int, any, error) {
	var req oapi.NewVolume
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	v, err := s.service.CreateVolume(r.Context(), c, service.CreateVolume{Name: req.Name})
	if err != nil {
		return 0, nil, err
	}
	out, err := s.volumeAndToken(r, c, v)
	return http.StatusCreated, out, err
}

func (s *Server) listVolumes(r *http.Request, c service.Caller) (int, any, error) {
	list, err := s.service.ListVolumes(r.Context(), c)
	out := []oapi.Volume{}
	for _, v := range list {
		out = append(out, oapi.Volume{VolumeID: string(v.ID), Name: v.Name})
	}
	return http.StatusOK, out, err
}

func (s *Server) getVolume(r *http.Request, c service.Caller) (int, any, error) {
	v, err := s.service.Volume(r.Context(), c, chi.URLParam(r, "volumeID"))
	if err != nil {
		return 0, nil, err
	}
	out, err := s.volumeAndToken(r, c, v)
	return http.StatusOK, out, err
}

func (s *Server) deleteVolume(r *http.Request, c service.Caller) (int, any, error) {
	return http.StatusNoContent, nil, s.service.DeleteVolume(r.Context(), c, chi.URLParam(r, "volumeID"))
}

// volumeAndToken returns a volume with the token for its files, which a key that may
// only read does not get.
func (s *Server) volumeAndToken(r *http.Request, c service.Caller, v *wrenn.Volume) (oapi.VolumeAndToken, error) {
	token, err := "", error(nil)
	if c.Scopes.Allow(wrenn.ScopeSandboxes) {
		token, err = s.service.VolumeToken(r.Context(), c, v.ID)
	}
	return oapi.VolumeAndToken{VolumeID: string(v.ID), Name: v.Name, Token: token, Domain: s.domain}, err
}

func parseMounts(list []oapi.VolumeMount) []wrenn.VolumeMount {
	var out []wrenn.VolumeMount
	for _, m := range list {
		out = append(out, wrenn.VolumeMount{Name: m.Name, Path: m.Path})
	}
	return out
}

func mountsOf(list []wrenn.VolumeMount) []oapi.VolumeMount {
	var out []oapi.VolumeMount
	for _, m := range list {
		out = append(out, oapi.VolumeMount{Name: m.Name, Path: m.Path})
	}
	return out
}
