package pool_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
	"github.com/kerf-project/kerf/pkg/pool/pooltest"
)

const (
	onDemand = configv1alpha1.MIGOnDemand
	keepOn   = configv1alpha1.MIGKeepOn
	off      = configv1alpha1.MIGOff
)

func boardGPU(t *testing.T, name string) gpu.GPU {
	t.Helper()
	b, err := gpu.BoardByName(name)
	require.NoError(t, err)
	return pooltest.GPU(b, 0)
}

func offered(o pool.Offer, kind gpu.DeviceType) int {
	n := 0
	for _, d := range o {
		if d.Type == kind {
			n++
		}
	}
	return n
}

func TestDesired(t *testing.T) {
	// Without media extensions: 7 x 1g, 4 x 1g of double memory, 3 x 2g, 2 x 3g, 4g and 7g.
	const placements, media = 18, 7
	for _, c := range []struct {
		name, board          string
		current              bool
		policy               configv1alpha1.Policy
		whole, mig, replicas int
	}{
		{"no MIG", "L40S", false, pooltest.Policy(onDemand, true, 4), 1, 0, 4},
		{"no MIG can't be kept on", "A10G", false, pooltest.Policy(keepOn, false, 0), 1, 0, 0},
		{"on demand", "H100-SXM5-80GB", false, pooltest.Policy(onDemand, false, 0), 1, placements, 0},
		{"on demand, found in MIG mode", "H100-SXM5-80GB", true, pooltest.Policy(onDemand, false, 4), 1, placements, 4},
		{"media extensions", "H200-SXM-141GB", false, pooltest.Policy(onDemand, true, 8), 1, placements + media, 8},
		{"kept on shares nothing", "H100-NVL-94GB", false, pooltest.Policy(keepOn, false, 4), 0, placements, 0},
		{"off", "H100-PCIe-80GB", true, pooltest.Policy(off, true, 4), 1, 0, 4},
		{"reset, mode off", "A100-SXM4-40GB", false, pooltest.Policy(onDemand, false, 4), 1, 0, 4},
		{"reset, mode off, to be kept on", "A100-SXM4-40GB", false, pooltest.Policy(keepOn, false, 4), 1, 0, 4},
		{"reset, mode on", "A100-SXM4-80GB", true, pooltest.Policy(onDemand, false, 4), 0, placements, 0},
		{"reset, mode on, to be off", "A100-SXM4-80GB", true, pooltest.Policy(off, false, 4), 0, placements, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := boardGPU(t, c.board)
			g.MIG.Current = c.current
			o := pool.Desired(g, c.policy, nil)
			require.Equal(t, c.whole, offered(o, gpu.TypeGPU), "whole")
			require.Equal(t, c.mig, offered(o, gpu.TypeMIG), "placements")
			require.Equal(t, c.replicas, offered(o, gpu.TypeTimeSlice), "replicas")
		})
	}
}

// The order is the same in whatever order the driver lists the profiles, and a
// smaller profile comes before a larger one.
func TestDesiredOrder(t *testing.T) {
	g := boardGPU(t, "H100-SXM5-80GB")
	want := pool.Desired(g, pooltest.Policy(onDemand, true, 2), nil)
	require.Equal(t, gpu.TypeGPU, want[0].Type)
	var profiles []string
	for _, d := range want {
		if d.Type == gpu.TypeMIG && !slices.Contains(profiles, d.Profile) {
			profiles = append(profiles, d.Profile)
		}
	}
	require.Equal(t, []string{"1g.10gb", "1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"}, profiles)
	require.Equal(t, gpu.TypeTimeSlice, want[len(want)-1].Type)

	g.Profiles = slices.Clone(g.Profiles)
	slices.Reverse(g.Profiles)
	require.Equal(t, want, pool.Desired(g, pooltest.Policy(onDemand, true, 2), nil))
}

