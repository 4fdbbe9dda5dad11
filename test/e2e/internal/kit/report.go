package kit

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// logLines is how much of the plugin's log a failure shows.
const logLines = "200"

// report logs, once, what explains a failure, if there is one: the namespace, the plugin and the hardware as they are.
func (e *Env) report() {
	e.t.Helper()
	if !e.t.Failed() || e.reported {
		return
	}
	e.reported = true
	show := func(title, text string) { e.t.Logf("=== %s\n%s", title, text) }
	if e.Namespace != "" {
		show("events of the namespace", e.events(context.Background()))
	}
	show("slices", e.summary(context.Background()))
	for title, command := range map[string][]string{
		"pods and claims":           {"kubectl", "get", "pods,resourceclaims", "--all-namespaces", "--output", "wide"},
		"the plugin's log":          {"kubectl", "logs", "--namespace", SystemNamespace, "--selector", "app.kubernetes.io/component=plugin", "--tail", logLines},
		"the plugin's previous log": {"kubectl", "logs", "--namespace", SystemNamespace, "--selector", "app.kubernetes.io/component=plugin", "--tail", logLines, "--previous"},
		"the controllers' logs":     {"kubectl", "logs", "--namespace", SystemNamespace, "--selector", "app.kubernetes.io/component=controller", "--tail", logLines, "--prefix"},
		"simulated hardware":        {"bin/kerf", "sim", "--state", e.Shape.stateDir(), "list"},
		"files of the node":         {"find", cdiDir, journalDir, "-type", "f"},
	} {
		out, err := exec.CommandContext(context.Background(), command[0], command[1:]...).CombinedOutput()
		text := string(out)
		if err != nil {
			text += err.Error()
		}
		show(title, text)
	}
}

// Events are the messages of the events about a pod.
func (e *Env) Events(ctx context.Context, pod string) ([]corev1.Event, error) {
	list, err := e.Client.CoreV1().Events(e.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.kind=Pod,involvedObject.name=" + pod})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// summary is a line for each slice.
func (e *Env) summary(ctx context.Context) string {
	all, err := e.Slices(ctx)
	if err != nil {
		return err.Error()
	}
	var text strings.Builder
	for _, s := range all {
		fmt.Fprintf(&text, "%s: generation %d, one of %d; %d counter sets, %d devices\n",
			s.Name, s.Spec.Pool.Generation, s.Spec.Pool.ResourceSliceCount, len(s.Spec.SharedCounters), len(s.Spec.Devices))
		for _, d := range s.Spec.Devices {
			for _, taint := range d.Taints {
				fmt.Fprintf(&text, "  %s: %s %s since %s\n", d.Name, taint.Key, taint.Effect, taint.TimeAdded)
			}
		}
	}
	return text.String()
}

func (e *Env) events(ctx context.Context) string {
	list, err := e.Client.CoreV1().Events(e.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	var text strings.Builder
	for _, event := range list.Items {
		fmt.Fprintf(&text, "%s %s: %s: %s\n", event.InvolvedObject.Kind, event.InvolvedObject.Name, event.Reason, event.Message)
	}
	return text.String()
}
