package modules

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/ulikunitz/xz"
)

// module returns an ELF with a .modinfo section of these entries.
func module(t *testing.T, info ...string) []byte {
	t.Helper()
	const header, names = 64, "\x00.shstrtab\x00.modinfo\x00"
	body := strings.Join(info, "\x00") + "\x00"
	var out bytes.Buffer
	for _, v := range []any{
		elf.Header64{
			Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:  uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: header,
			Shoff: header + uint64(len(names)+len(body)), Shentsize: 64, Shnum: 3, Shstrndx: 1,
		},
		[]byte(names), []byte(body),
		elf.Section64{},
		elf.Section64{Name: 1, Type: uint32(elf.SHT_STRTAB), Off: header, Size: uint64(len(names))},
		elf.Section64{Name: 11, Type: uint32(elf.SHT_PROGBITS), Off: header + uint64(len(names)), Size: uint64(len(body))},
	} {
		if err := binary.Write(&out, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

// kernelTree writes modules to the paths of Debian.
func kernelTree(t *testing.T, under string, files map[string][]byte, builtin ...string) string {
	t.Helper()
	tree := t.TempDir()
	dir := filepath.Join(tree, under, "6.1.0-test")
	for name, data := range files {
		path := filepath.Join(dir, "kernel", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(strings.Join(builtin, "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
	return tree
}

func names(modules []Module) []string {
	var list []string
	for _, m := range modules {
		list = append(list, m.Name)
	}
	return list
}

func TestResolve(t *testing.T) {
	var packed, zipped bytes.Buffer
	x, err := xz.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(&zipped)
	blk, net := module(t, "depends=virtio,virtio_ring"), module(t, "depends=virtio_ring,net-failover")
	if err := errors.Join(write(x, blk), write(z, net)); err != nil {
		t.Fatal(err)
	}
	tree := kernelTree(t, "usr/lib/modules", map[string][]byte{
		"virtio/virtio_ring.ko":  module(t, "name=virtio_ring", "depends="),
		"virtio/virtio.ko":       module(t, "depends=virtio_ring"),
		"block/virtio_blk.ko.xz": packed.Bytes(),
		"net/virtio_net.ko.gz":   zipped.Bytes(),
		"net/net_failover.ko":    module(t, "depends=failover"),
		"net/failover.ko":        module(t, "depends="),
		"char/virtio-rng.ko":     module(t, "depends=virtio"),
		"fs/ext4.ko":             module(t, "softdep=pre: crc32c post: nothing", "depends=mbcache"),
		"crypto/crc32c_generic.ko": append(module(t, "depends="),
			append([]byte("signature\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09"), signatureMagic...)...),
	}, "kernel/fs/mbcache.ko", "kernel/drivers/virtio/virtio_mmio.ko")

	got, err := Resolve(tree, []string{"virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "nosuch", "ext4"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"virtio_ring", "virtio", "virtio_blk", "failover", "net_failover", "virtio_net", "virtio_rng", "crc32c_generic", "ext4"}
	if diff := cmp.Diff(want, names(got)); diff != "" {
		t.Errorf("order mismatch (-want +got):\n%s", diff)
	}
	for _, m := range got {
		if m.Name == "virtio_blk" && m.Path != "kernel/block/virtio_blk.ko" {
			t.Errorf("%s is to be at %s", m.Name, m.Path)
		}
		switch {
		case m.Name == "virtio_blk" && !bytes.Equal(m.Data, blk), m.Name == "virtio_net" && !bytes.Equal(m.Data, net):
			t.Errorf("%s was not unpacked", m.Name)
		case m.Name == "crc32c_generic" && !bytes.Equal(m.Data, module(t, "depends=")):
			t.Errorf("%s still has its signature", m.Name)
		}
	}
}

func write(w io.WriteCloser, data []byte) error {
	_, err := w.Write(data)
	return errors.Join(err, w.Close())
}

func TestResolveFails(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		files      map[string][]byte
	}{
		{"a dependency is missing", "module b is not in this kernel", map[string][]byte{"a.ko": module(t, "depends=b")}},
		{"not an ELF", "module a: bad magic", map[string][]byte{"a.ko": []byte("nonsense, and long enough")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Resolve(kernelTree(t, "lib/modules", tt.files), []string{"a"})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Resolve() = %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := Resolve(t.TempDir(), []string{"a"}); err == nil {
		t.Error("Resolve in a tree without kernel succeeded")
	}
}

func TestResolveEndsWithACycle(t *testing.T) {
	tree := kernelTree(t, "lib/modules", map[string][]byte{"a.ko": module(t, "depends=b"), "b.ko": module(t, "depends=a")})
	got, err := Resolve(tree, []string{"a"})
	if err != nil || len(got) != 2 {
		t.Errorf("Resolve() = %v, %v", names(got), err)
	}
}

func TestUnsigned(t *testing.T) {
	for _, data := range []string{"", signatureMagic, "xx" + signatureMagic, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff" + signatureMagic} {
		if got := unsigned([]byte(data)); string(got) != data {
			t.Errorf("unsigned(%q) = %q", data, got)
		}
	}
}
