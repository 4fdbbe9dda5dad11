package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// Stale releases the claims that the API server no longer has and the kubelet has
// forgotten, as after a node that was cut off came back, or a call that was
// queued until its pod had gone. A claim that any pod or process of the node
// still has is left alone, whatever the API says.
type Stale struct {
	Client  kubernetes.Interface
	Records Records
	// Release gives back what a claim holds.
	Release func(ctx context.Context, uid string) error
	// InPods are the CDI devices that the kubelet has given to the node's pods.
	InPods func(ctx context.Context) ([]string, error)
	// Proc is where the host's processes are seen.
	Proc string
	// After is how long a claim must have been gone before it is released
	// without the kubelet's asking.
	After time.Duration

	now   func() time.Time
	since map[string]time.Time
}

// Sweep looks for stale claims once. It is to be called again and again, by one goroutine.
func (s *Stale) Sweep(ctx context.Context) error {
	if s.now == nil {
		s.now = time.Now
	}
	claims, err := s.Records.Claims()
	if err = tolerated(err); err != nil {
		return err
	}
	since := map[string]time.Time{}
	var errs []error
	for _, c := range claims {
		gone, err := s.gone(ctx, c)
		if err != nil {
			return err // The API server is away: nothing is known of the others either.
		}
		if !gone {
			continue
		}
		began, seen := s.since[c.UID]
		if !seen {
			began = s.now()
		}
		since[c.UID] = began
		if s.now().Sub(began) < s.After {
			continue
		}
		used, err := s.used(ctx, c)
		if err != nil || used {
			errs = append(errs, err)
			continue
		}
		klog.FromContext(ctx).Info("Releasing a claim that the API server no longer has and nobody uses", "claim", klog.KRef(c.Namespace, c.Name), "claimUID", c.UID)
		errs = append(errs, s.Release(ctx, c.UID))
	}
	s.since = since
	return errors.Join(errs...)
}

// gone reports whether the API server has no such claim, or one that is not allocated.
func (s *Stale) gone(ctx context.Context, c *journal.Claim) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	found, err := s.Client.ResourceV1().ResourceClaims(c.Namespace).Get(ctx, c.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for claim %s/%s: %w", c.Namespace, c.Name, err)
	}
	return string(found.UID) != c.UID || found.Status.Allocation == nil, nil
}

// used reports whether a pod has been given the claim, or a process has one of its variables.
func (s *Stale) used(ctx context.Context, c *journal.Claim) (bool, error) {
	given, err := s.InPods(ctx)
	if err != nil {
		return false, fmt.Errorf("ask the kubelet who uses claim %s/%s: %w", c.Namespace, c.Name, err)
	}
	if slices.ContainsFunc(given, func(device string) bool { return strings.Contains(device, c.UID) }) {
		return true, nil
	}
	var variables [][]byte
	for _, d := range c.Devices {
		device := cdispec.Device{Name: d.Name, Request: d.Request, GPU: gpu.GPU{UUID: d.Device.GPU}, Instance: d.Instance}
		variables = append(variables, []byte(device.Variable()))
	}
	environments, err := filepath.Glob(filepath.Join(s.Proc, "[0-9]*", "environ"))
	if err != nil {
		return false, err
	}
	for _, path := range environments {
		environment, err := os.ReadFile(path)
		if err != nil {
			continue // The process has ended.
		}
		for variable := range bytes.SplitSeq(environment, []byte{0}) {
			if slices.ContainsFunc(variables, func(v []byte) bool { return bytes.Equal(v, variable) }) {
				return true, nil
			}
		}
	}
	return false, nil
}

// PodResources asks the kubelet, at the socket of its pod resources API, for the
// CDI devices of all pods of the node.
func PodResources(socket string) func(ctx context.Context) ([]string, error) {
	return func(ctx context.Context) ([]string, error) {
		ctx, cancel := context.WithTimeout(ctx, apiTimeout)
		defer cancel()
		conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		defer func() { _ = conn.Close() }()
		pods, err := podresources.NewPodResourcesListerClient(conn).List(ctx, &podresources.ListPodResourcesRequest{})
		if err != nil {
			return nil, err
		}
		var devices []string
		for _, pod := range pods.PodResources {
			for _, container := range pod.Containers {
				for _, claim := range container.DynamicResources {
					for _, resource := range claim.ClaimResources {
						for _, device := range resource.CdiDevices {
							devices = append(devices, device.Name)
						}
					}
				}
			}
		}
		return devices, nil
	}
}
