// Package kernel unpacks the ELF in a Linux kernel image as distributions ship it
// (bzImage, x86-64). Firecracker boots nothing else, and QEMU boots an ELF faster
// (PVH) than the image.
package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Bounds on input and output: Debian's largest kernel is about 10 MiB packed and
// 80 MiB unpacked.
const (
	MaxImage = 64 << 20
	maxELF   = 256 << 20
)

// Offsets in the setup header, from the kernel's Documentation/arch/x86/boot.rst.
const (
	offSetupSects    = 0x1f1
	offMagic         = 0x202
	offVersion       = 0x206
	offPayloadOffset = 0x248
	offPayloadLength = 0x24c
	headerEnd        = 0x250

	sector             = 512
	defaultSetupSects  = 4 // when the field is 0
	minProtocolVersion = 0x0208
)

// Vmlinux returns the ELF in a kernel image. It returns an image that is an ELF
// already as it is.
func Vmlinux(image []byte) ([]byte, error) {
	if bytes.HasPrefix(image, []byte(elf.ELFMAG)) {
		return image, check(image)
	}
	packed, err := payload(image)
	if err != nil {
		return nil, err
	}
	r, err := unpacker(packed)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	_, err = io.Copy(&out, io.LimitReader(r, maxELF+1))
	if err != nil {
		return nil, fmt.Errorf("unpack kernel: %w", err)
	}
	if out.Len() > maxELF {
		return nil, fmt.Errorf("unpack kernel: more than %d MiB", maxELF>>20)
	}
	return out.Bytes(), check(out.Bytes())
}

// payload finds the packed kernel by the setup header.
func payload(image []byte) ([]byte, error) {
	if len(image) < headerEnd || string(image[offMagic:offMagic+4]) != "HdrS" {
		return nil, errors.New("neither an ELF nor a Linux kernel image (bzImage)")
	}
	if v := binary.LittleEndian.Uint16(image[offVersion:]); v < minProtocolVersion {
		return nil, fmt.Errorf("boot protocol %d.%02d is too old: its header has no payload offset", v>>8, v&0xff)
	}
	setup := uint64(image[offSetupSects])
	if setup == 0 {
		setup = defaultSetupSects
	}
	start := (setup+1)*sector + uint64(binary.LittleEndian.Uint32(image[offPayloadOffset:]))
	end := start + uint64(binary.LittleEndian.Uint32(image[offPayloadLength:]))
	if end > uint64(len(image)) || start == end {
		return nil, fmt.Errorf("the payload (%d to %d) is not inside the image of %d bytes", start, end, len(image))
	}
	return image[start:end], nil
}

// check returns an error unless data is a kernel that a VMM can load: a 64-bit x86
// ELF with complete segments.
func check(data []byte) error {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("kernel: %s %s is not x86-64", f.Class, f.Machine)
	}
	loads := 0
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		loads++
		if p.Off > uint64(len(data)) || p.Filesz > uint64(len(data))-p.Off {
			return errors.New("kernel: a segment is cut off")
		}
	}
	if loads == 0 {
		return errors.New("kernel: no segment to load")
	}
	return nil
}
