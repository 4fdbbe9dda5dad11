package nvmlsim

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"runtime"
)

// stubLibrary is the smallest shared library that a loader, ldconfig and the
// container toolkit take for one: it has a name and no symbols.
func stubLibrary(soname string) ([]byte, error) {
	machine := elf.EM_X86_64
	if runtime.GOARCH == "arm64" {
		machine = elf.EM_AARCH64
	}
	names := "\x00" + soname + "\x00"
	// The parts, in the order in which they lie in the file; symbols and hash table are empty but for what is obligatory.
	const (
		headers  = 64 + 2*56
		symbols  = headers
		hash     = symbols + elf.Sym64Size
		nameTab  = hash + 16
		maxNames = 256
		dynamic  = nameTab + maxNames
	)
	if len(names) > maxNames {
		return nil, fmt.Errorf("library name %q is too long", soname)
	}
	tags := []elf.Dyn64{
		{Tag: int64(elf.DT_SONAME), Val: 1},
		{Tag: int64(elf.DT_HASH), Val: hash},
		{Tag: int64(elf.DT_STRTAB), Val: nameTab},
		{Tag: int64(elf.DT_SYMTAB), Val: symbols},
		{Tag: int64(elf.DT_STRSZ), Val: uint64(len(names))},
		{Tag: int64(elf.DT_SYMENT), Val: elf.Sym64Size},
		{},
	}
	dynamicSize := uint64(len(tags) * 16)
	sections := dynamic + dynamicSize
	header := elf.Header64{
		Type: uint16(elf.ET_DYN), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Phoff: 64, Shoff: sections,
		Ehsize: 64, Phentsize: 56, Phnum: 2, Shentsize: 64, Shnum: 3, Shstrndx: 1,
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	header.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	header.Ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)

	var out bytes.Buffer
	for _, part := range []any{
		header,
		elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W), Filesz: sections, Memsz: sections, Align: 0x1000},
		elf.Prog64{Type: uint32(elf.PT_DYNAMIC), Flags: uint32(elf.PF_R | elf.PF_W), Off: dynamic, Vaddr: dynamic, Paddr: dynamic, Filesz: dynamicSize, Memsz: dynamicSize, Align: 8},
		elf.Sym64{},
		[4]uint32{1, 1, 0, 0},
		append([]byte(names), make([]byte, maxNames-len(names))...),
		tags,
		elf.Section64{},
		elf.Section64{Type: uint32(elf.SHT_STRTAB), Addr: nameTab, Off: nameTab, Size: uint64(len(names)), Addralign: 1},
		elf.Section64{Type: uint32(elf.SHT_DYNAMIC), Addr: dynamic, Off: dynamic, Size: dynamicSize, Link: 1, Addralign: 8, Entsize: 16},
	} {
		if err := binary.Write(&out, binary.LittleEndian, part); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}
