// Package simulate plays the arrival of workloads on a fleet, without a cluster:
// what is placed where and when, what does not fit and why, and how many memory
// slices are used and stranded. It owns the order of events and the reports.
// Placement is pkg/fleet's, the reasons are pkg/explain's.
package simulate

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

// Input is what is simulated: a fleet, and the workloads that come to it.
type Input struct {
	fleet.Objects
	trace []arrival
}

// arrival is a line of a trace.
type arrival struct {
	at, duration time.Duration
	// namespace and template name a ResourceClaimTemplate.
	namespace, template string
}

// Read adds the documents of a YAML stream: Fleet objects, and all that manifests hold.
func (in *Input) Read(r io.Reader) error {
	documents := yaml.NewYAMLReader(bufio.NewReader(r))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var kind metav1.TypeMeta
		if err := sigsyaml.Unmarshal(document, &kind); err != nil {
			return err
		}
		if kind.Kind == configv1alpha1.FleetKind {
			err = in.readFleet(document)
		} else {
			err = in.Objects.Read(bytes.NewReader(document))
		}
		if err != nil {
			return err
		}
	}
}

func (in *Input) readFleet(document []byte) error {
	parsed, err := configv1alpha1.ParseFleet(document)
	if err != nil {
		return err
	}
	for _, nodes := range parsed.Nodes {
		boards, err := gpu.ParseBoards(nodes.Boards)
		if err != nil {
			return err
		}
		for i := range nodes.Number() {
			name := nodes.NodeName(i)
			slices, err := fleet.Publish(name, pool.DefaultDriver, boards, nodes.Config)
			if err != nil {
				return err
			}
			labels := map[string]string{corev1.LabelHostname: name}
			for k, v := range nodes.Labels {
				labels[k] = v
			}
			in.Nodes = append(in.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}})
			in.Slices = append(in.Slices, slices...)
		}
	}
	return nil
}

// ReadTrace adds the lines of a CSV file with the columns at, duration and
// template. Times are Go durations ("90s", "1h30m") or seconds; an empty duration
// is for ever. The template is the name of a ResourceClaimTemplate, or namespace/name.
func (in *Input) ReadTrace(r io.Reader) error {
	lines := csv.NewReader(r)
	lines.FieldsPerRecord, lines.Comment, lines.TrimLeadingSpace = 3, '#', true
	header, err := lines.Read()
	if err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	if strings.Join(header, ",") != "at,duration,template" {
		return fmt.Errorf("trace: the first line is %q, expected at,duration,template", strings.Join(header, ","))
	}
	for {
		fields, err := lines.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("trace: %w", err)
		}
		number, _ := lines.FieldPos(0)
		a := arrival{namespace: corev1.NamespaceDefault, template: fields[2]}
		if namespace, name, ok := strings.Cut(fields[2], "/"); ok {
			a.namespace, a.template = namespace, name
		}
		if a.at, err = duration(fields[0]); err != nil {
			return fmt.Errorf("trace, line %d: at: %w", number, err)
		}
		if fields[1] == "" {
			a.duration = forever
		} else if a.duration, err = duration(fields[1]); err != nil {
			return fmt.Errorf("trace, line %d: duration: %w", number, err)
		}
		in.trace = append(in.trace, a)
	}
}

// forever is how long what has no duration stays.
const forever = time.Duration(-1)

func duration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if seconds, numeric := strconv.ParseFloat(text, 64); err != nil && numeric == nil {
		d, err = time.Duration(seconds*float64(time.Second)), nil
	}
	if err == nil && d < 0 {
		err = fmt.Errorf("%s is below 0", text)
	}
	return d, err
}

// job is a pod, or a claim of a trace, that comes at a time and stays for a time.
type job struct {
	// workload is what it is one of: jobs of a workload ask for the same.
	workload     string
	name         string
	at, duration time.Duration
	pod          *corev1.Pod
}

// jobs are all that come, in the order of the files, those of the manifests at time 0.
func (in *Input) jobs() ([]job, error) {
	var all []job
	for _, w := range in.Workloads {
		for i := range w.Replicas {
			j := job{workload: w.Kind + " " + w.Namespace + "/" + w.Name, name: w.Namespace + "/" + w.Name, duration: forever}
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: w.Name}, Spec: w.Spec}
			if w.Kind != "Pod" {
				pod.Name = fmt.Sprintf("%s-%d", w.Name, i)
				j.name = fleet.Key(pod)
			}
			j.pod = pod
			all = append(all, j)
		}
	}
	for i, a := range in.trace {
		if _, err := in.Template(a.namespace, a.template); err != nil {
			return nil, fmt.Errorf("trace: %w", err)
		}
		name := fmt.Sprintf("%s-%d", a.template, i)
		all = append(all, job{
			workload: "template " + a.namespace + "/" + a.template, name: a.namespace + "/" + name, at: a.at, duration: a.duration,
			pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: name}, Spec: corev1.PodSpec{
				ResourceClaims: []corev1.PodResourceClaim{{Name: "claim", ResourceClaimTemplateName: &a.template}},
			}},
		})
	}
	return all, nil
}
