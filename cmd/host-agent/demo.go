package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"wrenn/internal/demo"
	"wrenn/internal/host"
	"wrenn/internal/image"
	"wrenn/internal/network"
	"wrenn/internal/sandbox"
)

type demoCommand struct {
	Command []string `arg:"" optional:"" passthrough:"" help:"A command to run in the machine after the greeting."`

	RunDir      string       `default:"/run/wrenn" name:"run" type:"path" help:"Directory for sockets and consoles; short."`
	Images      string       `type:"path" help:"Directory for guest images, if not --state."`
	Image       string       `help:"An image that image from-container made, instead of the default."`
	Driver      string       `default:"auto" enum:"auto,qemu,firecracker" help:"The VMM: auto takes what works here."`
	QEMU        string       `default:"qemu-system-x86_64" name:"qemu" help:"Path or name of QEMU."`
	Firecracker string       `default:"firecracker" help:"Path or name of Firecracker."`
	Jailer      string       `default:"jailer" help:"Path or name of Firecracker's jailer."`
	Kernel      string       `type:"existingfile" help:"A guest kernel (uncompressed ELF) instead of the distribution's."`
	Initrd      string       `type:"existingfile" help:"An initramfs for --kernel."`
	Range       netip.Prefix `default:"10.191.0.0/16" help:"Private addresses for the machines' network slots."`
	Prefix      string       `default:"wrenn" help:"Begins the names of namespaces and links: another one for each agent of a machine."`
	Memory      int          `default:"256" help:"Memory of the machine in MiB."`
	VCPUs       int          `default:"1" name:"vcpus" help:"Virtual CPUs of the machine."`
}

// Run assembles a host, shows it and takes it apart.
func (c *demoCommand) Run(ctx context.Context, line *commandLine, std streams) (err error) {
	times := &demo.Times{}
	h, err := host.Open(ctx, host.Config{
		StateDir: line.State, RunDir: c.RunDir,
		Image:   image.Config{StateDir: c.Images, Name: c.Image, Kernel: c.Kernel, Initrd: c.Initrd},
		Driver:  host.DriverConfig{Name: c.Driver, QEMU: c.QEMU, Firecracker: c.Firecracker, Jailer: c.Jailer},
		Network: network.Config{Prefix: c.Prefix, Range: c.Range, Ready: 1},
		Out:     std.out, Log: line.log(std.err), Trace: times.Trace,
	})
	if err != nil {
		return err
	}
	code, err := demo.Run(ctx, demo.Config{
		Manager: h.Manager, Shape: sandbox.Shape{VCPUs: c.VCPUs, MemoryMiB: c.Memory},
		Command: c.command(), Times: times, Out: std.out,
	})
	err = errors.Join(err, h.Close(ctx))
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return interrupted{}
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(std.out)
	if err := times.Print(std.out); err != nil {
		return err
	}
	left, err := host.Leftovers(c.RunDir, c.Prefix)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind: %s", strings.Join(left, ", "))
	}
	fmt.Fprintln(std.out, "\nnothing of them is left")
	if code != 0 {
		return exitCode(code)
	}
	return nil
}

// command is the user's, without the "--" that may set it off from our flags.
func (c *demoCommand) command() []string {
	if len(c.Command) > 0 && c.Command[0] == "--" {
		return c.Command[1:]
	}
	return c.Command
}

// interrupted is Ctrl-C, after everything was cleaned up.
type interrupted struct{}

func (interrupted) Error() string { return "interrupted; nothing of the machine is left" }
func (interrupted) ExitCode() int { return 130 } // as shells say SIGINT
