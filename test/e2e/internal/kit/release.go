package kit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
)

const (
	// NodeName is the name of the cluster's node.
	NodeName = "kerf-node"
	// Driver is the name under which kerf is installed.
	Driver = "gpu.nvidia.com"
	// SystemNamespace is where the chart is installed.
	SystemNamespace = "kerf-system"
	// ServiceAccount is the plugin's, in that namespace.
	ServiceAccount = "kerf-plugin"
	// Controller is the name of the controller's Deployment, Service, service account and lease, in that namespace.
	Controller = "kerf-controller"

	release = "kerf"
	chart   = "deployments/helm/kerf"
)

// Shape is what the node is made of and how it is configured.
type Shape struct {
	// Name tells the simulated hardware of one shape from that of others, which is kept while the cluster is up.
	Name string
	// Boards is the simulator's specification, such as "8xH100-SXM5-80GB".
	Boards string
	// Replicas is how many claims may share a board in time, on all boards alike.
	Replicas int
	// Idle is how many instances a board keeps for the next claim. With 0 an instance exists exactly while its claim does.
	Idle int
	// Lenient is an API server that takes any parameters of a claim, so that the plugin has to find what is wrong with them.
	Lenient bool
	// Faults, a file of the simulator's, is what goes wrong with the boards.
	Faults string
	// Controller is what the chart has for the controller, in addition to create. Nil: there is none.
	Controller map[string]any
}

func (s Shape) stateDir() string { return "/run/kerf-sim-" + s.Name }

func (s Shape) faultsFile() string { return s.stateDir() + "/faults.yaml" }

func (s Shape) values() map[string]any {
	spec := s.Boards + ",seed=" + s.Name
	if s.Faults != "" {
		spec += ",faults=" + s.faultsFile()
	}
	values := map[string]any{
		"image":            map[string]any{"tag": "dev", "pullPolicy": "Never"},
		"plugin":           map[string]any{"nodeSelectorTerms": []any{}},
		"parametersPolicy": map[string]any{"create": !s.Lenient},
		"simulator":        map[string]any{"spec": spec, "stateDir": s.stateDir()},
		"nodeConfiguration": map[string]any{"policies": []any{map[string]any{
			"timeSlicing":   map[string]any{"replicas": s.Replicas},
			"idleInstances": map[string]any{"maxPerGPU": s.Idle},
		}}},
	}
	if s.Controller != nil {
		controller := maps.Clone(s.Controller)
		controller["create"] = true
		values["controller"] = controller
	}
	return values
}

// install makes the release what the shape says, and waits until the API has the node's pool.
func (e *Env) install() {
	e.t.Helper()
	values, err := json.Marshal(e.Shape.values())
	require.NoError(e.t, err)
	if e.Shape.Faults != "" {
		require.NoError(e.t, os.MkdirAll(e.Shape.stateDir(), 0o755))
		require.NoError(e.t, os.WriteFile(e.Shape.faultsFile(), []byte(e.Shape.Faults), 0o600))
	}
	e.command(values, "helm", "upgrade", "--install", release, chart, "--namespace", SystemNamespace, "--create-namespace",
		"--values", "-", "--wait", "--timeout", patience.String())
	e.Eventually("the pool of the node", func(ctx context.Context) error {
		boards, err := e.Boards()
		if err != nil {
			return err
		}
		slices, err := e.pool(ctx)
		if err != nil {
			return err
		}
		return publishes(slices, boards)
	})
}

// Replace updates the release so that the node's plugin is replaced, and returns when that is done.
func (e *Env) Replace() error {
	values := e.Shape.values()
	values["plugin"].(map[string]any)["podAnnotations"] = map[string]any{"e2e/replaced": e.Namespace}
	text, err := json.Marshal(values)
	if err != nil {
		return err
	}
	helm := exec.CommandContext(context.Background(), "helm", "upgrade", release, chart, "--namespace", SystemNamespace,
		"--values", "-", "--wait", "--timeout", patience.String())
	helm.Stdin = bytes.NewReader(text)
	if out, err := helm.CombinedOutput(); err != nil {
		return fmt.Errorf("helm upgrade: %w: %s", err, out)
	}
	return nil
}

// Uninstall removes the release. A later test installs it again.
func (e *Env) Uninstall() {
	e.t.Helper()
	e.command(nil, "helm", "uninstall", release, "--namespace", SystemNamespace, "--wait", "--timeout", patience.String())
}

// command runs a program of the node, which has to succeed, with that standard input.
func (e *Env) command(input []byte, name string, args ...string) string {
	e.t.Helper()
	cmd := exec.CommandContext(context.Background(), name, args...)
	cmd.Stdin = bytes.NewReader(input)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	require.NoError(e.t, err, "%s %s: %s%s", name, strings.Join(args, " "), out, &complaint)
	return string(out)
}

// PluginPod is the pod of kerf on the node.
func (e *Env) PluginPod(ctx context.Context) (*corev1.Pod, error) {
	pods, err := e.Client.CoreV1().Pods(SystemNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=plugin"})
	if err != nil {
		return nil, err
	}
	pods.Items = slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
	if len(pods.Items) != 1 {
		return nil, fmt.Errorf("%d pods of the plugin, want 1", len(pods.Items))
	}
	return &pods.Items[0], nil
}

// Slices are all slices of kerf, those of an older generation among them.
func (e *Env) Slices(ctx context.Context) ([]resourceapi.ResourceSlice, error) {
	list, err := e.Client.ResourceV1().ResourceSlices().List(ctx, metav1.ListOptions{FieldSelector: resourceapi.ResourceSliceSelectorDriver + "=" + Driver})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// pool returns the devices of the node's pool, which has to be complete.
func (e *Env) pool(ctx context.Context) ([]resourceapi.Device, error) {
	all, err := e.Slices(ctx)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no slices are published")
	}
	var devices []resourceapi.Device
	generation := all[0].Spec.Pool.Generation
	for _, s := range all {
		if s.Spec.Pool.Generation != generation || s.Spec.Pool.ResourceSliceCount != int64(len(all)) {
			return nil, fmt.Errorf("%d slices are published, and slice %s is of generation %d, one of %d", len(all), s.Name, s.Spec.Pool.Generation, s.Spec.Pool.ResourceSliceCount)
		}
		devices = append(devices, s.Spec.Devices...)
	}
	return devices, nil
}

// publishes says whether the pool is that of exactly these boards.
func publishes(devices []resourceapi.Device, boards []Board) error {
	want, got := sets.New[string](), sets.New[string]()
	for _, b := range boards {
		want.Insert(b.UUID)
	}
	for _, d := range devices {
		got.Insert(attribute(d, "parentUUID"))
	}
	return compare("the pool", want, got)
}

// compare returns an error that lists what is missing and what is too much.
func compare(what string, want, got sets.Set[string]) error {
	lacks, surplus := sets.List(want.Difference(got)), sets.List(got.Difference(want))
	if len(lacks) == 0 && len(surplus) == 0 {
		return nil
	}
	return fmt.Errorf("%s\n  lacks\n    %s\n  has beyond that\n    %s", what, strings.Join(lacks, "\n    "), strings.Join(surplus, "\n    "))
}
