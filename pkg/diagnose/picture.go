package diagnose

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// picture draws every board of the node, also those that are not seen any more.
func (f *facts) picture() []GPU {
	all := []GPU{}
	for _, g := range f.node.GPUs {
		why := ""
		if err := f.readError(g.UUID); err != nil {
			why = err.Error()
		}
		all = append(all, f.draw(g, why))
	}
	unknown := slices.DeleteFunc(slices.Clone(f.unread), func(e gpu.ReadError) bool {
		_, seen := f.board(e.UUID)
		return seen
	})
	for _, g := range f.absent {
		why := "the driver does not list it"
		if f.noHardware != nil {
			why = "the driver was not asked"
		}
		if i := slices.IndexFunc(unknown, func(e gpu.ReadError) bool { return e.Index == g.Index }); i >= 0 {
			why = unknown[i].Err.Error()
			unknown = slices.Delete(unknown, i, i+1)
		}
		all = append(all, f.draw(g, why))
	}
	for _, e := range unknown {
		all = append(all, GPU{Name: fmt.Sprintf("index %d", e.Index), UUID: e.UUID, Index: e.Index, Unread: e.Err.Error(), Slices: 1, Rows: [][]Span{{{Size: 1, Use: Unknown}}}})
	}
	slices.SortStableFunc(all, func(a, b GPU) int { return cmp.Or(cmp.Compare(a.PCIBusID, b.PCIBusID), cmp.Compare(a.Index, b.Index)) })
	return all
}

// draw draws a board; unread is why it could not be read, empty where it could.
func (f *facts) draw(g gpu.GPU, unread string) GPU {
	v := f.vitals[g.UUID]
	p := GPU{
		Name: f.about(g.UUID), UUID: g.UUID, Index: g.Index, PCIBusID: g.PCIBusID, ProductName: g.ProductName,
		MIG:     MIG{Capable: g.MIG.Capable, Current: g.MIG.Current, Pending: g.MIG.Pending},
		Celsius: v.Celsius, UsedBytes: v.UsedBytes, MemoryBytes: g.MemoryBytes, Slices: slicesOf(g), Unread: unread,
	}
	for _, c := range f.conditions {
		if c.Device.GPU != g.UUID {
			continue
		}
		named := f.about(g.UUID)
		if c.Device.Type != "" {
			named = f.names.Device(c.Device)
		}
		p.Conditions = append(p.Conditions, Condition{Device: named, Reason: c.Reason, Effect: c.Effect, Message: c.Message, Since: c.Since})
	}
	var spans []Span
	for _, i := range g.Instances {
		spans = append(spans, f.instanceSpan(i))
	}
	for _, c := range f.claims {
		for _, s := range f.claimSpans(c, g) {
			// A MIG device whose instance is there has its span already.
			if !slices.ContainsFunc(spans, func(o Span) bool { return o.Type == gpu.TypeMIG && s.Type == gpu.TypeMIG && o.Device == s.Device }) {
				spans = append(spans, s)
			}
		}
	}
	nothing := Free
	if unread != "" {
		nothing = Unknown
	}
	p.Rows = rows(spans, p.Slices, nothing)
	return p
}

// slicesOf is the number of memory slices of a board.
func slicesOf(g gpu.GPU) int {
	n := 1
	for _, placed := range gpu.AllPlaced(g.Profiles) {
		n = max(n, placed.Placement.Start+placed.Placement.Size)
	}
	return n
}

func (f *facts) instanceSpan(i gpu.Instance) Span {
	s := Span{
		Start: i.Placement.Start, Size: i.Placement.Size, Use: Foreign, Type: gpu.TypeMIG, Profile: i.Profile,
		Device: f.names.Device(i.Device()), GPUInstance: &i.ID,
	}
	if i.Usable() {
		s.MIG = i.Compute[0].UUID
	}
	if r := f.recordOf(i); r != nil {
		switch {
		case r.State == journal.InstanceReleasing:
			s.Use = Releasing
		case r.Claim == "":
			s.Use = Idle
		default:
			s.Use, s.Claim = Claimed, r.Claim // The UID, until the claim is found to have a name.
		}
	}
	// A claim can have an instance that somebody else made.
	for _, c := range f.claims {
		if s.Use == Idle || !slices.Contains(c.Devices, s.Device) || c.Record == "" {
			continue
		}
		s.Claim, s.ClaimState = c.Namespace+"/"+c.Name, c.shown()
		if s.Use = Claimed; c.Record == journal.ClaimReleasing {
			s.Use = Releasing
		}
	}
	return s
}

// claimSpans are the devices that a claim has on a board.
func (f *facts) claimSpans(c Claim, g gpu.GPU) []Span {
	var spans []Span
	add := func(d gpu.Device, use Use) {
		s := Span{Size: slicesOf(g), Use: use, Type: d.Type, Profile: d.Profile, Device: f.names.Device(d), Claim: c.Namespace + "/" + c.Name, ClaimState: c.shown()}
		if d.Type == gpu.TypeMIG {
			s.Start, s.Size = d.Placement.Start, d.Placement.Size
		}
		spans = append(spans, s)
	}
	if r := f.claimRecord(c.UID); r != nil {
		use := Claimed
		if r.State == journal.ClaimReleasing {
			use = Releasing
		}
		for _, d := range r.Devices {
			if d.Device.GPU == g.UUID && !d.AdminAccess {
				add(d.Device, use)
			}
		}
		return spans
	}
	catalogue := gpu.Catalogue(slices.Concat(f.node.GPUs, f.absent))
	for _, r := range f.results(f.api.claims[c.UID]) {
		if d, ok := catalogue[r.Device]; ok && d.GPU == g.UUID && (r.AdminAccess == nil || !*r.AdminAccess) {
			add(d, Allocated)
		}
	}
	return spans
}

// rows lays spans out so that none overlap in a row, and fills each row up with nothing.
func rows(spans []Span, width int, nothing Use) [][]Span {
	slices.SortStableFunc(spans, func(a, b Span) int { return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.Device, b.Device)) })
	var laid [][]Span
	for _, s := range spans {
		at := slices.IndexFunc(laid, func(row []Span) bool {
			last := row[len(row)-1]
			return last.Start+last.Size <= s.Start
		})
		if at < 0 {
			at, laid = len(laid), append(laid, nil)
		}
		laid[at] = append(laid[at], s)
	}
	if len(laid) == 0 {
		laid = [][]Span{nil}
	}
	for i, row := range laid {
		laid[i] = filled(row, width, nothing)
	}
	return laid
}

func filled(row []Span, width int, nothing Use) []Span {
	var all []Span
	at := 0
	for _, s := range append(row, Span{Start: width}) {
		if s.Start > at {
			all = append(all, Span{Start: at, Size: s.Start - at, Use: nothing})
		}
		if s.Size > 0 {
			all = append(all, s)
		}
		at = s.Start + s.Size
	}
	return all
}
