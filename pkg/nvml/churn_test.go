package nvml

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

// churn is a board that somebody else changes just before one call of ours.
type churn struct {
	t *testing.T
	// sim is ours, other the node as another process has it.
	sim, other *nvmlsim.Node
	uuid       string
	strike     func()
	calls, at  int
	// from is the operation that the counting begins with, any if it is empty.
	from string
	// now is what the board's counters go by.
	now time.Time
}

func newChurn(t *testing.T) *churn {
	t.Helper()
	c := &churn{t: t, now: time.Date(2026, 1, 5, 9, 0, 0, 0, time.UTC)}
	clock := nvmlsim.WithClock(func() time.Time { return c.now })
	spec, err := nvmlsim.Parse("1xH100-SXM5-80GB,mig=on,state=" + t.TempDir())
	require.NoError(t, err)
	c.sim, err = nvmlsim.Open(spec, clock, nvmlsim.WithTrace(func(op string, _ int) {
		if c.calls == 0 && c.from != "" && c.from != op {
			return
		}
		if c.strike != nil && c.calls == c.at {
			c.strike()
		}
		c.calls++
	}))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.sim.Close()) })
	c.other, err = nvmlsim.OpenExisting(spec.StateDir, clock)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.other.Close()) })
	c.uuid = uuids(t, c.sim)[0]
	return c
}

// begin brings the board into the state that every case starts from, opens an
// adapter that knows nothing yet, and strikes at the call with that number.
func (c *churn) begin(strike func(), at int) *Adapter {
	c.t.Helper()
	c.strike = nil
	for _, i := range instances(c.t, c.other) {
		require.NoError(c.t, c.other.DestroyInstance(c.uuid, i.ID))
	}
	a := open(c.t, c.sim.Interface())
	if boards, err := c.other.Boards(); err != nil || !boards[0].MIG {
		require.NoError(c.t, err)
		require.NoError(c.t, a.SetMIGMode(c.t.Context(), c.uuid, true))
		a = open(c.t, c.sim.Interface())
	}
	c.make("1g.10gb", 4, 1)
	c.make("3g.40gb", 0, 4)
	c.make("1g.10gb", 6, 1)
	c.calls, c.at, c.strike = 0, at, strike
	return a
}

func (c *churn) make(profile string, start, size int) {
	c.t.Helper()
	_, err := c.other.CreateInstance(c.uuid, profile, &gpu.Placement{Start: start, Size: size}, true)
	require.NoError(c.t, err)
}

func (c *churn) destroy(profile string, start, size int) {
	c.t.Helper()
	for _, i := range instances(c.t, c.other) {
		if i.Profile == profile && i.Placement == at(start, size) {
			require.NoError(c.t, c.other.DestroyInstance(c.uuid, i.ID))
			return
		}
	}
	c.t.Fatalf("no %s at %d", profile, start)
}

// bare destroys the compute instance of a GPU instance and leaves the latter.
func (c *churn) bare(profile string, start, size int) {
	c.t.Helper()
	c.destroy(profile, start, size)
	_, err := c.other.CreateInstance(c.uuid, profile, &gpu.Placement{Start: start, Size: size}, false)
	require.NoError(c.t, err)
}

// While a board is read, another process changes it: before each single call,
// once. What is read are instances that were there before or are there after,
// among them all that were left alone; never an error or a board without profiles.
func TestReadWhileOthersChange(t *testing.T) {
	c := newChurn(t)
	const list = "GetGpuInstances"
	for name, test := range map[string]struct {
		from   string
		strike func()
	}{
		"two vanish":                 {list, func() { c.destroy("1g.10gb", 4, 1); c.destroy("3g.40gb", 0, 4) }},
		"a compute instance goes":    {list, func() { c.bare("1g.10gb", 4, 1) }},
		"an id moves to a profile":   {list, func() { c.destroy("3g.40gb", 0, 4); c.make("4g.40gb", 0, 4) }},
		"an id moves to a placement": {list, func() { c.destroy("1g.10gb", 4, 1); c.make("1g.10gb", 5, 1) }},
		"a reset":                    {"", func() { require.NoError(t, c.other.Reset(c.uuid)) }},
	} {
		t.Run(name, func(t *testing.T) {
			c.from = test.from
			strike := test.strike
			for n := 0; ; n++ {
				a := c.begin(strike, n)
				before := instances(t, c.other)
				g, err := a.GPU(t.Context(), c.uuid)
				if c.calls <= n {
					require.Greater(t, n, 20, "the sweep has hardly begun")
					break
				}
				require.NoError(t, err, "call %d", n)
				require.Len(t, g.Profiles, 7, "call %d", n)
				after := instances(t, c.other)
				for _, i := range g.Instances {
					require.True(t, among(before, i) || among(after, i), "call %d: %s was never there", n, &i)
				}
				for _, i := range before {
					require.True(t, !among(after, i) || among(g.Instances, i), "call %d: %s is missing", n, &i)
				}
			}
		})
	}
}

