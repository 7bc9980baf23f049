//go:build root

package controlplane

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"wrenn.dev/client"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/programs"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/testkit/browser"
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
		if size.width == 390 || size.width == 1280 && size.dark {
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
	box := d.list(t)
	d.overview(t, box)
	d.terminal(t, box)
	d.files(t, box)
	d.programs(t, box)
	d.tree(t, box)
	d.secrets(t)
	d.clear(t)
	d.hosts(t)
	d.volumes(t)
	d.events(t)
	d.others(t)
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
func (d *dash) list(t *testing.T) (left string) {
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
	return d.do(t, `return document.querySelector("tbody .id a").innerText;`)
}

func (d *dash) overview(t *testing.T, box string) {
	t.Helper()
	d.do(t, `location.hash = "#/sandboxes/%s"; await shows("Facts"); await shows("user=alice"); await press("1 hour"); await shows("Without use for 1 h");`, box)
	d.look(t, "sandbox")
	d.network(t, box)
	d.do(t, `location.hash = "#/sandboxes/%s/console"; await until("a console", () => document.querySelector("pre[aria-label=Console]"));`, box)
	d.look(t, "console")
}

// network shows the layers of a policy, sets the sandbox's without a loss of what the
// form does not have, and asks what it may reach.
func (d *dash) network(t *testing.T, box string) {
	t.Helper()
	_, err := d.client.SetTeamNetwork(t.Context(), client.NetworkPolicy{Deny: []string{"8.8.8.0/24"}})
	testkit.Must(t, err)
	headers := []client.HeaderRule{{Host: "api.example.com", Headers: map[string]string{"X-Team": "birds"}}}
	_, err = d.client.SetNetwork(t.Context(), box, client.NetworkPolicy{Headers: headers})
	testkit.Must(t, err)
	d.do(t, `location.hash = "#/sandboxes/%s/network"; await shows("Connections"); await shows("8.8.8.0/24"); await shows("api.example.com X-Team: birds");
		await press("denied"); await fill("Allow", "1.1.1.1"); await press("Set the policy"); await shows("The network policy is set");
		await until("the team's policy, still", () => document.querySelector("dl.layers").innerText.includes("8.8.8.0/24"));`, box)
	policy, err := d.client.Network(t.Context(), box)
	testkit.Must(t, err)
	if policy.Default != client.DenyByDefault || !slices.Equal(policy.Allow, []string{"1.1.1.1"}) || !reflect.DeepEqual(policy.Headers, headers) {
		t.Errorf("the policy is %+v", policy)
	}
	d.do(t, `await fill("Host", "1.1.1.1"); await press("Explain"); await shows("Allowed:"); await shows("the sandbox: allow 1.1.1.1");
		await fill("Host", "8.8.8.8"); await press("Explain"); await shows("Denied:");`)
	d.look(t, "network")
}

// secrets stores a secret, gives it another value and deletes it. The page never has
// the value again.
func (d *dash) secrets(t *testing.T) {
	t.Helper()
	stored := func(version int) {
		t.Helper()
		list, err := d.client.Secrets(t.Context())
		if err != nil || len(list) != 1 || list[0].Name != "token" || list[0].Version != version {
			t.Errorf("the secrets are %+v, %v", list, err)
		}
	}
	d.do(t, `location.hash = "#/secrets"; await shows("No secrets yet"); await press("New secret"); await fill("Name", "Token"); await fill("Value", "the first value");
		await press("Store it"); await shows("Stored “token”, version 1"); await until("its row", () => named("Delete token")); await gone("the first value");`)
	stored(1)
	d.do(t, `await press("New secret"); await fill("Name", "TOKEN"); await fill("Value", "no"); await press("Store it"); await shows("A secret of this name exists"); await press("Close");`)
	stored(1)
	d.do(t, `await press("New value for token"); if ((await until("the field", () => named("Value"))).value) throw new Error("an earlier value is shown");
		await fill("Value", "the second value"); await press("Store it"); await shows("version 2"); await gone("New value for “token”");`)
	stored(2)
	if page := d.tab.Evaluate(t, `document.documentElement.outerHTML`); strings.Contains(page, "the second value") {
		t.Error("the page has the value")
	}
	d.look(t, "secrets")
	d.do(t, `await press("Delete token"); await shows("Its value is lost"); await press("Delete", "[role=alertdialog] button"); await shows("No secrets yet");`)
	if list, err := d.client.Secrets(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("the secrets are %+v, %v", list, err)
	}
}

// clear deletes all sandboxes: the host has few slots.
func (d *dash) clear(t *testing.T) {
	t.Helper()
	for box, err := range d.client.Sandboxes(t.Context(), client.ListSandboxes{States: []client.State{client.Running, client.Paused}}) {
		testkit.Must(t, err)
		testkit.Must(t, d.client.DeleteSandbox(t.Context(), box.ID))
	}
}

// volumes makes a volume, sees what mounts it, and deletes it when nothing does.
func (d *dash) volumes(t *testing.T) {
	t.Helper()
	d.do(t, `location.hash = "#/volumes"; await shows("No volumes yet"); await press("New volume"); await fill("Name", "data"); await fill("Size in GiB", "1"); await press("Create the volume");
		await until("its row", () => named("Delete data")); await shows("1 GiB"); await shows("nothing");`)
	box, err := d.client.CreateSandbox(t.Context(), client.CreateSandbox{Volumes: []client.VolumeMount{{Volume: "data", Path: "/data"}}})
	testkit.Must(t, err)
	d.do(t, `await shows("at /data"); if (named("Delete data")) throw new Error("a volume that is used can be deleted");`)
	d.look(t, "volumes")
	testkit.Must(t, d.client.DeleteSandbox(t.Context(), box.ID))
	d.do(t, `await press("Delete data"); await shows("Its files are lost"); await press("Delete", "[role=alertdialog] button"); await shows("No volumes yet");`)
	if list, err := d.client.Volumes(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("the volumes are %+v, %v", list, err)
	}
}

// events shows what happens to sandboxes as it happens.
func (d *dash) events(t *testing.T) {
	t.Helper()
	d.do(t, `location.hash = "#/events"; await shows("What happens to the team's sandboxes");`)
	box := d.create(t, d.client)
	_, err := d.client.PauseSandbox(t.Context(), box)
	testkit.Must(t, err)
	d.do(t, `await fill("Filter", %[1]q); await until("it is paused", () => all("tbody tr").some(r => r.innerText.includes(%[1]q) && r.innerText.includes("paused")));`, box)
	testkit.Must(t, d.client.DeleteSandbox(t.Context(), box))
	d.do(t, `await until("it is stopped", () => all("tbody tr")[0]?.innerText.includes("stopped")); await fill("Filter", "no such"); await shows("No event matches"); await fill("Filter", "");`)
	d.look(t, "events")
}

// terminal uses a shell, breaks its connection, and sees that nothing is lost. What the
// shell prints is text, also if it looks like a page.
func (d *dash) terminal(t *testing.T, box string) {
	t.Helper()
	line := func(text string) {
		d.tab.Type(t, text)
		d.tab.Press(t, "Enter", 13, "\r")
	}
	const opened = `await until("a shell", () => document.querySelector(".terminal[data-phase=open]"));
		document.querySelector(".xterm-helper-textarea").focus();`
	prints := `await until("the output " + %[1]q, () => document.querySelector(".xterm-rows")?.innerText.includes(%[1]q));`
	d.do(t, `const Plain = WebSocket; window.sockets = [];
		window.WebSocket = class extends Plain { constructor(...all) { super(...all); sockets.push(this); } };
		location.hash = "#/sandboxes/%s/terminal"; `+opened, box)
	line("echo $((6*7))-there '<img src=/nothing>'; tty | cut -c 1-5")
	d.do(t, prints, "42-there <img src=/nothing>")
	d.do(t, prints, "/dev/")
	d.do(t, `if (document.querySelector(".terminal img")) throw new Error("output became a page");
		sockets.at(-1).close(); await until("another connection", () => sockets.length > 1); `+opened)
	line("echo $((6*8))-again")
	d.do(t, prints, "48-again")
	d.look(t, "terminal")
}

// files lists a directory, changes a file in the editor, and looks what is on the disk.
func (d *dash) files(t *testing.T, box string) {
	t.Helper()
	dir := t.TempDir()
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "<img src=x>.html"), []byte("<h1>hello</h1>\n"), 0o600))
	testkit.Must(t, os.Mkdir(filepath.Join(dir, "below"), 0o700))
	d.do(t, `location.hash = "#/sandboxes/%s/files"; await fill("Directory", %q); await press("Go"); await shows("<img src=x>.html"); await shows("below");`, box, dir)
	d.look(t, "files")
	d.do(t, `await press("<img src=x>.html"); (await until("an editor", () => document.querySelector(".cm-content"))).focus(); await shows("<h1>hello</h1>");`)
	d.tab.Type(t, "new ")
	d.do(t, `await shows("new <h1>hello"); await press("Save"); await shows("Saved");`)
	d.look(t, "editor")
	if text, err := os.ReadFile(filepath.Join(dir, "<img src=x>.html")); err != nil || string(text) != "new <h1>hello</h1>\n" {
		t.Errorf("the file has %q, %v", text, err)
	}
	d.do(t, `await press("Close the file"); await press("below"); await shows("Nothing is in here");`)
}

