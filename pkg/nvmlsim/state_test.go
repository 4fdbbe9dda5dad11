package nvmlsim

import (
	"fmt"
	"os"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"
)

// What can be refused must be refused before the rules work on it.
func TestDecodeRefuses(t *testing.T) {
	good := `{"version":1,"boot":0,"majors":{"nvidia":1,"nvidiaCaps":2,"nvidiaUVM":3},"gpus":[{"model":"%s","uuid":"GPU-12345678-1","minor":0%s}]%s}`
	h100 := func(board, node string) string { return fmt.Sprintf(good, "H100-SXM5-80GB", board, node) }
	_, err := decode([]byte(h100(`,"mig":true,"instances":[{"id":7,"profile":19,"placement":{"start":3,"size":1},"compute":[{"id":0,"profile":0,"start":0,"size":1,"index":0}]}]`, "")))
	require.NoError(t, err)
	for name, text := range map[string]string{
		"no JSON":              `{`,
		"unknown field":        h100(`,"colour":1`, ""),
		"version":              `{"version":2}`,
		"no boards":            `{"version":1}`,
		"unknown model":        fmt.Sprintf(good, "B300", "", ""),
		"MIG without":          fmt.Sprintf(good, "L40S", `,"mig":true`, ""),
		"instances, MIG off":   h100(`,"instances":[{"id":7,"profile":19,"placement":{"start":3,"size":1}}]`, ""),
		"impossible placement": h100(`,"mig":true,"instances":[{"id":7,"profile":19,"placement":{"start":7,"size":1}}]`, ""),
		"impossible id":        h100(`,"mig":true,"instances":[{"id":1,"profile":19,"placement":{"start":3,"size":1}}]`, ""),
		"unknown profile":      h100(`,"mig":true,"instances":[{"id":7,"profile":1,"placement":{"start":3,"size":1}}]`, ""),
		"overlap":              h100(`,"mig":true,"instances":[{"id":7,"profile":19,"placement":{"start":3,"size":1}},{"id":8,"profile":19,"placement":{"start":3,"size":1}}]`, ""),
		"two sets of media":    h100(`,"mig":true,"instances":[{"id":7,"profile":20,"placement":{"start":3,"size":1}},{"id":8,"profile":20,"placement":{"start":5,"size":1}}]`, ""),
		"calls of no fault":    h100("", `,"faultCalls":{"":1}`),
		"no calls":             h100("", `,"faultCalls":{"a":0}`),
		"compute shape":        h100(`,"mig":true,"instances":[{"id":7,"profile":19,"placement":{"start":3,"size":1},"compute":[{"id":0,"profile":1,"start":0,"size":2,"index":0}]}]`, ""),
		"event of nobody":      h100("", `,"nextEvent":1,"events":[{"gpu":1,"xid":79,"gi":0,"ci":0}]`),
		"event unnumbered":     h100("", `,"events":[{"gpu":0,"xid":79,"gi":0,"ci":0}]`),
	} {
		_, err := decode([]byte(text))
		require.Error(t, err, name)
	}
}

func FuzzDecode(f *testing.F) {
	node := newNode(f, "1xH100-SXM5-80GB,1xA100-SXM4-40GB,1xL40S,mig=on")
	_, err := node.CreateInstance("0", "3g.40gb", nil, true)
	require.NoError(f, err)
	_, err = node.CreateInstance("1", "1g.5gb+me", nil, false)
	require.NoError(f, err)
	require.NoError(f, node.AddClient("2", Client{PID: 1, Process: true}))
	require.NoError(f, node.Xid("0", 79, nil, nil))
	seed, err := os.ReadFile(node.kernel.path())
	require.NoError(f, err)
	f.Add(seed)
	f.Add([]byte(`{"version":1,"gpus":[{"model":"A10G","uuid":"GPU-12345678"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := decode(data)
		if err != nil {
			return
		}
		text, err := s.encode()
		require.NoError(t, err)
		same, err := decode(text)
		require.NoError(t, err, "what was accepted once is accepted again")
		// The rules and the tree must work with whatever is accepted, and what they make is accepted too.
		for i := range same.GPUs {
			g := &same.GPUs[i]
			for _, p := range g.table.Profiles {
				if id, ret := g.createInstance(p.ID, nil); ret == nvml.SUCCESS {
					_, _ = g.createCompute(id, computeProfiles(g.table, p)[0].id, nil)
				}
			}
		}
		_, err = (&tree{root: "/r", driver: "/d"}).changing(same)
		require.NoError(t, err)
		text, err = same.encode()
		require.NoError(t, err)
		_, err = decode(text)
		require.NoError(t, err)
		same.reboot()
	})
}

func TestOtherHardware(t *testing.T) {
	n := newNode(t, "2xL40S,seed=a")
	for spec, want := range map[string]string{"1xL40S,seed=a": "it holds 2xL40S", "2xL40S,seed=b": `with seed "a"`} {
		s, err := Parse(spec + ",state=" + n.kernel.dir)
		require.NoError(t, err)
		_, err = Open(s)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "state=")
	}
	_, err := OpenExisting(t.TempDir())
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = Open(Spec{})
	require.Error(t, err)
	require.NoError(t, os.WriteFile(n.kernel.path()+".new", []byte("{"), 0o644))
	require.NoError(t, os.Rename(n.kernel.path()+".new", n.kernel.path()))
	_, err = n.Boards()
	require.ErrorContains(t, err, n.kernel.path())
	lib := n.Interface()
	require.Equal(t, nvml.ERROR_UNKNOWN, lib.Init(), "a broken simulation is no answer of a driver")
}

func TestUUIDs(t *testing.T) {
	short := map[string]bool{}
	for _, seed := range []string{"", "node-a", "node-b"} {
		n := newNode(t, "16xA10G,seed="+seed+"x")
		same := newNode(t, "16xA10G,seed="+seed+"x")
		for i, g := range stateOf(t, n).GPUs {
			require.Regexp(t, `^GPU-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`, g.UUID)
			require.Equal(t, g.UUID, stateOf(t, same).GPUs[i].UUID)
			short[g.UUID[:12]] = true
		}
	}
	require.Len(t, short, 48)
}
