package verify

// section is a section of docs/fork-safety.md, with its advice in one line.
type section struct{ anchor, advice string }

// page is the page with the sections.
const page = "docs/fork-safety.md"

var (
	memory  = section{"random-numbers-in-a-programs-memory", "seed again when told of the fork; never use them for secrets"}
	openSSL = section{"openssl", "mix the kernel's in when told of the fork, or restart the program"}
	node    = section{"node", "read /dev/urandom, or make ids and keys in a process that starts after the fork"}
	openTLS = section{"open-tls-connections", "close them before the fork and connect again after it"}
	clock   = section{"the-time-on-a-busy-host", "wait for the next message of the time, or start fewer sandboxes at once"}
	tcp     = section{"tcp-secrets", "nothing: copies never meet on the wire; do not use these values as secrets"}
	outside = section{"connections-to-the-outside", "timeouts, and pools that test before use"}
	uuid1   = section{"ids-from-time-and-address", "use uuid4"}
)

// check is one thing that is compared.
type check struct {
	name  string // the stable name in JSON
	group string // the subject
	title string
	needs string // a program that the guest must have; "" for none
	judge judgement
}

// Groups of checks, in order.
const (
	groupKernel     = "kernel"
	groupTold       = "being told"
	groupFresh      = "programs started after the fork"
	groupRegistered = "Python, running, reseeds when told"
	groupPlain      = "Python, running, knows nothing of forks"
	groupNode       = "Node, running, knows nothing of forks"
	groupLinks      = "connections"
)

// Programs and files that a guest may have.
const (
	python    = "python"
	nodeJS    = "node"
	openssl   = "openssl"
	machineID = "machine-id"
)

// checks are all checks, in the order of the report.
var checks = []check{
	{"kernel.urandom", groupKernel, "/dev/urandom", "", differs("kernel.urandom")},
	{"kernel.getrandom", groupKernel, "getrandom", python, differs("fresh.getrandom")},
	{"kernel.uuid", groupKernel, "/proc/sys/kernel/random/uuid", "", differs("kernel.uuid")},
	{"kernel.boot_id", groupKernel, "boot_id", "", differs("kernel.boot_id")},
	{"kernel.machine_id", groupKernel, "machine-id", machineID, differs("kernel.machine_id")},
	{"kernel.hostname", groupKernel, "host name", "", differs("kernel.hostname")},
	{"kernel.time", groupKernel, "time", "", timeIsRight},
	{"kernel.tcp_port", groupKernel, "source port of the first connection", python, mayRepeat(tcp, "connect.port")},
	{"kernel.tcp_sequence", groupKernel, "secret in TCP sequence numbers", python, sequenceSecret},

	{"told.file", groupTold, "/run/wrenn/generation", "", differs("generation.id")},
	{"told.signal", groupTold, "signal to a program that registered", python, heard},
	{"told.time", groupTold, "first time that the program saw", python, firstTime},

	{"fresh.random", groupFresh, "Python random", python, differs("fresh.random")},
	{"fresh.secrets", groupFresh, "Python secrets", python, differs("fresh.secrets")},
	{"fresh.uuid4", groupFresh, "Python uuid4", python, differs("fresh.uuid4")},
	{"fresh.tls_random", groupFresh, "TLS randoms, client and server", python, differs("fresh.client_random", "fresh.server_random")},
	{"fresh.tls_key", groupFresh, "TLS keys of a handshake", python, differs("fresh.client_key", "fresh.server_key")},
	{"fresh.openssl_key", groupFresh, "key of the openssl command", openssl, differs("fresh.openssl_key")},

	{"registered.secrets", groupRegistered, "secrets, os.urandom, SystemRandom, uuid4", python,
		differs("registered.secrets", "registered.urandom", "registered.system_random", "registered.uuid4")},
	{"registered.random", groupRegistered, "random", python, differs("registered.random")},
	{"registered.openssl", groupRegistered, "OpenSSL's random numbers", python, differs("registered.openssl")},
	{"registered.tls_random", groupRegistered, "TLS randoms, client and server", python, differs("registered.client_random", "registered.server_random")},
	{"registered.tls_key", groupRegistered, "TLS keys of a handshake", python, differs("registered.client_key", "registered.server_key")},

	{"plain.secrets", groupPlain, "secrets, os.urandom, SystemRandom, uuid4", python,
		differs("plain.secrets", "plain.urandom", "plain.system_random", "plain.uuid4")},
	{"plain.random", groupPlain, "random", python, mayRepeat(memory, "plain.random")},
	{"plain.uuid1", groupPlain, "uuid1, all but the time", python, mayRepeat(uuid1, "plain.uuid1")},
	{"plain.openssl", groupPlain, "OpenSSL's random numbers", python, mayRepeat(openSSL, "plain.openssl")},
	{"plain.tls_random", groupPlain, "TLS randoms, client and server", python, mayRepeat(openSSL, "plain.client_random", "plain.server_random")},
	{"plain.tls_key", groupPlain, "TLS keys of a handshake", python, mayRepeat(openSSL, "plain.client_key", "plain.server_key")},

	{"node.random", groupNode, "Math.random", nodeJS, mayRepeat(memory, "node.random")},
	{"node.random_bytes", groupNode, "crypto.randomBytes", nodeJS, mayRepeat(node, "node.random_bytes")},
	{"node.uuid", groupNode, "crypto.randomUUID", nodeJS, mayRepeat(node, "node.uuid")},
	{"node.uuid_uncached", groupNode, "crypto.randomUUID, without its cache", nodeJS, mayRepeat(node, "node.uuid_uncached")},
	{"node.key", groupNode, "crypto.generateKeyPair", nodeJS, mayRepeat(node, "node.key")},

	{"links.tcp", groupLinks, "TCP inside, open during the fork", python, holds("registered.tcp")},
	{"links.tls", groupLinks, "TLS inside, open during the fork", python, holds("registered.tls")},
	{"links.listener", groupLinks, "new TCP and TLS to a listener of before", python, holds("registered.new_tcp", "registered.new_tls")},
	{"links.tls_record", groupLinks, "what is sent over the open TLS", python, mayRepeat(openTLS, "registered.tls_record")},
	{"links.outside", groupLinks, "TCP to the outside", python, toOutside},
}