// programs shows what programs print, whose output is streamed or in a file, and ends one.
func (d *dash) programs(t *testing.T, box string) {
	t.Helper()
	said := client.Command{Cmd: "/bin/sh", Args: []string{"-c", `echo "it $0 <said>"; exec sleep 1000`, "has"}}
	streamed, err := d.client.Start(t.Context(), box, said, client.StartOptions{})
	testkit.Must(t, err)
	defer streamed.Close()
	detached, err := d.client.Start(t.Context(), box, programs.Detached(said), client.StartOptions{})
	testkit.Must(t, err)
	defer detached.Close()
	t.Cleanup(func() { _ = os.Remove(programs.Log(detached.PID())) }) // guests are processes of this machine
	for _, pid := range []int{streamed.PID(), detached.PID()} {
		d.do(t, `location.hash = "#/sandboxes/%[1]s/programs"; await press("Output of %[2]d"); await until("its output", () => document.querySelector("pre[aria-label='Output of %[2]d']")?.innerText.includes("it has <said>"));`, box, pid)
	}
	d.look(t, "programs")
	d.do(t, `await press("End %[1]d"); await shows("End %[1]d?"); await press("End", "[role=alertdialog] button"); await until("its end", () => !named("Output of %[1]d"));`, streamed.PID())
	d.do(t, `await press("End %[1]d"); await shows("End %[1]d?"); await press("End", "[role=alertdialog] button"); await shows("it has ended");`, detached.PID())
}

