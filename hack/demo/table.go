package main

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
)

// row is a device of a container.
type row struct {
	pod, claim, device, profile, gpu, seen string
}

type containerID struct{ pod, container string }

// view is what a container sees: its variables that tell a device's UUID, and the lines of nvidia-smi by UUID.
type view struct {
	variables, lines map[string]string
}

var (
	variableLine = regexp.MustCompile(`(?m)^(KERF_\w+_UUID)=(\S+)$`)
	smiLine      = regexp.MustCompile(`(?m)^\s*(.*\S)\s*\(UUID: (\S+)\)$`)
)

// parseView reads the output of env and of nvidia-smi -L.
func parseView(output string) view {
	v := view{map[string]string{}, map[string]string{}}
	for _, match := range variableLine.FindAllStringSubmatch(output, -1) {
		v.variables[match[1]] = match[2]
	}
	for _, match := range smiLine.FindAllStringSubmatch(output, -1) {
		v.lines[match[2]] = strings.Join(strings.Fields(match[1]), " ")
	}
	return v
}

// uuid is what the container is told of a device. The name of the variable ends
// with the device's name, which tells the devices of a request apart.
func (v view) uuid(device string) string {
	end := "_" + strings.ToUpper(strings.ReplaceAll(device, "-", "_")) + "_UUID"
	for name, uuid := range v.variables {
		if strings.HasSuffix(name, end) {
			return uuid
		}
	}
	return ""
}

// pair makes a row for each device of each container. It is an error if a
// container does not see what it was given, or sees something else.
func pair(pods []corev1.Pod, claims map[string]resourceapi.ResourceClaim, devices map[string]resourceapi.Device,
	views map[containerID]view,
) ([]row, error) {
	var rows []row
	var errs []error
	for i := range pods {
		p := &pods[i]
		for _, c := range p.Spec.Containers {
			v := views[containerID{p.Name, c.Name}]
			name := p.Name
			if len(p.Spec.Containers) > 1 {
				name += "/" + c.Name
			}
			explained := map[string]bool{}
			given, err := givenTo(p, c, claims)
			errs = append(errs, err)
			for _, g := range given {
				device, ok := devices[g.device]
				if !ok {
					errs = append(errs, fmt.Errorf("%s: device %s of claim %s is not published", name, g.device, g.claim))
					continue
				}
				parent, uuid := attribute(device, "parentUUID"), v.uuid(g.device)
				explained[parent], explained[uuid] = true, true
				seen, ok := v.lines[uuid]
				if !ok {
					errs = append(errs, fmt.Errorf("%s: nvidia-smi does not list device %s of claim %s (UUID %q)",
						name, g.device, g.claim, uuid))
				}
				seen = fmt.Sprintf("%s (UUID: %s)", seen, short(uuid))
				rows = append(rows, row{name, g.claim, g.device, kindOf(device), parent, seen})
			}
			for uuid, line := range v.lines {
				if !explained[uuid] {
					errs = append(errs, fmt.Errorf("%s: nvidia-smi lists %q (%s), which is in none of its claims", name, line, uuid))
				}
			}
		}
	}
	return rows, errors.Join(errs...)
}

type given struct{ claim, device string }

func results(claim resourceapi.ResourceClaim) []resourceapi.DeviceRequestAllocationResult {
	if claim.Status.Allocation == nil {
		return nil
	}
	return claim.Status.Allocation.Devices.Results
}

// givenTo are the devices that a container was given: all of a claim, or those of one request.
func givenTo(p *corev1.Pod, c corev1.Container, claims map[string]resourceapi.ResourceClaim) ([]given, error) {
	var all []given
	// What it asks for by the name of an extended resource is in a claim that the scheduler made.
	if extended := p.Status.ExtendedResourceClaimStatus; extended != nil {
		for _, m := range extended.RequestMappings {
			if m.ContainerName == c.Name {
				for _, r := range results(claims[extended.ResourceClaimName]) {
					if r.Request == m.RequestName {
						all = append(all, given{extended.ResourceClaimName, r.Device})
					}
				}
			}
		}
	}
	for _, wanted := range c.Resources.Claims {
		i := slices.IndexFunc(p.Spec.ResourceClaims, func(r corev1.PodResourceClaim) bool { return r.Name == wanted.Name })
		if i < 0 {
			return nil, fmt.Errorf("%s: container %s names %s, which is no claim of the pod", p.Name, c.Name, wanted.Name)
		}
		name, _, err := resourceclaim.Name(p, &p.Spec.ResourceClaims[i])
		if err != nil || name == nil {
			return nil, errors.Join(err, fmt.Errorf("%s: claim %s was not made", p.Name, wanted.Name))
		}
		claim := claims[*name]
		if claim.Status.Allocation == nil {
			return nil, fmt.Errorf("%s: claim %s is not allocated", p.Name, *name)
		}
		for _, r := range claim.Status.Allocation.Devices.Results {
			if wanted.Request == "" || wanted.Request == resourceclaim.BaseRequestRef(r.Request) {
				all = append(all, given{*name, r.Device})
			}
		}
	}
	return all, nil
}

func attribute(d resourceapi.Device, name resourceapi.QualifiedName) string {
	if value := d.Attributes[name].StringValue; value != nil {
		return *value
	}
	return ""
}

// kindOf is the profile of a MIG device, and says so of the others.
func kindOf(d resourceapi.Device) string {
	switch kind := attribute(d, "type"); kind {
	case "mig":
		return attribute(d, "profile")
	case "gpu":
		return "whole GPU"
	default:
		return kind
	}
}

// printTable prints at most 160 columns: of names that Kubernetes has made the ends are what tells them apart.
func printTable(out io.Writer, rows []row) error {
	slices.SortStableFunc(rows, func(a, b row) int { return strings.Compare(a.pod, b.pod) })
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "POD\tCLAIM\tDEVICE\tPROFILE\tGPU\tWHAT nvidia-smi -L SAYS IN THE CONTAINER")
	for _, r := range rows {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", clip(r.pod, 30), clip(r.claim, 22), r.device, r.profile, short(r.gpu), r.seen)
	}
	return table.Flush()
}

// short is a UUID with the first 8 of its digits, which follow "GPU-" or "MIG-".
func short(uuid string) string {
	const n = len("GPU-") + 8
	if len(uuid) > n {
		return uuid[:n] + "…"
	}
	return uuid
}

// clip leaves out the middle of a name that is longer than n.
func clip(name string, n int) string {
	const end = 6
	if len(name) <= n {
		return name
	}
	return name[:n-end-1] + "…" + name[len(name)-end:]
}
