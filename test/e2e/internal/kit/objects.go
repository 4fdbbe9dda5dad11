package kit

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// workload is an image that every node of a local cluster has. It idles until it is told to end.
const workload = "workload:v1"

// Requests makes a claim's specification with one request for each device class: "first", "second" and so on.
func Requests(classes ...string) resourceapi.ResourceClaimSpec {
	names := []string{"first", "second", "third", "fourth"}
	var spec resourceapi.ResourceClaimSpec
	for i, class := range classes {
		spec.Devices.Requests = append(spec.Devices.Requests, resourceapi.DeviceRequest{
			Name: names[i], Exactly: &resourceapi.ExactDeviceRequest{DeviceClassName: class},
		})
	}
	return spec
}

// OnOneGPU adds to a claim that all its devices are to be on the same GPU.
func OnOneGPU(spec resourceapi.ResourceClaimSpec) resourceapi.ResourceClaimSpec {
	parent := resourceapi.FullyQualifiedName(Driver + "/parentUUID")
	spec.Devices.Constraints = append(spec.Devices.Constraints, resourceapi.DeviceConstraint{MatchAttribute: &parent})
	return spec
}

// OfProduct adds to all requests of a claim which product the device's board is to be.
func OfProduct(spec resourceapi.ResourceClaimSpec, product string) resourceapi.ResourceClaimSpec {
	for _, r := range spec.Devices.Requests {
		r.Exactly.Selectors = append(r.Exactly.Selectors, resourceapi.DeviceSelector{CEL: &resourceapi.CELDeviceSelector{
			Expression: fmt.Sprintf("device.attributes[%q].productName == %q", Driver, product),
		}})
	}
	return spec
}

// Claim creates a claim that is an object of its own.
func (e *Env) Claim(name string, spec resourceapi.ResourceClaimSpec) {
	e.t.Helper()
	require.NoError(e.t, e.TryClaim(name, spec))
}

// TryClaim is Claim where the API server may refuse it.
func (e *Env) TryClaim(name string, spec resourceapi.ResourceClaimSpec) error {
	_, err := e.Client.ResourceV1().ResourceClaims(e.Namespace).Create(e.t.Context(),
		&resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	return err
}

// PodOfClaim creates a pod whose one container has that claim.
func (e *Env) PodOfClaim(name, claim string) {
	e.t.Helper()
	e.pod(name, corev1.PodResourceClaim{ResourceClaimName: &claim})
}

// Pod creates a pod whose one container has a claim that lives as long as the pod.
func (e *Env) Pod(name string, spec resourceapi.ResourceClaimSpec) {
	e.t.Helper()
	e.Template(name, spec)
	e.PodOfTemplate(name, name)
}

// PodOfTemplate creates a pod whose one container has a claim of that template.
func (e *Env) PodOfTemplate(name, template string) {
	e.t.Helper()
	e.pod(name, corev1.PodResourceClaim{ResourceClaimTemplateName: &template})
}

// Deployment creates one whose pods have a claim of that template each, and returns their labels.
func (e *Env) Deployment(name, template string, replicas int32) labels.Set {
	e.t.Helper()
	of := labels.Set{"app": name}
	_, err := e.Client.AppsV1().Deployments(e.Namespace).Create(e.t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: of},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: of}, Spec: PodSpec(template)},
		},
	}, metav1.CreateOptions{})
	require.NoError(e.t, err)
	return of
}

// LimitedPod is a pod with no claim, whose one container asks for one of an extended resource.
func LimitedPod(name, resource string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Name: "workload", Image: workload,
		Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceName(resource): apiresource.MustParse("1")}},
	}}}}
}

// TryPod creates a pod, which the API server may refuse.
func (e *Env) TryPod(pod *corev1.Pod) error {
	_, err := e.Client.CoreV1().Pods(e.Namespace).Create(e.t.Context(), pod, metav1.CreateOptions{})
	return err
}

// Template creates a template of claims.
func (e *Env) Template(name string, spec resourceapi.ResourceClaimSpec) {
	e.t.Helper()
	_, err := e.Client.ResourceV1().ResourceClaimTemplates(e.Namespace).Create(e.t.Context(), &resourceapi.ResourceClaimTemplate{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: resourceapi.ResourceClaimTemplateSpec{Spec: spec},
	}, metav1.CreateOptions{})
	require.NoError(e.t, err)
}

