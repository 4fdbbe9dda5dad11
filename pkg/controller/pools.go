package controller

import (
	"cmp"
	"slices"
	"strings"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

// content is what is on the elastic nodes of a pool.
type content struct {
	gpus, free int
	// profiles says how many more of each there can be, one profile at a time.
	profiles map[string]int
	stranded int
}

// count looks at what the elastic nodes publish.
func (m *members) count(f *fleet.Fleet) {
	m.content = content{profiles: map[string]int{}}
	for _, n := range m.elastic {
		pools, err := f.Pools(n)
		if err != nil {
			continue // A selector that cannot be read: the scheduler uses nothing of it either.
		}
		for _, p := range pools {
			if p.Usable() {
				m.content.add(p)
			}
		}
	}
}

// memorySlice is how the counters of a GPU's memory slices begin, as package pool names them.
const memorySlice = "memory-slice-"

// board is a GPU as its devices show it.
type board struct {
	whole, mig []fleet.Device
	set        string
}

func (c *content) add(p *fleet.Pool) {
	boards := map[string]*board{}
	for _, d := range p.Devices {
		if len(d.ConsumesCounters) == 0 || len(fleet.NotTolerated(d, nil)) > 0 {
			continue
		}
		set := d.ConsumesCounters[0].CounterSet
		b := boards[set]
		if b == nil {
			b = &board{set: set}
			boards[set] = b
		}
		switch attribute(d, "type") {
		case string(gpu.TypeGPU):
			b.whole = append(b.whole, d)
		case string(gpu.TypeMIG):
			b.mig = append(b.mig, d)
		}
	}
	for _, b := range boards {
		c.gpus++
		if slices.ContainsFunc(b.whole, func(d fleet.Device) bool { return !p.Taken(d, false) }) {
			c.free++
			c.profiles["gpu"]++
		}
		c.addMIG(p, b)
	}
}

// addMIG counts placements. Those of one profile are equally long, so taking them from the left takes the most.
func (c *content) addMIG(p *fleet.Pool, b *board) {
	byProfile := map[string][]fleet.Device{}
	usable := map[string]bool{}
	for _, d := range b.mig {
		if p.Taken(d, false) {
			continue
		}
		byProfile[attribute(d, "profile")] = append(byProfile[attribute(d, "profile")], d)
		for name := range d.ConsumesCounters[0].Counters {
			usable[name] = true
		}
	}
	if len(b.mig) == 0 {
		return
	}
	left, all := p.Left(b.set), p.All(b.set)
	for name := range left {
		unused := left[name].Value
		full := all[name].Value
		if strings.HasPrefix(name, memorySlice) && unused.Cmp(full) == 0 && !usable[name] {
			c.stranded++
		}
	}
	for profile, devices := range byProfile {
		slices.SortFunc(devices, func(x, y fleet.Device) int { return cmp.Compare(firstSlice(x), firstSlice(y)) })
		c.profiles[profile] += most(devices, left)
	}
}

func firstSlice(d fleet.Device) string {
	first := ""
	for name := range d.ConsumesCounters[0].Counters {
		if strings.HasPrefix(name, memorySlice) && (first == "" || name < first) {
			first = name
		}
	}
	return first
}

// most is how many of the devices can be taken together.
func most(devices []fleet.Device, left map[string]resourceapi.Counter) int {
	rest := map[string]resource.Quantity{}
	for name, c := range left {
		rest[name] = c.Value
	}
	n := 0
	for _, d := range devices {
		fits := true
		for name, c := range d.ConsumesCounters[0].Counters {
			q := rest[name]
			fits = fits && q.Cmp(c.Value) >= 0
		}
		if !fits {
			continue
		}
		n++
		for name, c := range d.ConsumesCounters[0].Counters {
			q := rest[name].DeepCopy()
			q.Sub(c.Value)
			rest[name] = q
		}
	}
	return n
}

// attribute is one of kerf's: without a domain it has that of the driver, which is the default one's then.
func attribute(d fleet.Device, name string) string {
	for _, name := range []resourceapi.QualifiedName{resourceapi.QualifiedName(name), resourceapi.QualifiedName(pool.DefaultDriver + "/" + name)} {
		if v := d.Attributes[name]; v.StringValue != nil {
			return *v.StringValue
		}
	}
	return ""
}

func (m *members) status() v1alpha1.GPUElasticPoolStatus {
	c := m.content
	s := v1alpha1.GPUElasticPoolStatus{
		ObservedGeneration: m.pool.Generation, Nodes: int32(len(m.elastic)), GPUs: int32(c.gpus), FreeGPUs: int32(c.free),
		StrandedSlices: int32(c.stranded), Conditions: slices.Clone(m.pool.Status.Conditions),
	}
	for profile, n := range c.profiles {
		s.Free = append(s.Free, v1alpha1.FreeProfile{Profile: profile, Count: int32(n)})
	}
	slices.SortFunc(s.Free, func(a, b v1alpha1.FreeProfile) int { return cmp.Compare(a.Profile, b.Profile) })
	ready := metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "NodesFound", Message: "the selector chooses nodes with GPUs",
		ObservedGeneration: m.pool.Generation,
	}
	switch {
	case m.err != nil:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, "InvalidSelector", m.err.Error()
	case c.gpus == 0:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, "NoGPUs", "the selector chooses no node that publishes GPUs and is no primary one"
	}
	meta.SetStatusCondition(&s.Conditions, ready)
	return s
}
