package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	boards        = "8xH100-SXM5-80GB"
	replicas      = 4
	driver        = "gpu.nvidia.com"
	image         = "kerf:dev"
	chart         = "deployments/helm/kerf"
	examples      = "deployments/examples"
	kerfNamespace = "kerf-system"
	workloads     = "default"

	// patience is for the plugin, and again for the examples. Either takes seconds.
	patience = 3 * time.Minute
	// poll is no shorter, because a run of kubectl takes the pods' start some of its time.
	poll = time.Second
)

// demo is one run.
type demo struct {
	cluster cluster
	out     io.Writer
	began   time.Time
}

func newDemo(c cluster, out io.Writer) *demo { return &demo{cluster: c, out: out, began: time.Now()} }

// say prints a line of progress with the seconds since the start.
func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "[%5.1fs] %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) run(ctx context.Context) error {
	d.say("starting the cluster %q (the very first start builds Kubernetes: about half an hour of one core)", d.cluster.name)
	if err := d.cluster.up(ctx, d.out); err != nil {
		return err
	}
	d.say("installing kerf with SIMULATED GPUs: %s", boards)
	if err := d.install(ctx); err != nil {
		return err
	}
	devices, err := d.pool(ctx)
	if err != nil {
		return err
	}
	d.say("the pool is complete: %d devices; applying %s", len(devices), examples)
	pods, err := d.runExamples(ctx)
	if err != nil {
		return err
	}
	d.say("all %d pods run; asking nvidia-smi in every container", len(pods))
	rows, err := d.look(ctx, pods, devices)
	if err != nil {
		return err
	}
	d.say("done")
	fmt.Fprintln(d.out)
	if err := printTable(d.out, rows); err != nil {
		return err
	}
	fmt.Fprint(d.out, d.next())
	return nil
}

// install makes the image and installs the chart. A plugin of another image, or
// with other values, is replaced.
func (d *demo) install(ctx context.Context) error {
	digest, err := d.cluster.image(ctx, image, "bin/kerf:/usr/bin/kerf",
		"bin/kerf-sim-nvidia-smi:/usr/bin/kerf-sim-nvidia-smi", "bin/nvidia-cdi-hook:/usr/bin/nvidia-cdi-hook")
	if err != nil {
		return err
	}
	type object = map[string]any
	name, tag, _ := strings.Cut(image, ":")
	values, err := json.Marshal(object{
		"image":             object{"repository": name, "tag": tag, "pullPolicy": corev1.PullNever},
		"simulator":         object{"spec": boards},
		"nodeConfiguration": object{"policies": []object{{"timeSlicing": object{"replicas": replicas}}}},
		"plugin": object{
			// The local node has no label of a GPU.
			"nodeSelectorTerms": []object{},
			// The tag stays the same when the image changes.
			"podAnnotations": object{"image-digest": digest},
		},
	})
	if err != nil {
		return err
	}
	if _, err := d.cluster.tool(ctx, bytes.NewReader(values), "helm", "upgrade", "--install", "kerf", chart,
		"--namespace", kerfNamespace, "--create-namespace", "--values", "-"); err != nil {
		return err
	}
	if _, err = d.cluster.kubectl(ctx, "rollout", "status", "daemonset/kerf-plugin", "--namespace", kerfNamespace,
		"--timeout", patience.String()); err != nil {
		return d.explain(ctx, kerfNamespace, fmt.Errorf("the plugin is not ready: %w", err))
	}
	return nil
}

// pool waits until the API has the node's whole pool and returns its devices by name.
func (d *demo) pool(ctx context.Context) (map[string]resourceapi.Device, error) {
	var devices map[string]resourceapi.Device
	// Not with the context of the poll, which would cut a run of kubectl off and have its error reported.
	err := wait.PollUntilContextTimeout(ctx, poll, patience, true, func(context.Context) (bool, error) {
		slices, err := get[resourceapi.ResourceSliceList](ctx, d.cluster, "resourceslices",
			"--field-selector", resourceapi.ResourceSliceSelectorDriver+"="+driver)
		if err != nil {
			return false, err
		}
		var complete bool
		devices, complete = devicesOf(slices.Items)
		return complete, nil
	})
	if wait.Interrupted(err) && ctx.Err() == nil {
		return nil, d.explain(ctx, kerfNamespace, fmt.Errorf("the pool of the node is not complete in the API %s after the plugin was ready", patience))
	}
	return devices, err
}

// devicesOf returns the devices of the newest generation of a pool, and whether all its slices are there.
func devicesOf(slices []resourceapi.ResourceSlice) (map[string]resourceapi.Device, bool) {
	newest := resourceapi.ResourcePool{}
	for _, s := range slices {
		if s.Spec.Pool.Generation >= newest.Generation {
			newest = s.Spec.Pool
		}
	}
	devices, found := map[string]resourceapi.Device{}, int64(0)
	for _, s := range slices {
		if s.Spec.Pool.Generation != newest.Generation {
			continue
		}
		found++
		for _, device := range s.Spec.Devices {
			devices[device.Name] = device
		}
	}
	return devices, found == newest.ResourceSliceCount && len(devices) > 0
}

