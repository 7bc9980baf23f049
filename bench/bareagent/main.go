// Command bareagent is the least that a guest's agent can be: the limit that
// envd's boot and restore are measured against. It is the guest's init.
package main

import "net/http"

func main() {
	http.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNoContent)
	})
	panic(http.ListenAndServe(":49983", nil))
}