// tree makes checkpoints, returns to one, and branches from it.
func (d *dash) tree(t *testing.T, box string) {
	t.Helper()
	d.do(t, `location.hash = "#/sandboxes/%s/tree"; await shows("There is none yet");
		for (const name of ["first", "second"]) {
			await press("Checkpoint"); await fill("Name (optional)", name); await press("Make it"); await shows(name);
			await until("it is done", () => !document.body.innerText.includes("Making a checkpoint"));
		}
		const node = text => until("the node " + text, () => all(".node").find(e => e.innerText.startsWith(text)));
		(await node("first")).click(); await press("Restore"); await shows("return to the checkpoint"); await press("Restore", "[role=alertdialog] button");
		await shows("Restored “first”"); await until("it is done", () => !document.body.innerText.includes("Restoring…"));
		(await node("second")).click(); await press("Branch"); await shows("a running copy is made"); await press("Branch", "[role=alertdialog] button");
		await shows("Branched as"); await until("the copy", () => document.querySelector(".node.copy"));`, box)
	d.look(t, "tree")
}

func (d *dash) others(t *testing.T) {
	t.Helper()
	d.do(t, `location.hash = "#/templates"; await shows("built in");`)
	d.look(t, "templates")
	d.do(t, `location.hash = "#/keys"; await press("New key"); await fill("Name", "for tests"); await press("Create the key"); await shows("It is not shown again"); await press("Done"); await shows("for tests");
		await press("Revoke for tests"); await shows("Programs that use it are refused"); await press("Revoke", "[role=alertdialog] button"); await until("it is gone", () => !named("Revoke for tests"));`)
	d.look(t, "keys")
	d.do(t, `location.hash = "#/audit"; await until("entries", () => document.querySelector("tbody tr"));`)
	d.look(t, "audit")
	store := pgtest.Open(t, d.database)
	now, err := store.Now(t.Context())
	testkit.Must(t, err)
	_, err = store.CountUsage(t.Context(), now) // the control plane does so every minute
	testkit.Must(t, err)
	d.do(t, `location.hash = "#/usage"; await press("30 days"); await until("days", () => named("30 days")?.ariaPressed === "true" && all("figure svg rect").length >= 8 * 30);
		await until("the sandboxes that were made", () => Number(document.querySelector("tr.total td")?.innerText) >= 3);`)
	d.look(t, "usage")
	d.do(t, `location.hash = "#/limits"; await shows("Sandboxes, paused ones included"); await shows("limits.sandboxes"); await until("bars", () => all("table svg").length >= 8);`)
	d.look(t, "limits")
}

// hosts makes the command by which a machine joins, drains the host, which has no
// sandboxes then, and cordons it.
func (d *dash) hosts(t *testing.T) {
	t.Helper()
	d.do(t, `location.hash = "#/hosts"; await press("Add a host"); await fill("Zone", "b"); await press("Make a token"); await shows("wrenn-host-agent join " + location.origin);`)
	d.look(t, "join")
	d.do(t, `await press("Done"); await gone("wrenn-host-agent join"); if (named("Remove: h1") || named("Declare lost: h1")) throw new Error("a host that is used can be removed");
		await press("Drain: h1"); await shows("paused for some seconds"); await press("Drain", "[role=alertdialog] button"); await shows("The drain is done");
		await press("Use it again: h1"); await shows("active"); await press("Cordon: h1"); await press("Cordon", "[role=alertdialog] button"); await shows("cordoned"); await press("Use it again: h1"); await shows("active");`)
	d.look(t, "hosts")
}
