package api

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"wrenn.dev/api"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/testkit/browser"
)

func TestDocsFiles(t *testing.T) {
	server := serve(t, &stub{}, nil)
	for file, media := range map[string]string{
		"swagger-ui-bundle.js": "text/javascript; charset=utf-8", "swagger-ui.css": "text/css; charset=utf-8",
		"start.js": "text/javascript; charset=utf-8", "favicon-32x32.png": "image/png",
	} {
		got := get(t, "http://"+server.address+"/docs/"+file, nil)
		if got.status != 200 || got.header.Get("Content-Type") != media || len(got.body) == 0 {
			t.Errorf("GET /docs/%s = %d %s, %d bytes", file, got.status, got.header.Get("Content-Type"), len(got.body))
		}
	}
	if got := get(t, "http://"+server.address+"/docs/", nil); got.status != 301 {
		t.Errorf("GET /docs/ = %d", got.status)
	}
}

// tryIt waits for the page, sets the key, opens listSandboxes and executes it,
// as a person does with a mouse. It returns what the page shows then.
const tryIt = `(async () => {
	const until = async (what, find) => {
		for (let i = 0; i < 600; i++) {
			const found = find();
			if (found) return found;
			await new Promise(done => setTimeout(done, 100));
		}
		throw new Error("the page never had " + what + ": " + document.body.innerText.slice(0, 500));
	};
	const box = "#operations-sandboxes-listSandboxes ";
	const find = css => () => document.querySelector(box + css);
	(await until("listSandboxes", find(".opblock-summary-control"))).click();
	(await until("a button for keys", () => document.querySelector(".btn.authorize"))).click();
	const field = await until("a field for the key", () => document.querySelector(".auth-container input"));
	Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(field, %q);
	field.dispatchEvent(new Event("input", {bubbles: true}));
	field.closest("form").querySelector("button[type=submit]").click();
	(await until("a button to close", () => document.querySelector(".btn-done"))).click();
	(await until("a button to try", find(".try-out__btn"))).click();
	(await until("a button to execute", find(".btn.execute"))).click();
	const answer = await until("an answer", find(".live-responses-table .response .response-col_status"));
	return JSON.stringify({
		title: document.querySelector(".info .title").innerText,
		operations: document.querySelectorAll(".opblock").length,
		status: answer.innerText,
		body: document.querySelector(box + ".live-responses-table tbody").innerText,
		elsewhere: performance.getEntriesByType("resource").map(r => r.name).filter(n => !n.startsWith(location.origin) && !n.startsWith("data:")),
	});
})()`

// afterReload waits for the operation of the address, which is open, and the key of
// before. It returns the documented answers before and after the errors are shown.
const afterReload = `(async () => {
	const until = async (what, find) => {
		for (let i = 0; i < 600; i++) {
			const found = find();
			if (found) return found;
			await new Promise(done => setTimeout(done, 100));
		}
		throw new Error("the page never had " + what + ": " + document.body.innerText.slice(0, 500));
	};
	const codes = () => [...document.querySelectorAll("#operations-sandboxes-listSandboxes .response:not(.live) .response-col_status")]
		.map(e => e.innerText.trim()).filter(text => /^[0-9]+$/.test(text)).join(",");
	const button = await until("a button for errors", () => document.querySelector("#operations-sandboxes-listSandboxes button.errors"));
	await until("the key of before", () => ui.authSelectors.authorized().getIn(["apiKey", "value"]));
	const before = codes();
	button.click();
	await until("errors", () => codes() !== before);
	return before + " then " + codes();
})()`

// otherDocument returns what the page shows now.
const otherDocument = `(async () => {
	const title = document.querySelector(".info .title");
	return (title ? title.firstChild.textContent.trim() : "nothing") + ": " + document.querySelectorAll(".opblock").length;
})()`

// TestDocsInABrowser: the page works in a real browser that can reach nothing
// but this server.
func TestDocsInABrowser(t *testing.T) {
	server := serve(t, &stub{}, nil)
	tab := browser.Open(t, "http://"+server.address+"/docs")
	var shown struct {
		Title, Status, Body string
		Operations          int
		Elsewhere           []string
	}
	text := tab.Evaluate(t, fmt.Sprintf(tryIt, testKey))
	if err := json.Unmarshal([]byte(text), &shown); err != nil {
		t.Fatalf("the page says %s: %v", text, err)
	}
	operations := 0
	for _, item := range spec(t).Paths.Map() {
		operations += len(item.Operations())
	}
	if !strings.Contains(shown.Title, "Wrenn") || shown.Operations != operations {
		t.Errorf("the page shows %q with %d operations", shown.Title, shown.Operations)
	}
	if !strings.HasPrefix(shown.Status, "200") || !strings.Contains(shown.Body, testID) {
		t.Errorf("listSandboxes was answered with %s: %s", shown.Status, shown.Body)
	}
	if len(shown.Elsewhere) > 0 {
		t.Errorf("the page loads from elsewhere: %v", shown.Elsewhere)
	}
	tab.Navigate(t, "http://"+server.address+"/docs?again#/sandboxes/listSandboxes")
	if text := tab.Evaluate(t, afterReload); text != "200 then 200,400,401,403,429,500,503,504" {
		t.Errorf("after a reload there is %s", text)
	}
	tab.Navigate(t, "http://"+server.address+"/docs?api=e2b")
	compatible, err := openapi3.NewLoader().LoadFromData(api.E2B)
	testkit.Must(t, err)
	operations = 0
	for _, item := range compatible.Paths.Map() {
		operations += len(item.Operations())
	}
	testkit.WaitNoError(t, "the other document is shown", func() error {
		if text := tab.Evaluate(t, otherDocument); text != fmt.Sprintf("Wrenn, E2B-compatible: %d", operations) {
			return fmt.Errorf("the page shows %q, want %d operations", text, operations)
		}
		return nil
	})
	for _, fault := range tab.Faults() {
		t.Errorf("the browser complains: %s", fault)
	}
}
