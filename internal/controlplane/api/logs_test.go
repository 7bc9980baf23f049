package api

import (
	"io"
	"net/http"
	"testing"
	"time"
)

// TestFollowedLogsEndWithTheServer: output comes at once, a pause may be longer than
// other answers may take, and the end of the server is not the end of the console.
func TestFollowedLogsEndWithTheServer(t *testing.T) {
	server := serve(t, &stub{}, func(s *Server) { s.times.idle, s.times.request = 50*time.Millisecond, 50*time.Millisecond })
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+server.address+at+"/logs?follow=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", testKey)
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	said := make([]byte, 9)
	if _, err := io.ReadFull(resp.Body, said); err != nil || string(said) != "Linux\r\n\xff\x00" {
		t.Errorf("got %q, %v", said, err)
	}
	if err := server.stop(); err != nil {
		t.Error(err)
	}
	if rest, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("the rest is %q and ends well", rest)
	}
}