func TestDesiredForeign(t *testing.T) {
	g := boardGPU(t, "H100-SXM5-80GB")
	at := func(profile string, start int) gpu.Instance {
		for _, p := range gpu.AllPlaced(g.Profiles) {
			if p.Profile.Name == profile && p.Placement.Start == start {
				return pooltest.Instance(g, p, start+1)
			}
		}
		t.Fatalf("no %s at %d", profile, start)
		return gpu.Instance{}
	}
	unusable := at("2g.20gb", 4)
	unusable.Compute = nil
	foreign := []gpu.Instance{at("1g.10gb", 2), unusable}

	o := pool.Desired(g, pooltest.Policy(onDemand, true, 4), foreign)
	require.Zero(t, offered(o, gpu.TypeGPU)+offered(o, gpu.TypeTimeSlice))
	require.Equal(t, pool.Device{
		Device: gpu.Device{Type: gpu.TypeMIG, GPU: g.UUID, Profile: "1g.10gb", Placement: gpu.Placement{Start: 2, Size: 1}},
		UUID:   foreign[0].Compute[0].UUID,
	}, o[0], "what exists comes first")
	for _, d := range o[1:] {
		_, free := gpu.Fits(d.Placement, foreign)
		require.True(t, free, d)
		require.Empty(t, d.UUID, d)
	}
	// 1g at 0, 1, 3, 6 with and without media, double memory at 0 and 6, 2g at 0.
	require.Len(t, o, 1+4+4+2+1)

	o = pool.Desired(g, pooltest.Policy(onDemand, true, 4), []gpu.Instance{at("1g.10gb+me", 0)})
	media := 0
	for _, d := range o {
		if d.Profile == "1g.10gb+me" {
			media++
		}
	}
	require.Equal(t, 1, media, "the media extensions are taken: no second instance can have them")

	o = pool.Desired(g, pooltest.Policy(off, true, 4), foreign)
	require.Len(t, o, 1, "off: nothing is made beside them")

	strange := foreign[0]
	strange.Profile = "1g.5gb+gfx"
	o = pool.Desired(g, pooltest.Policy(off, true, 4), []gpu.Instance{strange})
	require.Empty(t, o, "a profile that the board does not list can't be described")
}

func TestSettle(t *testing.T) {
	g := boardGPU(t, "H100-SXM5-80GB")
	offer := func(mode configv1alpha1.MIGMode, replicas int) pool.Offer {
		return pool.Desired(g, pooltest.Policy(mode, false, replicas), nil)
	}
	whole := gpu.Device{Type: gpu.TypeGPU, GPU: g.UUID}
	replica := func(n int) gpu.Device { return gpu.Device{Type: gpu.TypeTimeSlice, GPU: g.UUID, Replica: n} }
	mig := gpu.Device{Type: gpu.TypeMIG, GPU: g.UUID, Profile: "1g.10gb", Placement: gpu.Placement{Start: 6, Size: 1}}
	at := offer(onDemand, 0)[1].Device
	require.Equal(t, mig, at)
	foreign := []gpu.Instance{pooltest.Instance(g, gpu.Placed{Profile: g.Profiles[5], Placement: g.Profiles[5].Placements[0]}, 3)}
	withForeign := pool.Desired(g, pooltest.Policy(onDemand, false, 4), foreign)

	for _, c := range []struct {
		name                 string
		previous, desired    pool.Offer
		inUse                []gpu.Device
		whole, mig, replicas int
		pending              bool
	}{
		{"first publication", nil, offer(onDemand, 4), nil, 1, 18, 4, false},
		{"first publication, in use from before", nil, offer(off, 4), []gpu.Device{mig}, 1, 1, 4, true},
		{"first publication, shared from before", nil, offer(onDemand, 4), []gpu.Device{replica(2)}, 1, 18, 4, false},
		{"no change", offer(onDemand, 4), offer(onDemand, 4), []gpu.Device{mig}, 1, 18, 4, false},
		{"idle: mode off", offer(onDemand, 4), offer(off, 4), nil, 1, 0, 4, false},
		{"mode off while an instance is in use", offer(onDemand, 4), offer(off, 4), []gpu.Device{mig}, 1, 1, 4, true},
		{"kept on while the whole is in use", offer(onDemand, 4), offer(keepOn, 4), []gpu.Device{whole}, 1, 18, 0, true},
		{"more replicas while an instance is in use", offer(onDemand, 4), offer(onDemand, 8), []gpu.Device{mig}, 1, 18, 8, false},
		{"more replicas while one is in use", offer(onDemand, 4), offer(onDemand, 8), []gpu.Device{replica(1)}, 1, 18, 4, true},
		{"fewer replicas, a high one in use", offer(onDemand, 8), offer(onDemand, 2), []gpu.Device{replica(5), replica(5), replica(0)}, 1, 18, 3, true},
		{"fewer replicas, a low one in use", offer(onDemand, 8), offer(onDemand, 2), []gpu.Device{replica(1)}, 1, 18, 2, false},
		{"no replicas any more", offer(onDemand, 4), offer(onDemand, 0), []gpu.Device{replica(3)}, 1, 18, 1, true},
		// Free of the 4g: 1g 6,4,5; 1g double 6,4; 2g 4; 3g 4.
		{"foreign instance beside one in use", offer(onDemand, 4), withForeign, []gpu.Device{mig}, 0, 8, 0, false},
		{"foreign instance in use goes", withForeign, offer(onDemand, 4), []gpu.Device{withForeign[len(withForeign)-1].Device}, 1, 18, 4, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, pending := pool.Settle(c.previous, c.desired, c.inUse)
			require.Equal(t, c.whole, offered(o, gpu.TypeGPU), "whole")
			require.Equal(t, c.mig, offered(o, gpu.TypeMIG), "placements")
			require.Equal(t, c.replicas, offered(o, gpu.TypeTimeSlice), "replicas")
			require.Equal(t, c.pending, pending, "pending")
		})
	}
}

