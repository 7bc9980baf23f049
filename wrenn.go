// Package wrenn defines the product's vocabulary: ids, sandboxes, templates,
// hosts, commands, errors, and the limits that every part enforces. The control
// plane and the hosts both use it. It imports only the standard library and does
// no I/O.
package wrenn
