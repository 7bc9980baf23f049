package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"

	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/sessioncookie"
)

// A session is two secrets. The cookie is out of reach for scripts. But cookies belong
// to a host name with all its ports, so a server on another port of this machine, such
// as a forwarded port of a sandbox, gets it from the browser. The proof belongs to the
// origin alone: the page keeps it and sends it with each request. Neither is accepted
// without the other, nor in a request that a page of another origin has made.
const (
	// proofHeader carries the proof, and proofProtocol is the prefix of the WebSocket subprotocol with it.
	proofHeader   = "X-Wrenn-Session"
	proofProtocol = "wrenn.session."
)

var (
	errOtherOrigin = &failure{
		status: http.StatusForbidden, code: oapi.ErrorCodeForbidden,
		message: "a page of another origin has made this request: use the dashboard at the address of this server, or send an API key",
	}
	errNoProof = &failure{
		status: http.StatusUnauthorized, code: oapi.ErrorCodeUnauthorized,
		message: "the session's proof is missing: sign in again, or send an API key",
	}
)

// sameOrigin reports whether a page of this server's own origin may have made the
// request. The proof, which other origins do not have, covers clients that send no
// such header: browsers send Sec-Fetch-Site over TLS and on loopback only.
func sameOrigin(r *http.Request) bool {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" {
		return false
	}
	origins := r.Header.Values("Origin")
	if len(origins) == 0 {
		return !isUpgrade(r) // browsers always send it for a WebSocket
	}
	origin, err := url.Parse(origins[0])
	return err == nil && len(origins) == 1 && origin.Host != "" && strings.EqualFold(origin.Host, r.Host)
}

// sessionOf returns the two secrets of the request's session. The error is for a
// request without a session, or one that may not use it.
func sessionOf(r *http.Request) (cookie, proof string, err error) {
	cookie = sessioncookie.Of(r)
	switch proof = proofOf(r); {
	case cookie == "":
		return "", "", errNoKey
	case !sameOrigin(r):
		return "", "", errOtherOrigin
	case proof == "":
		return "", "", errNoProof
	}
	return cookie, proof, nil
}

func proofOf(r *http.Request) string {
	if proof := r.Header.Get(proofHeader); proof != "" || !isUpgrade(r) {
		return proof
	}
	return offered(r, proofProtocol)
}

// signIn opens a session for the holder of a key.
func (s *Server) signIn(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Key string `json:"key"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil { // the contract has checked it
		s.refuse(w, r, brokenBody(err))
		return
	}
	if !sameOrigin(r) { // or a page could sign a browser in with another key
		s.refuse(w, r, errOtherOrigin)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.times.call)
	defer cancel()
	caller, leave, err := s.admission.Enter(ctx, r.RemoteAddr, body.Key)
	recorderOf(w).caller = caller
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	defer leave()
	who, err := s.service.Identify(ctx, caller)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	opened, err := s.service.OpenSession(ctx, caller)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	http.SetCookie(w, sessioncookie.New(string(opened.Cookie), opened.ExpiresAt, overTLS(r)))
	writeJSON(w, http.StatusCreated, struct {
		oapi.Identity

		Proof     string    `json:"proof"`
		ExpiresAt time.Time `json:"expires_at"`
	}{identity(who), string(opened.Proof), opened.ExpiresAt})
}

// signOut ends the session of the request, if it has one.
func (s *Server) signOut(w http.ResponseWriter, r *http.Request) {
	if cookie, proof, err := sessionOf(r); err == nil {
		if err := s.service.EndSession(r.Context(), cookie, proof); err != nil {
			s.refuse(w, r, err)
			return
		}
	}
	http.SetCookie(w, sessioncookie.New("", time.Unix(1, 0), overTLS(r)))
	w.WriteHeader(http.StatusNoContent)
}

// overTLS reports whether the browser has loaded the page by TLS, perhaps from a proxy
// in front of this server.
func overTLS(r *http.Request) bool {
	return r.TLS != nil || strings.HasPrefix(r.Header.Get("Origin"), "https://")
}

// GetSession implements oapi.StrictServerInterface.
func (h *handlers) GetSession(ctx context.Context, _ oapi.GetSessionRequestObject) (oapi.GetSessionResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	who, err := h.s.service.Identify(ctx, callerOf(ctx))
	if err != nil {
		return nil, err
	}
	return oapi.GetSession200JSONResponse{Body: identity(who)}, nil
}

func identity(who service.Identity) oapi.Identity {
	out := oapi.Identity{Team: who.Team, KeyID: who.Key, KeyName: who.KeyName}
	for _, scope := range who.Scopes.Texts() {
		out.Scopes = append(out.Scopes, oapi.Scope(scope))
	}
	return out
}

// writeJSON sends an answer that no cache may keep.
func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client may have left
}
