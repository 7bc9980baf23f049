package cli

import (
	"strings"

	"github.com/alecthomas/kong"
)

// examples has an example of each command whose own help has none, without "wrenn ".
var examples = []string{
	"up", "doctor", "audit", "usage", "limits", "cert", "verify fork", "version",
	"sandbox create --timeout 1h",
	"sandbox list",
	"sandbox get ID",
	"sandbox exec ID -- ls -l /",
	"sandbox shell ID",
	"sandbox kill ID",
	"sandbox pause ID",
	"sandbox resume ID",
	"sandbox fork ID -n 3",
	"sandbox ssh ID",
	"sandbox wait ID",
	"sandbox timeout ID 1h",
	"sandbox set ID --on-host-loss restore --checkpoint-every 5m",
	"sandbox network show ID",
	"sandbox network log ID",
	"sandbox network learn ID",
	"sandbox network explain ID example.com:443",
	"sandbox stats ID",
	"sandbox logs -f ID",
	"sandbox cp notes.txt ID:/root/notes.txt",
	"sandbox files list ID /etc",
	"sandbox files stat ID /etc/passwd",
	"sandbox files mkdir ID /root/data",
	"sandbox files remove ID /root/notes.txt",
	"sandbox files move ID /root/a.txt /root/b.txt",
	"sandbox files watch ID /root",
	"sandbox ps ID",
	"sandbox signal ID 123",
	"sandbox port ID 8080",
	"port-forward ID 8080",
	"context list",
	"context use production",
	"context delete production",
	"checkpoint create ID before-upgrade",
	"checkpoint list ID",
	"checkpoint tree ID",
	"checkpoint restore ID CHECKPOINT",
	"checkpoint delete ID CHECKPOINT",
	"template build web .",
	"template list",
	"template get web",
	"template logs web",
	"template delete web",
	"volume list",
	"volume delete data",
	"volume cat data:/notes.txt",
	"volume mkdir data:/notes",
	"webhook add https://example.com/hooks",
	"webhook list",
	"webhook enable ID",
	"webhook disable ID",
	"webhook remove ID",
	"webhook test ID",
	"webhook deliveries ID",
	"secret list",
	"secret delete token",
	"host list",
	"host get HOST",
	"host cordon HOST",
	"host uncordon HOST",
	"host drain HOST",
	"host explain ID",
	"host remove HOST",
	"host lost HOST",
	"host token",
	"key create ci",
	"key list",
	"key revoke KEY",
}

// addExamples adds an example to the help of the commands that have none.
func addExamples(app *kong.Application) {
	for _, leaf := range app.Leaves(true) {
		name := commandName(leaf)
		if strings.Contains(leaf.Detail, "wrenn "+name) {
			continue
		}
		for _, example := range examples {
			if example == name || strings.HasPrefix(example, name+" ") {
				leaf.Detail = strings.TrimLeft(leaf.Detail+"\n\nExample:\n  wrenn "+example, "\n")
				break
			}
		}
	}
}

// commandName is how a command is called, without the program's name and aliases.
func commandName(n *kong.Node) string {
	name := n.Name
	for p := n.Parent; p != nil && p.Type == kong.CommandNode; p = p.Parent {
		name = p.Name + " " + name
	}
	return name
}
