//go:build root

package controlplane

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wrenn/client"
	"wrenn/internal/testkit"
	"wrenn/internal/testkit/browser"
)

// dash is the dashboard in a browser, of a control plane with a host.
type dash struct {
	*system

	tab    *browser.Tab
	client *client.Client
	axe    string // the accessibility checker; "" where npm has not installed it
}

// steps are functions for scripts of tests, in the page.
const steps = `
	const until = async (what, find) => {
		for (let i = 0; i < 1200; i++) {
			const found = find();
			if (found) return found;
			await new Promise(done => setTimeout(done, 50));
		}
		throw new Error("there never was " + what + ": " + location.hash + " " + document.body.innerText.slice(0, 800));
	};
	const all = css => [...document.querySelectorAll(css)];
	const named = (name, css = "a, button, [role^=menuitem], th, input, select, textarea") => all(css).find(e =>
		!e.disabled && e.getClientRects().length && ((e.getAttribute("aria-label") ?? e.labels?.[0]?.innerText ?? e.innerText) || "").trim() === name);
	const press = async (name, css) => {
		const e = await until("a control named " + name, () => named(name, css));
		e.scrollIntoView({block: "center"});
		for (const type of ["pointerdown", "pointerup"]) e.dispatchEvent(new PointerEvent(type, {bubbles: true, cancelable: true, pointerType: "mouse", button: 0}));
		e.click();
	};
	const fill = async (name, value) => {
		const e = await until("a field named " + name, () => named(name, "input, textarea, select"));
		e.value = value;
		e.dispatchEvent(new Event("input", {bubbles: true}));
		e.dispatchEvent(new Event("change", {bubbles: true}));
	};
	const shows = text => until("the text " + text, () => document.body.innerText.includes(text));
	const gone = text => until("no text " + text, () => !document.body.innerText.includes(text));
`

func newDash(t *testing.T) *dash {
	t.Helper()
	d := &dash{system: newSystem(t)}
	axe, err := os.ReadFile(filepath.Join("..", "..", "web", "node_modules", "axe-core", "axe.min.js"))
	if err != nil && os.Getenv("WRENN_CI") == "1" {
		t.Fatalf("%v: make dashboard", err)
	}
	d.axe = string(axe)
	d.client, err = client.New(client.Config{URL: d.url, Key: d.key})
	testkit.Must(t, err)
	d.tab = browser.Open(t, d.url+"/")
	d.tab.Resize(t, 1280, 800)
	return d
}

// do runs statements in the page with the functions of steps, and returns what the
// last one returns.
func (d *dash) do(t *testing.T, statements string, args ...any) string {
	t.Helper()
	return d.tab.Evaluate(t, "(async () => {"+steps+fmt.Sprintf(statements, args...)+"\nreturn \"\";})()")
}

func (d *dash) signIn(t *testing.T) {
	t.Helper()
	d.do(t, `await fill("API key", %q); await press("Sign in"); await shows("New sandbox");`, d.key)
}

// look stores what the page looks like on a phone, a laptop and a wide screen, in
// light and dark, and checks that nothing is cut off and that it is accessible.
func (d *dash) look(t *testing.T, name string) {
	t.Helper()
	for _, size := range []struct {
		width, height int
		dark          bool
	}{{390, 844, false}, {1920, 1080, true}, {1280, 800, true}, {1280, 800, false}} {
		d.tab.Resize(t, size.width, size.height)
		d.tab.Dark(t, size.dark)
		theme := "light"
		if size.dark {
			theme = "dark"
		}
		wide := d.do(t, `await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
			return String(document.documentElement.scrollWidth - document.documentElement.clientWidth);`)
		if wide != "0" && !strings.HasPrefix(wide, "-") { // below 0 is room for a scroll bar
			t.Errorf("%s: at a width of %d the page is %s px too wide", name, size.width, wide)
		}
		file := filepath.Join(t.ArtifactDir(), fmt.Sprintf("%s-%d-%s.png", name, size.width, theme))
		testkit.Must(t, os.WriteFile(file, d.tab.Screenshot(t), 0o600))
		if size.width != 1920 {
			d.accessible(t, fmt.Sprintf("%s at %d, %s", name, size.width, theme))
		}
	}
}

