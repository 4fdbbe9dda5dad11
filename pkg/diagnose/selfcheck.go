package diagnose

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/gpu"
)

// SelfCheck compares the boards with what kerf knows of their models, for whoever
// has a board that nobody had before. It changes no mode and makes no instance.
type SelfCheck struct {
	Boards []BoardCheck `json:"boards"`
	// Minors are the differences between the driver's table of capability minors and the formula that is known of it.
	Minors []string `json:"minors"`
	// Inferred are the rules of the simulator that no source states: what such a board can confirm or refute.
	Inferred []string `json:"inferred"`
}

// BoardCheck is the comparison of one board.
type BoardCheck struct {
	GPU         string `json:"gpu"`
	ProductName string `json:"productName"`
	// Model is kerf's name of the model, empty where it is not known.
	Model string `json:"model,omitempty"`
	// Differences have a line each: what the driver says, and what is known.
	Differences []string `json:"differences"`
}

func (f *facts) selfCheck() *SelfCheck {
	s := &SelfCheck{Inferred: f.Inferred, Minors: minorDifferences(f.host)}
	boards := gpu.Boards()
	for _, g := range f.node.GPUs {
		c := BoardCheck{GPU: f.about(g.UUID), ProductName: g.ProductName, Differences: []string{}}
		i := slices.IndexFunc(boards, func(b gpu.Board) bool { return b.ProductName == g.ProductName })
		if i < 0 {
			c.Differences = append(c.Differences, fmt.Sprintf("the model %q is not known: %s", g.ProductName, profilesOf(g)))
		} else {
			c.Model, c.Differences = boards[i].Name, append(c.Differences, boardDifferences(g, boards[i])...)
		}
		s.Boards = append(s.Boards, c)
	}
	return s
}

func profilesOf(g gpu.GPU) string {
	if len(g.Profiles) == 0 {
		return "it has no MIG"
	}
	var all []string
	for _, p := range g.Profiles {
		all = append(all, fmt.Sprintf("%s (id %d, placements %v)", p.Name, p.ID, p.Placements))
	}
	return "its profiles are " + strings.Join(all, ", ")
}

// differences collects what is not as known.
type differences []string

func compare[T comparable](d *differences, what string, got, want T) {
	if got != want {
		*d = append(*d, fmt.Sprintf("%s: the driver says %v, known is %v", what, got, want))
	}
}

func boardDifferences(g gpu.GPU, b gpu.Board) []string {
	var d differences
	compare(&d, "brand", g.Brand, b.Brand)
	compare(&d, "architecture", g.Architecture, b.Architecture)
	compare(&d, "compute capability", g.ComputeCapability, b.ComputeCapability)
	compare(&d, "memory in MiB", g.MemoryBytes>>20, b.MemoryMiB)
	compare(&d, "MIG", g.MIG.Capable, len(b.Profiles) > 0)
	compare(&d, "a change of the MIG mode needs a reset", g.ToggleNeedsReset, b.ToggleNeedsReset)
	known := gpu.GPU{Profiles: b.Profiles}
	for _, p := range g.Profiles {
		want, ok := known.Profile(p.Name)
		if !ok {
			d = append(d, fmt.Sprintf("profile %s (id %d) is not known", p.Name, p.ID))
			continue
		}
		profileDifferences(&d, p, want)
	}
	for _, p := range b.Profiles {
		if _, ok := g.Profile(p.Name); !ok {
			d = append(d, fmt.Sprintf("profile %s (id %d) is known, and the driver does not list it", p.Name, p.ID))
		}
	}
	return d
}

func profileDifferences(d *differences, got, want gpu.Profile) {
	of := "profile " + got.Name + ", "
	compare(d, of+"id", got.ID, want.ID)
	compare(d, of+"compute slices", got.ComputeSlices, want.ComputeSlices)
	compare(d, of+"media extensions", got.MediaExtensions, want.MediaExtensions)
	compare(d, of+"memory in MiB", got.MemoryMiB, want.MemoryMiB)
	compare(d, of+"multiprocessors", got.Multiprocessors, want.Multiprocessors)
	compare(d, of+"copy engines", got.CopyEngines, want.CopyEngines)
	compare(d, of+"decoders", got.Decoders, want.Decoders)
	compare(d, of+"encoders", got.Encoders, want.Encoders)
	compare(d, of+"JPEG engines", got.JPEGEngines, want.JPEGEngines)
	compare(d, of+"OFA engines", got.OFAEngines, want.OFAEngines)
	compare(d, of+"placements", fmt.Sprint(got.Placements), fmt.Sprint(want.Placements))
}

var capabilityName = regexp.MustCompile(`^gpu(\d+)/gi(\d+)(?:/ci(\d+))?/access$`)

// minorDifferences compares the driver's whole table, which has more boards than the node.
func minorDifferences(host *cdispec.Host) []string {
	table, err := host.MIGMinors()
	if err != nil {
		return []string{fmt.Sprintf("the driver's table of capability minors: %v", err)}
	}
	d := []string{}
	for name, minor := range table {
		found := capabilityName.FindStringSubmatch(name)
		if found == nil {
			continue // "config" and "monitor".
		}
		ids := []int{0, 0, gpu.Whole}
		for n, digits := range found[1:] {
			// No number of the driver's is too long for an int, and what is absent stays as it is.
			if id, err := strconv.Atoi(digits); err == nil {
				ids[n] = id
			}
		}
		if want := int64(gpu.CapabilityMinor(ids[0], ids[1], ids[2])); minor != want {
			d = append(d, fmt.Sprintf("%s: the driver says minor %d, the formula %d", name, minor, want))
		}
	}
	slices.Sort(d)
	return d
}

func (t *text) selfCheck(s *SelfCheck) {
	t.line("")
	t.line("SELF-CHECK: the boards against what kerf knows of their models")
	for _, b := range s.Boards {
		t.line("%s  %s: %s", b.GPU, b.ProductName, plural(len(b.Differences), "difference"))
		for _, d := range b.Differences {
			t.line("  %s", d)
		}
	}
	t.line("capability minors: %s", plural(len(s.Minors), "difference"))
	for _, d := range s.Minors {
		t.line("  %s", d)
	}
	t.line("what the simulator takes for granted and no source states:")
	for _, rule := range s.Inferred {
		t.line("  %s", strings.TrimSpace(rule))
	}
}
