// Command bareagent is a minimal agent for a guest: the limit against which envd's
// boot and restore are measured. It is the guest's init.
package main

import "net/http"

func main() {
	http.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNoContent)
	})
	panic(http.ListenAndServe(":49983", nil))
}
