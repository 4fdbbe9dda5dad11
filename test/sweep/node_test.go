//go:build sweep

package sweep

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
	"github.com/kerf-project/kerf/pkg/pool"
)

const (
	boards   = "3xH100-SXM5-80GB"
	nodeName = "node"
	// foreignBoard is the board that no claim of a shape is on.
	foreignBoard = 2
)

// device is a device of the node: on the board with that index.
type device struct {
	board   int
	kind    gpu.DeviceType
	profile string
	at      gpu.Placement
}

func mig(board int, profile string, start, size int) device {
	return device{board: board, kind: gpu.TypeMIG, profile: profile, at: gpu.Placement{Start: start, Size: size}}
}

// claim is a claim that is allocated devices.
type claim struct {
	uid     string
	devices []device
}

// node is what outlives a process: the boards, the journal, the CDI specs, the API server and the kubelet.
type node struct {
	t   *testing.T
	dir string
	sim *nvmlsim.Node
	api *apiServer
	// kubelet is what it says of its pods.
	kubelet *pods
	uuids   []string
	// faults is true where processes take faults from faults.yaml.
	faults bool
	// foreign are the instances that are nobody's to destroy.
	foreign []gpu.Instance
}

// newNode makes a node whose boards with these indices are in MIG mode, and that keeps as many idle instances a board.
func newNode(t *testing.T, inMIG []int, idle int) *node {
	t.Helper()
	parent := "/dev/shm" // A tmpfs, as the journal's directory is on a node; and a socket's path has to be short.
	if _, err := os.Stat(parent); err != nil {
		parent = ""
	}
	dir, err := os.MkdirTemp(parent, "kerf-sweep-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	n := &node{t: t, dir: dir, api: newAPIServer(t), kubelet: newPods(t, filepath.Join(dir, "pods"))}
	t.Cleanup(n.logs)
	config, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"clusters": []any{map[string]any{"name": "c", "cluster": map[string]any{"server": n.api.URL}}},
		"contexts": []any{map[string]any{"name": "c", "context": map[string]any{"cluster": "c"}}},
	})
	require.NoError(t, err)
	n.write("kubeconfig", string(config))
	n.write("config.yaml", fmt.Sprintf("apiVersion: config.kerf.dev/v1alpha1\nkind: NodeConfiguration\npolicies: [{timeSlicing: {replicas: 2, interval: %s}, idleInstances: {maxPerGPU: %d}}]\n", configuredSlice, idle))

	spec, err := nvmlsim.Parse(boards + ",state=" + n.path("sim"))
	require.NoError(t, err)
	n.sim, err = nvmlsim.Open(spec, nvmlsim.WithSMI(smi))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.sim.Close()) })
	all, err := n.sim.Boards()
	require.NoError(t, err)
	for _, b := range all {
		n.uuids = append(n.uuids, b.UUID)
	}
	for _, board := range append(inMIG, foreignBoard) {
		require.NoError(t, n.sim.SetMIGMode(n.uuids[board], true))
	}
	n.intrude(mig(foreignBoard, "2g.20gb", 2, 2))
	return n
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

func (n *node) write(name, text string) {
	n.t.Helper()
	// Renamed, because a process may be reading it.
	require.NoError(n.t, os.WriteFile(n.path(name+".new"), []byte(text), 0o600))
	require.NoError(n.t, os.Rename(n.path(name+".new"), n.path(name)))
}

// allocate has the scheduler give a claim its devices.
func (n *node) allocate(c *claim) { n.api.allocate(c, nodeName, n.name) }

// model is the device as the engine knows it.
func (n *node) model(d device) gpu.Device {
	return gpu.Device{Type: d.kind, GPU: n.uuids[d.board], Profile: d.profile, Placement: d.at}
}

// name is its published name.
func (n *node) name(d device) string { return gpu.NewNames(n.uuids).Device(n.model(d)) }

// intrude makes an instance as an administrator does.
func (n *node) intrude(d device) gpu.Instance {
	n.t.Helper()
	made, err := n.sim.CreateInstance(n.uuids[d.board], d.profile, &d.at, true)
	require.NoError(n.t, err)
	n.foreign = append(n.foreign, made)
	return made
}

// find is the instance at a place.
func (n *node) find(d device) (gpu.Instance, bool) {
	n.t.Helper()
	all, err := n.sim.Boards()
	require.NoError(n.t, err)
	board := gpu.GPU{Instances: all[d.board].Instances}
	return board.InstanceAt(d.profile, d.at)
}

// swap has an administrator destroy the instance at a place and make another
// there, which has another id because a third one has taken that.
func (n *node) swap(d device, filler gpu.Placement) error {
	ours, ok := n.find(d)
	if !ok {
		return errors.New("there is no instance to destroy")
	}
	uuid := n.uuids[d.board]
	if err := n.sim.DestroyInstance(uuid, ours.ID); err != nil {
		return err
	}
	third, err := n.sim.CreateInstance(uuid, d.profile, &filler, false)
	if err != nil {
		return err
	}
	another := n.intrude(d)
	if another.ID == ours.ID {
		return fmt.Errorf("%s cannot be told from the one that was there", &another)
	}
	return n.sim.DestroyInstance(uuid, third.ID)
}

// journal opens the records.
func (n *node) journal() *journal.Journal {
	n.t.Helper()
	j, err := journal.Open(n.path("run"))
	require.NoError(n.t, err)
	return j
}

// specPath is where the CDI spec of a claim lies.
func (n *node) specPath(uid string) string {
	return filepath.Join(n.path("cdi"), cdi.GenerateTransientSpecName(cdispec.Vendor, cdispec.Class, uid)+".json")
}

// observe looks at all that there is.
func (n *node) observe(prepared ...*claim) observed {
	n.t.Helper()
	o := observed{known: n.api.known(), foreign: n.foreign, specs: map[string]string{}, prepared: map[string][]gpu.Device{}}
	var err error
	o.boards, err = n.sim.Boards()
	require.NoError(n.t, err)
	j := n.journal()
	o.claims, err = j.Claims()
	require.NoError(n.t, err)
	o.instances, err = j.Instances()
	require.NoError(n.t, err)
	files, err := os.ReadDir(n.path("cdi"))
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(n.t, err)
	}
	for _, f := range files {
		if name, ok := strings.CutPrefix(f.Name(), pool.DefaultDriver+"_metadata_"); ok {
			uid, _, _ := strings.Cut(name, "_")
			o.metadata = append(o.metadata, uid)
			continue
		}
		text, err := os.ReadFile(filepath.Join(n.path("cdi"), f.Name()))
		require.NoError(n.t, err)
		o.specs[strings.TrimPrefix(f.Name(), strings.TrimSuffix(filepath.Base(n.specPath("")), ".json"))] = string(text)
	}
	for _, c := range prepared {
		for _, d := range c.devices {
			o.prepared[c.uid] = append(o.prepared[c.uid], n.model(d))
		}
	}
	return o
}

// eventually waits for something that a process does by itself.
func (n *node) eventually(what string, happened func() bool) {
	n.t.Helper()
	require.Eventually(n.t, happened, patience, 20*time.Millisecond, what)
}