// accessible fails the test for serious findings.
func (d *dash) accessible(t *testing.T, what string) {
	t.Helper()
	if d.axe == "" {
		t.Log("accessibility is not checked: make dashboard")
		return
	}
	if d.do(t, `return typeof axe;`) != "object" {
		d.tab.Evaluate(t, d.axe+"; \"\"")
	}
	text := d.do(t, `const found = await axe.run(document, {resultTypes: ["violations"]});
		return JSON.stringify(found.violations.filter(v => v.impact === "serious" || v.impact === "critical")
			.map(v => v.id + ": " + v.help + ": " + v.nodes.slice(0, 3).map(n => n.html.slice(0, 200) + " " + (n.any[0]?.message ?? "")).join(" | ")));`)
	var found []string
	testkit.Must(t, json.Unmarshal([]byte(text), &found))
	for _, one := range found {
		t.Errorf("%s: %s", what, one)
	}
}

// TestDashboard uses the dashboard in a real browser as a person does, with a real
// database, a host, and guests that are processes.
func TestDashboard(t *testing.T) {
	d := newDash(t)
	d.do(t, `await fill("API key", "e2b_no"); await press("Sign in"); await shows("The API key is missing, unknown, revoked or expired");`)
	d.look(t, "login")
	d.signIn(t)
	d.do(t, `await shows("No sandboxes yet");`)
	d.look(t, "empty")
	d.list(t)
	d.do(t, `location.hash = "#/start"; await shows("A key for the lines below"); await press("Make a key"); await shows("The new key" && "e2b_"); await shows("X-API-Key: e2b_");`)
	d.look(t, "start")
	d.do(t, `await press("Sign out"); await shows("Sign in to Wrenn");
		if (localStorage.getItem("wrenn.proof")) throw new Error("the proof is kept");
		if (JSON.stringify({...localStorage, ...sessionStorage}).includes("e2b_")) throw new Error("a key is stored");`)
	for _, fault := range d.tab.Faults() {
		if !strings.Contains(fault, "401") { // the wrong key
			t.Errorf("the browser complains: %s", fault)
		}
	}
}

// list follows sandboxes that come and go by other clients, and acts on several.
func (d *dash) list(t *testing.T) {
	t.Helper()
	one := d.create(t, d.client)
	two := d.create(t, d.client)
	d.do(t, `await shows(%[1]q); await shows(%[2]q); await until("two that run", () => all("tbody .state .good").length === 2);`, one, two)
	d.look(t, "sandboxes")
	d.do(t, `await fill("Filter by id, template or label", %[1]q); await gone(%[2]q); await fill("Filter by id, template or label", ""); await shows(%[2]q);`, one, two)
	d.do(t, `await press("Choose all"); await shows("2 chosen");`)
	d.look(t, "bulk")
	d.do(t, `await press("Pause"); await until("two that are paused", () => all("tbody .state .warn").length === 2);
		await press("Choose %[1]s"); await press("Resume"); await until("one that runs", () => all("tbody .state .good").length === 1);`, one)
	d.do(t, `await press("Choose %[2]s"); await press("Delete"); await shows("Delete sandbox %[2]s?"); await press("Cancel"); await gone("cannot be undone");
		await press("Delete"); await shows("cannot be undone");`, one, two)
	d.look(t, "delete")
	d.do(t, `await press("Delete", "[role=alertdialog] button"); await until("one left", () => all("tbody tr").length === 1);
		await press("ended"); await shows(%[1]q); await press("living");`, two)
	d.do(t, `await press("New sandbox"); await shows("Without use for");`)
	d.look(t, "create")
	testkit.Must(t, d.client.DeleteSandbox(t.Context(), one))
	d.do(t, `await press("Close"); await shows("No sandboxes yet"); await press("New sandbox", "main button"); await fill("Labels", "user=alice");
		await press("Create"); await until("its page", () => /^#.sandboxes.i/.test(location.hash)); location.hash = "#/sandboxes"; await shows("user=alice");`)
}