func among(all []gpu.Instance, i gpu.Instance) bool { return slices.ContainsFunc(all, i.Same) }

func TestListProcessesWhileOthersChange(t *testing.T) {
	c := newChurn(t)
	for name, strike := range map[string]func(){
		"one vanishes": func() { c.destroy("3g.40gb", 0, 4) },
		"a reset":      func() { require.NoError(t, c.other.Reset(c.uuid)) },
	} {
		t.Run(name, func(t *testing.T) {
			for n := 0; ; n++ {
				a := c.begin(strike, n)
				_, err := a.Processes(t.Context(), c.uuid)
				require.NoError(t, err, "call %d", n)
				if c.calls <= n {
					require.Greater(t, n, 3)
					break
				}
			}
		})
	}
}

// A board that somebody changes all the time is given up, and not read for ever.
func TestReadIsBounded(t *testing.T) {
	c := newChurn(t)
	a := c.begin(nil, 0)
	_, err := a.GPU(t.Context(), c.uuid)
	require.NoError(t, err)
	c.strike = func() {
		c.at++
		require.NoError(t, c.other.Reset(c.uuid))
	}
	c.at = c.calls + 1 // The handle is good at first.
	_, err = a.GPU(t.Context(), c.uuid)
	require.Error(t, err)

	a = c.begin(nil, 0)
	made := false
	c.strike = func() {
		c.at++
		if made {
			c.destroy("1g.10gb", 5, 1)
		} else {
			c.make("1g.10gb", 5, 1)
		}
		made = !made
	}
	g, err := a.GPU(t.Context(), c.uuid)
	require.NoError(t, err, "what does not stay is left out")
	require.GreaterOrEqual(t, len(g.Instances), 3)
}

// Another process destroys what we are about to destroy: it is not there, whatever call says so.
func TestDestroyWhileOthersDestroy(t *testing.T) {
	c := newChurn(t)
	strike := func() { c.destroy("1g.10gb", 4, 1) }
	for name, act := range map[string]func(*Adapter, gpu.Instance) error{
		"compute instance": func(a *Adapter, i gpu.Instance) error { _, err := a.DestroyComputeInstance(t.Context(), i); return err },
		"GPU instance": func(a *Adapter, i gpu.Instance) error {
			left, err := a.DestroyComputeInstance(t.Context(), i)
			if err == nil {
				err = a.DestroyGPUInstance(t.Context(), left)
			}
			return err
		},
		"creation in it": func(a *Adapter, i gpu.Instance) error {
			left, err := a.DestroyComputeInstance(t.Context(), i)
			if err == nil {
				_, err = a.CreateComputeInstance(t.Context(), left)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			for n := 0; ; n++ {
				a := c.begin(nil, n)
				g, err := a.GPU(t.Context(), c.uuid)
				require.NoError(t, err)
				i, ok := g.InstanceAt("1g.10gb", at(4, 1))
				require.True(t, ok)
				struck := false
				c.calls, c.strike = 0, func() {
					if _, there := (&gpu.GPU{Instances: instances(t, c.other)}).InstanceAt("1g.10gb", at(4, 1)); there {
						struck = true
						strike()
					}
				}
				err = act(a, i)
				if c.calls <= n {
					require.Greater(t, n, 5)
					break
				}
				if struck && err != nil {
					require.ErrorIs(t, err, gpu.ErrNotFound, "call %d", n)
				} else if !struck {
					require.NoError(t, err, "call %d", n)
				}
				require.False(t, errors.Is(err, nvml.ERROR_INVALID_ARGUMENT) && !errors.Is(err, gpu.ErrNotFound))
			}
		})
	}
}
