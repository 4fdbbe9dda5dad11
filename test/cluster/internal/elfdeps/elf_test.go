package elfdeps

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// object describes a file that has just as much of ELF as is read here. Real ones would need a compiler, or to be checked
// in as bytes that nobody can review.
type object struct {
	machine elf.Machine
	loader  string
	needed  []string
	runPath string
}

func (o object) write(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, o.bytes(t), 0o755); err != nil {
		t.Fatal(err)
	}
}

func (o object) bytes(t *testing.T) []byte {
	t.Helper()
	const headerSize, progSize, sectionSize = 64, 56, 64
	machine := o.machine
	if machine == 0 {
		machine = elf.EM_X86_64
	}
	// One table of strings serves sections, libraries and paths.
	table := []byte{0}
	intern := func(s string) uint64 {
		at := uint64(len(table))
		table = append(append(table, s...), 0)
		return at
	}
	var dynamic []elf.Dyn64
	for _, n := range o.needed {
		dynamic = append(dynamic, elf.Dyn64{Tag: int64(elf.DT_NEEDED), Val: intern(n)})
	}
	if o.runPath != "" {
		dynamic = append(dynamic, elf.Dyn64{Tag: int64(elf.DT_RUNPATH), Val: intern(o.runPath)})
	}
	dynamic = append(dynamic, elf.Dyn64{Tag: int64(elf.DT_NULL)})

	loader := append([]byte(o.loader), 0)
	tableAt := uint64(headerSize + progSize)
	loaderAt := tableAt + uint64(len(table))
	dynamicAt := (loaderAt + uint64(len(loader)) + 7) / 8 * 8
	sectionsAt := dynamicAt + uint64(len(dynamic))*16
	progs := uint16(0)
	if o.loader != "" {
		progs = 1
	}
	var ident [elf.EI_NIDENT]byte
	copy(ident[:], elf.ELFMAG)
	ident[elf.EI_CLASS], ident[elf.EI_DATA], ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)

	var out bytes.Buffer
	put := func(value any) {
		if err := binary.Write(&out, binary.LittleEndian, value); err != nil {
			t.Fatal(err)
		}
	}
	put(elf.Header64{
		Ident: ident, Type: uint16(elf.ET_DYN), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Phoff: headerSize, Shoff: sectionsAt, Ehsize: headerSize,
		Phentsize: progSize, Phnum: progs, Shentsize: sectionSize, Shnum: 3, Shstrndx: 1,
	})
	put(elf.Prog64{Type: uint32(elf.PT_INTERP), Off: loaderAt, Filesz: uint64(len(loader)), Memsz: uint64(len(loader))})
	put(table)
	put(loader)
	put(make([]byte, dynamicAt-loaderAt-uint64(len(loader))))
	put(dynamic)
	put(elf.Section64{})
	put(elf.Section64{Type: uint32(elf.SHT_STRTAB), Off: tableAt, Size: uint64(len(table))})
	put(elf.Section64{Type: uint32(elf.SHT_DYNAMIC), Link: 1, Off: dynamicAt, Size: uint64(len(dynamic)) * 16, Entsize: 16})
	return out.Bytes()
}
