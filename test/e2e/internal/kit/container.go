package kit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// Verify compares what every container of the pod has with what it should have, and returns an error that lists every
// difference. It looks from inside: at what nvidia-smi lists, at the variables, at the device nodes with their numbers,
// and at which devices the device cgroup lets it open.
func (e *Env) Verify(pod *corev1.Pod) error {
	var errs []error
	for _, c := range pod.Spec.Containers {
		want, numbers, err := e.expected(context.Background(), pod, c.Name)
		if err != nil {
			return err
		}
		got, err := e.observed(pod, c.Name, numbers)
		if err != nil {
			return err
		}
		errs = append(errs, compare("container "+c.Name+" of pod "+pod.Name, want, got))
	}
	return errors.Join(errs...)
}

// The simulated devices have no driver. So an attempt to open one ends in the device cgroup, or just behind it.
const (
	admitted = "No such device or address"
	refused  = "Operation not permitted"
)

// expected are the lines that observed should give, and the device numbers that it should try to open.
func (e *Env) expected(ctx context.Context, pod *corev1.Pod, container string) (sets.Set[string], []string, error) {
	devices, err := e.containerDevices(ctx, pod, container)
	if err != nil {
		return nil, nil, err
	}
	boards, err := e.Boards()
	if err != nil {
		return nil, nil, err
	}
	host, err := e.nodes()
	if err != nil {
		return nil, nil, err
	}
	lines := sets.New[string]()
	paths := sets.New("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
	for _, d := range devices {
		index := slices.IndexFunc(boards, func(b Board) bool { return b.UUID == d.Parent() })
		if index < 0 {
			return nil, nil, fmt.Errorf("%s is of board %s, which the simulator does not have", d.Published.Name, d.Parent())
		}
		board := boards[index]
		uuid := board.UUID
		lines.Insert("nvidia-smi lists GPU " + board.UUID)
		paths.Insert(fmt.Sprintf("/dev/nvidia%d", board.Minor))
		if d.Type() == gpu.TypeMIG {
			at := slices.IndexFunc(board.Instances, func(i gpu.Instance) bool { return i.Placement == d.Placement() && i.Profile == d.Profile() })
			if at < 0 || !board.Instances[at].Usable() {
				return nil, nil, fmt.Errorf("%s is allocated, but the simulator has no such instance: %v", place(board.UUID, d.Profile(), d.Placement()), board.Instances)
			}
			instance := board.Instances[at]
			uuid = instance.Compute[0].UUID
			lines.Insert("nvidia-smi lists " + d.Profile() + " " + uuid)
			part := fmt.Sprintf("gpu%d/gi%d", board.Minor, instance.ID)
			for _, name := range []string{part + "/access", fmt.Sprintf("%s/ci%d/access", part, instance.Compute[0].ID)} {
				path, err := e.capability(name)
				if err != nil {
					return nil, nil, err
				}
				paths.Insert(path)
			}
		}
		lines.Insert("variable " + variable(d, uuid))
	}
	// Whatever else the node has, and for a node that has nothing else, devices of the same drivers that nobody has.
	numbers := sets.New(strings.Split(host["/dev/nvidiactl"], ":")[0]+":31", strings.Split(host["/dev/nvidia-caps/nvidia-cap1"], ":")[0]+":9999")
	for path, number := range host {
		numbers.Insert(number)
		if paths.Has(path) {
			lines.Insert("node " + path + " " + number)
		}
	}
	for number := range numbers {
		result := refused
		for path := range paths {
			if host[path] == number {
				result = admitted
			}
		}
		lines.Insert("open " + number + ": " + result)
	}
	for path := range paths {
		if host[path] == "" {
			return nil, nil, fmt.Errorf("the simulated host has no %s", path)
		}
	}
	return lines, sets.List(numbers), nil
}

var notInName = regexp.MustCompile("[^A-Z0-9]")

func variable(d Device, uuid string) string {
	part := func(name string) string { return notInName.ReplaceAllString(strings.ToUpper(name), "_") }
	return fmt.Sprintf("KERF_%s_%s_UUID=%s", part(d.Request), part(d.Published.Name), uuid)
}

// try opens a device of each number. It makes the nodes itself, which any container may do: so it is the device cgroup
// that decides, and not which nodes the runtime has made.
const try = `for number in "$@"; do
	mknod /dev/probe c "${number%:*}" "${number#*:}" || exit 1
	echo "open $number: $( (: </dev/probe) 2>&1 | sed 's/.*: //')"
	rm /dev/probe
done`

var (
	listedGPU      = regexp.MustCompile(`^GPU \d+: .* \(UUID: (GPU-\S+)\)$`)
	listedInstance = regexp.MustCompile(`^ +MIG (\S+) +Device +\d+: \(UUID: (MIG-\S+)\)$`)
)

// observed is what a container has, line by line.
func (e *Env) observed(pod *corev1.Pod, container string, numbers []string) (sets.Set[string], error) {
	lines := sets.New[string]()
	listed, err := e.Exec(pod, container, "nvidia-smi", "-L")
	if err != nil {
		// It fails where it finds no device: that is what the container has.
		lines.Insert(fmt.Sprintf("nvidia-smi: %v", err))
	}
	for line := range strings.Lines(listed) {
		line = strings.TrimRight(line, "\n")
		says := "nvidia-smi: " + line
		if found := listedGPU.FindStringSubmatch(line); found != nil {
			says = "nvidia-smi lists GPU " + found[1]
		} else if found := listedInstance.FindStringSubmatch(line); found != nil {
			says = "nvidia-smi lists " + found[1] + " " + found[2]
		}
		if lines.Has(says) {
			says += " once more"
		}
		lines.Insert(says)
	}
	variables, err := e.Exec(pod, container, "env")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(variables) {
		if strings.HasPrefix(line, "KERF_") {
			lines.Insert("variable " + strings.TrimSpace(line))
		}
	}
	nodes, err := e.Exec(pod, container, "find", "/dev", "-name", "nvidia*", "-type", "c", "-exec", "stat", "-c", "%n %t %T", "{}", ";")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(nodes) {
		var path string
		var major, minor int
		if _, err := fmt.Sscanf(line, "%s %x %x", &path, &major, &minor); err != nil {
			return nil, fmt.Errorf("stat says %q: %w", line, err)
		}
		lines.Insert(fmt.Sprintf("node %s %d:%d", path, major, minor))
	}
	opened, err := e.Exec(pod, container, append([]string{"sh", "-c", try, "sh"}, numbers...)...)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(opened) {
		lines.Insert(strings.TrimSpace(line))
	}
	return lines, nil
}

// Exec runs a command in a container and returns its standard output. Of a command that fails the error has the rest.
func (e *Env) Exec(pod *corev1.Pod, container string, command ...string) (string, error) {
	request := e.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(e.Config, "GET", request.URL().String())
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out, complaint bytes.Buffer
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &complaint}); err != nil {
		return out.String(), fmt.Errorf("%s in container %s of pod %s: %w %s", strings.Join(command[:1], " "), container, pod.Name, err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}