func (e *Env) pod(name string, claim corev1.PodResourceClaim) {
	e.t.Helper()
	require.NoError(e.t, e.TryPod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: podSpec(claim)}))
}

// PodSpec is that of a pod whose one container has a claim of a template.
func PodSpec(template string) corev1.PodSpec {
	return podSpec(corev1.PodResourceClaim{ResourceClaimTemplateName: &template})
}

func podSpec(claim corev1.PodResourceClaim) corev1.PodSpec {
	claim.Name = "gpu"
	return corev1.PodSpec{
		Containers: []corev1.Container{{
			Name: "workload", Image: workload,
			Resources: corev1.ResourceRequirements{Claims: []corev1.ResourceClaim{{Name: claim.Name}}},
		}},
		ResourceClaims: []corev1.PodResourceClaim{claim},
	}
}

// Example applies a file of deployments/examples as its reader would.
func (e *Env) Example(file string) {
	e.t.Helper()
	e.Apply(filepath.Join("deployments/examples", file))
}

// Apply applies a file as its reader would. What is in no namespace has to be deleted by the test.
func (e *Env) Apply(file string) {
	e.t.Helper()
	e.command(nil, "kubectl", "apply", "--namespace", e.Namespace, "--filename", file)
}

// Kubectl runs kubectl with that standard input, and returns all that it says, and whether it failed.
func (e *Env) Kubectl(input string, args ...string) (string, error) {
	cmd := exec.CommandContext(context.Background(), "kubectl", args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Running waits until the pods run, and returns them.
func (e *Env) Running(names ...string) []*corev1.Pod {
	e.t.Helper()
	var running []*corev1.Pod
	for _, name := range names {
		e.Eventually("pod "+name+" to run", func(ctx context.Context) error {
			pod, err := e.Client.CoreV1().Pods(e.Namespace).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if err := isReady(pod); err != nil {
				return err
			}
			running = append(running, pod)
			return nil
		})
	}
	return running
}

// RunningPods waits until there are exactly that many pods with the labels and all of them run, whatever others came
// before them, and returns them.
func (e *Env) RunningPods(count int, with labels.Set) []*corev1.Pod {
	e.t.Helper()
	var running []*corev1.Pod
	e.Eventually(fmt.Sprintf("%d pods to run", count), func(ctx context.Context) error {
		pods, err := e.Client.CoreV1().Pods(e.Namespace).List(ctx, metav1.ListOptions{LabelSelector: with.String()})
		if err != nil {
			return err
		}
		if len(pods.Items) != count {
			return fmt.Errorf("there are %d pods", len(pods.Items))
		}
		running = nil
		for i := range pods.Items {
			if err := isReady(&pods.Items[i]); err != nil {
				return err
			}
			running = append(running, &pods.Items[i])
		}
		return nil
	})
	return running
}

func isReady(pod *corev1.Pod) error {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("pod %s is %s, and not ready", pod.Name, pod.Status.Phase)
}

// Delete deletes pods, waits until they are gone, and with them the claims that were made for them, and until the node
// has let go of those claims.
func (e *Env) Delete(pods ...*corev1.Pod) {
	e.t.Helper()
	var claims []resourceapi.ResourceClaim
	for _, pod := range pods {
		all, err := e.Claims(e.t.Context(), pod)
		require.NoError(e.t, err)
		for _, c := range all {
			if metav1.IsControlledBy(&c, pod) {
				claims = append(claims, c)
			}
		}
		require.NoError(e.t, e.Client.CoreV1().Pods(e.Namespace).Delete(e.t.Context(), pod.Name, metav1.DeleteOptions{}))
	}
	for _, pod := range pods {
		e.Eventually("pod "+pod.Name+" to be gone", func(ctx context.Context) error {
			_, err := e.Client.CoreV1().Pods(e.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
			return Gone("it", err)
		})
	}
	for _, c := range claims {
		e.Eventually("claim "+c.Name+" to be gone", func(ctx context.Context) error {
			_, err := e.Client.ResourceV1().ResourceClaims(e.Namespace).Get(ctx, c.Name, metav1.GetOptions{})
			return Gone("it", err)
		})
		e.Eventually("claim "+c.Name+" to be released", func(context.Context) error { return e.Released(c.UID) })
	}
}
