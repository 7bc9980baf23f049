package e2b

import (
	"net/http"

	"github.com/go-chi/chi/v5"

	"wrenn"
	"wrenn/internal/controlplane/e2b/internal/oapi"
	"wrenn/internal/controlplane/service"
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
	return http.StatusCreated, s.volumeAndToken(v), nil
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
	return http.StatusOK, s.volumeAndToken(v), nil
}

func (s *Server) deleteVolume(r *http.Request, c service.Caller) (int, any, error) {
	return http.StatusNoContent, nil, s.service.DeleteVolume(r.Context(), c, chi.URLParam(r, "volumeID"))
}

// volumeAndToken returns a volume with an empty token: what it is for is not built,
// and clients fail without one.
func (s *Server) volumeAndToken(v *wrenn.Volume) oapi.VolumeAndToken {
	return oapi.VolumeAndToken{VolumeID: string(v.ID), Name: v.Name, Domain: s.domain}
}

// refuseContent answers for the files of volumes. Clients send the volume's token, which
// is no key, so that the answer comes before a look at it.
func (s *Server) refuseContent(w http.ResponseWriter, r *http.Request) {
	s.refuse(w, r, &failure{
		Status:  http.StatusNotImplemented,
		Message: "files of a volume can be reached only in a sandbox that mounts it; without one, Wrenn has not built it yet, see docs/e2b.md",
	})
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