// runExamples applies the examples and waits until all their pods are ready.
func (d *demo) runExamples(ctx context.Context) ([]corev1.Pod, error) {
	applied, err := d.cluster.kubectl(ctx, "apply", "--filename", examples, "--namespace", workloads, "--output=json")
	if err != nil {
		return nil, err
	}
	wanted, err := podsOf(applied)
	if err != nil {
		return nil, err
	}
	var pods []corev1.Pod
	before := -1
	err = wait.PollUntilContextTimeout(ctx, poll, patience, true, func(context.Context) (bool, error) {
		found, err := get[corev1.PodList](ctx, d.cluster, "pods", "--namespace", workloads)
		if err != nil {
			return false, err
		}
		pods = wanted.among(found.Items)
		ready := 0
		for _, p := range pods {
			if isReady(p) {
				ready++
			}
		}
		if ready != before {
			d.say("  %d of %d pods are ready", ready, wanted.count)
			before = ready
		}
		return ready == wanted.count && len(pods) == ready, nil
	})
	if wait.Interrupted(err) && ctx.Err() == nil {
		return nil, d.explain(ctx, workloads,
			fmt.Errorf("%d of %d pods of the examples are not ready after %s", wanted.count-before, wanted.count, patience))
	}
	return pods, err
}

// explain adds to an error what happened to the pods of a namespace that are not ready.
func (d *demo) explain(ctx context.Context, namespace string, err error) error {
	pods, podsErr := get[corev1.PodList](ctx, d.cluster, "pods", "--namespace", namespace)
	events, eventsErr := get[corev1.EventList](ctx, d.cluster, "events", "--namespace", namespace)
	if failed := errors.Join(podsErr, eventsErr); failed != nil {
		return fmt.Errorf("%w\nand its events cannot be read: %w", err, failed)
	}
	var text strings.Builder
	for _, p := range pods.Items {
		if isReady(p) {
			continue
		}
		fmt.Fprintf(&text, "\npod %s/%s (%s):", namespace, p.Name, p.Status.Phase)
		for _, e := range events.Items {
			if e.InvolvedObject.Name == p.Name {
				fmt.Fprintf(&text, "\n  %s %s: %s", e.Type, e.Reason, e.Message)
			}
		}
	}
	return fmt.Errorf(`%w%s
look further with: make kubectl NAME=%s ARGS="describe pods --namespace %s", or ARGS="logs daemonset/kerf-plugin --namespace %s"`,
		err, text.String(), d.cluster.name, namespace, kerfNamespace)
}

// look asks every container what it sees and pairs that with what it was given.
func (d *demo) look(ctx context.Context, pods []corev1.Pod, devices map[string]resourceapi.Device) ([]row, error) {
	list, err := get[resourceapi.ResourceClaimList](ctx, d.cluster, "resourceclaims", "--namespace", workloads)
	if err != nil {
		return nil, err
	}
	claims := map[string]resourceapi.ResourceClaim{}
	for _, c := range list.Items {
		claims[c.Name] = c
	}
	var mu sync.Mutex
	views := map[containerID]view{}
	asking, ctx := errgroup.WithContext(ctx)
	asking.SetLimit(4)
	for _, p := range pods {
		for _, c := range p.Spec.Containers {
			asking.Go(func() error {
				out, err := d.cluster.kubectl(ctx, "exec", p.Name, "--namespace", workloads, "--container", c.Name,
					"--", "sh", "-c", "env; nvidia-smi -L")
				if err != nil {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				views[containerID{p.Name, c.Name}] = parseView(string(out))
				return nil
			})
		}
	}
	if err := asking.Wait(); err != nil {
		return nil, err
	}
	return pair(pods, claims, devices, views)
}

// next says how to go on.
func (d *demo) next() string {
	name := ""
	if d.cluster.name != "demo" {
		name = " NAME=" + d.cluster.name
	}
	return fmt.Sprintf(`
The GPUs are SIMULATED (%[2]s): no program can compute on them. Kubernetes, containerd, runc, the claims,
the CDI devices and what the containers see are real. The cluster stays up. Go on with:

  make kubectl%[1]s ARGS="get pods,resourceclaims"
  make kubectl%[1]s ARGS="get resourceslices -o yaml"
  make kubectl%[1]s ARGS="exec one-1g -- nvidia-smi -L"
  make kubectl%[1]s ARGS="delete -f deployments/examples"
  make demo-down%[1]s
`, name, boards)
}