// A foreign instance that its maker destroyed under a claim keeps the UUID under which it was published.
func TestSettleKeepsUUID(t *testing.T) {
	g := boardGPU(t, "H100-SXM5-80GB")
	g.Profiles = slices.Clone(g.Profiles)
	foreign := []gpu.Instance{pooltest.Instance(g, gpu.Placed{Profile: g.Profiles[0], Placement: g.Profiles[0].Placements[3]}, 3)}
	before := pool.Desired(g, pooltest.Policy(off, false, 0), foreign)
	o, pending := pool.Settle(before, pool.Desired(g, pooltest.Policy(off, false, 0), nil), []gpu.Device{before[0].Device})
	require.True(t, pending)
	require.Equal(t, before[0], o[1])
}

// Whatever is configured, in whatever order, and whoever comes and goes: a device
// in use stays published, no replica's share shrinks under its user, and once
// nothing is in use the desired offer is reached.
func TestSettleProperties(t *testing.T) {
	g := boardGPU(t, "H200-SXM-141GB")
	random := rand.New(rand.NewPCG(1, 2))
	var offer pool.Offer
	var inUse []gpu.Device
	for step := range 2_000 {
		policy := pooltest.Policy([]configv1alpha1.MIGMode{onDemand, keepOn, off}[random.IntN(3)], random.IntN(2) == 0, random.IntN(gpu.MaxReplicas+1))
		desired := pool.Desired(g, policy, nil)
		before := offer
		settled, pending := pool.Settle(offer, desired, inUse)
		for _, d := range inUse {
			require.True(t, slices.ContainsFunc(settled, func(o pool.Device) bool { return o.Device == d }), "step %d: %s is in use and gone", step, d)
		}
		if len(inUse) > 0 && inUse[0].Type == gpu.TypeTimeSlice {
			require.LessOrEqual(t, offered(settled, gpu.TypeTimeSlice), offered(before, gpu.TypeTimeSlice), "step %d", step)
		}
		require.Equal(t, pending, fmt.Sprint(sorted(settled)) != fmt.Sprint(sorted(desired)), "step %d", step)
		if len(inUse) == 0 {
			require.Equal(t, desired, settled, "step %d", step)
		}
		raw, err := json.Marshal(settled)
		require.NoError(t, err)
		offer = nil
		require.NoError(t, json.Unmarshal(raw, &offer))
		require.Equal(t, settled, offer, "it can be stored")

		// Somebody goes, or takes something that excludes nobody who is there.
		if len(inUse) > 0 && random.IntN(3) == 0 {
			inUse = slices.Delete(inUse, 0, 1)
		} else if len(offer) > 0 {
			d := offer[random.IntN(len(offer))].Device
			if !slices.ContainsFunc(inUse, d.Overlaps) {
				inUse = append(inUse, d)
			}
		}
	}
}

func sorted(o pool.Offer) []string {
	names := make([]string, len(o))
	for i, d := range o {
		names[i] = d.String()
	}
	slices.Sort(names)
	return names
}
