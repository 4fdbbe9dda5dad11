//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/controller"
	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/test/e2e/internal/exporter"
	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// collect is how often the exporter of these tests reads its values, and what the controller is told.
const collect = 15 * time.Second

// hinted is a node whose workloads are measured: the exporter, a real Prometheus with the rules that kerf ships, and the
// controller.
type hinted struct {
	*kit.Env
	t          *testing.T
	api        client.WithWatch
	exporter   *exporter.Exporter
	prometheus *prometheus

	mutex sync.Mutex
	// load of a Deployment, in percent of a device.
	load map[string]float64
}

// newHinted starts all of it. The controller is installed with those values in addition.
func newHinted(t *testing.T, shape kit.Shape) *hinted {
	ip := nodeIP(t)
	const port = 19090
	shape.Controller = map[string]any{
		"collectInterval": collect.String(), "scale": true, "deletionCosts": true, "scrape": []any{},
		"prometheus": map[string]any{"url": fmt.Sprintf("http://%s:%d", ip, port)},
	}
	log.SetLogger(klog.Background())
	h := &hinted{t: t, Env: kit.New(t, shape), load: map[string]float64{}}
	scheme, err := controller.Scheme()
	require.NoError(t, err)
	h.api, err = client.NewWithWatch(h.Config, client.Options{Scheme: scheme})
	require.NoError(t, err)
	h.exporter, err = exporter.Start(t.Context(), h.Boards, h.script, collect)
	require.NoError(t, err)
	h.prometheus = &prometheus{t: t, dir: t.TempDir(), address: fmt.Sprintf("0.0.0.0:%d", port)}
	h.prometheus.configure(h.exporter.Address())
	h.prometheus.start()
	discovered := make(chan struct{})
	go func() {
		defer close(discovered)
		wait.UntilWithContext(t.Context(), func(ctx context.Context) {
			if pods, err := h.Client.CoreV1().Pods(kit.SystemNamespace).List(ctx, metav1.ListOptions{}); err == nil {
				h.prometheus.targets(pods.Items...)
			}
		}, 2*time.Second)
	}()
	t.Cleanup(func() {
		<-discovered
		h.prometheus.stop()
	})
	return h
}

func nodeIP(t *testing.T) string {
	node, err := kit.Connect(t).Client.CoreV1().Nodes().Get(t.Context(), kit.NodeName, metav1.GetOptions{})
	require.NoError(t, err)
	i := slices.IndexFunc(node.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Type == corev1.NodeInternalIP })
	require.GreaterOrEqual(t, i, 0)
	return node.Status.Addresses[i].Address
}

// setLoad says how much a Deployment has to do, in percent of a device.
func (h *hinted) setLoad(deployment string, percent float64) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.load[deployment] = percent
}

// script spreads the load of each Deployment over its pods that are ready.
func (h *hinted) script(ctx context.Context) (map[exporter.Device]exporter.Reading, error) {
	pods, err := h.Client.CoreV1().Pods(h.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	devices := map[string][]exporter.Device{}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.DeletionTimestamp != nil || !slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}) {
			continue
		}
		claims, err := h.Claims(ctx, pod)
		if err != nil {
			return nil, err
		}
		for _, claim := range claims {
			for _, d := range claim.Status.Devices {
				var data plugin.DeviceData
				if err := json.Unmarshal(d.Data.Raw, &data); err != nil {
					return nil, err
				}
				device := exporter.Device{UUID: data.GPUUUID, Instance: -1}
				if data.GPUInstanceID != nil {
					device.Instance = *data.GPUInstanceID
				}
				devices[pod.Labels["app"]] = append(devices[pod.Labels["app"]], device)
			}
		}
	}
	h.mutex.Lock()
	defer h.mutex.Unlock()
	readings := map[exporter.Device]exporter.Reading{}
	for app, all := range devices {
		for _, d := range all {
			readings[d] = exporter.Reading{Busy: min(100, h.load[app]/float64(len(all))), UsedMiB: 20000, FreeMiB: 61559}
		}
	}
	return readings, nil
}

// hint makes one for a Deployment.
func (h *hinted) hint(deployment string, change func(*v1alpha1.GPUScalingHintSpec)) {
	spec := v1alpha1.GPUScalingHintSpec{
		TargetRef: v1alpha1.TargetReference{APIVersion: "apps/v1", Kind: "Deployment", Name: deployment},
		Class:     v1alpha1.ClassRealtime, MaxReplicas: 10, Mode: v1alpha1.ModeScale,
	}
	change(&spec)
	require.NoError(h.t, h.api.Create(h.t.Context(), &v1alpha1.GPUScalingHint{
		ObjectMeta: metav1.ObjectMeta{Namespace: h.Namespace, Name: deployment}, Spec: spec,
	}))
}

func (h *hinted) get(ctx context.Context, deployment string) (v1alpha1.GPUScalingHint, error) {
	var hint v1alpha1.GPUScalingHint
	err := h.api.Get(ctx, client.ObjectKey{Namespace: h.Namespace, Name: deployment}, &hint)
	return hint, err
}

// replicas are what a Deployment asks for.
func (h *hinted) replicas(ctx context.Context, deployment string) (int, error) {
	var d appsv1.Deployment
	err := h.api.Get(ctx, client.ObjectKey{Namespace: h.Namespace, Name: deployment}, &d)
	if err != nil {
		return 0, err
	}
	return int(*d.Spec.Replicas), nil
}

// within waits for longer than the rest of these tests, because a hint takes its time.
func (h *hinted) within(d time.Duration, what string, check func(context.Context) error) {
	h.t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(h.t.Context(), time.Second, d, true, func(ctx context.Context) (bool, error) {
		last = check(ctx)
		return last == nil, nil
	})
	require.NoError(h.t, err, "waiting for %s: %v", what, last)
}

// has is nil once a Deployment asks for so many replicas.
func (h *hinted) has(ctx context.Context, deployment string, want int) error {
	got, err := h.replicas(ctx, deployment)
	if err != nil {
		return err
	}
	if got != want {
		hint, err := h.get(ctx, deployment)
		return errors.Join(err, fmt.Errorf("%s has %d replicas, not %d: %s", deployment, got, want, hint.Status.Message))
	}
	return nil
}

// because is nil while a hint gives that reason.
func (h *hinted) because(ctx context.Context, deployment string, reason v1alpha1.Reason) error {
	hint, err := h.get(ctx, deployment)
	if err != nil {
		return err
	}
	if hint.Status.Reason != reason {
		return fmt.Errorf("%s: %s, not %s: %s", deployment, hint.Status.Reason, reason, hint.Status.Message)
	}
	return nil
}

// timeline is what hints said, a line for each change, until the test ends.
type timeline struct {
	mutex sync.Mutex
	lines []string
	said  []v1alpha1.GPUScalingHint
}

func (h *hinted) watch() *timeline {
	began := time.Now()
	watch, err := h.api.Watch(h.t.Context(), &v1alpha1.GPUScalingHintList{}, client.InNamespace(h.Namespace))
	require.NoError(h.t, err)
	l := &timeline{}
	go func() {
		last := map[string]string{}
		for event := range watch.ResultChan() {
			hint, ok := event.Object.(*v1alpha1.GPUScalingHint)
			if !ok || hint.Status.DesiredReplicas == nil {
				continue
			}
			s := hint.Status
			what := fmt.Sprintf("%-8s  %d -> %d  %-7d  %-16s  %-10s  %s", hint.Name, *s.CurrentReplicas, *s.DesiredReplicas, *s.ScaleTo, s.Reason, s.Feasibility.State, s.Feasibility.Message)
			l.mutex.Lock()
			if last[hint.Name] != what {
				util := "  - "
				if s.Evidence.UtilizationPercent != nil {
					util = fmt.Sprintf("%2d %%", *s.Evidence.UtilizationPercent)
				}
				l.lines = append(l.lines, fmt.Sprintf("%5s  %4s  %s", time.Since(began).Round(time.Second), util, what))
				l.said = append(l.said, *hint)
			}
			last[hint.Name] = what
			l.mutex.Unlock()
		}
	}()
	h.t.Cleanup(func() {
		watch.Stop()
		h.t.Logf("timeline:\n%s", l)
	})
	return l
}

func (l *timeline) String() string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return strings.Join(l.lines, "\n")
}

// find is the first that a hint said that fulfils a condition.
func (l *timeline) find(deployment string, is func(v1alpha1.GPUScalingHintStatus) bool) *v1alpha1.GPUScalingHintStatus {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	for _, hint := range l.said {
		if hint.Name == deployment && is(hint.Status) {
			return &hint.Status
		}
	}
	return nil
}

// prometheus is the Debian package's, with the rules that kerf ships.
type prometheus struct {
	t            *testing.T
	dir, address string
	cmd          *exec.Cmd
}

func (p *prometheus) configure(exporter string) {
	rules, err := filepath.Abs("deployments/monitoring/rules.yaml")
	require.NoError(p.t, err)
	p.targets()
	require.NoError(p.t, os.WriteFile(filepath.Join(p.dir, "prometheus.yml"), fmt.Appendf(nil, `
global: {scrape_interval: 5s, evaluation_interval: 5s}
rule_files: [%q]
scrape_configs:
- {job_name: dcgm-exporter, honor_labels: true, static_configs: [{targets: [%q]}]}
- {job_name: kerf, file_sd_configs: [{files: [%q], refresh_interval: 5s}]}
`, rules, exporter, filepath.Join(p.dir, "kerf.json")), 0o600))
}

// targets writes which pods of kerf there are. Debian's Prometheus cannot ask the API server.
func (p *prometheus) targets(pods ...corev1.Pod) {
	targets := []string{}
	for _, pod := range pods {
		if pod.Status.PodIP != "" {
			targets = append(targets, pod.Status.PodIP+":8080")
		}
	}
	text, err := json.Marshal([]map[string]any{{"targets": targets}})
	require.NoError(p.t, err)
	path := filepath.Join(p.dir, "kerf.json")
	require.NoError(p.t, os.WriteFile(path+".new", text, 0o600))
	require.NoError(p.t, os.Rename(path+".new", path))
}

func (p *prometheus) start() {
	p.cmd = exec.Command("prometheus", "--config.file="+filepath.Join(p.dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(p.dir, "data"),
		"--web.listen-address="+p.address, "--log.level=warn")
	p.cmd.Stderr = os.Stderr
	require.NoError(p.t, p.cmd.Start(), "prometheus is in the package of that name: make packages")
	_, port, _ := strings.Cut(p.address, ":")
	require.Eventually(p.t, func() bool {
		resp, err := http.Get("http://127.0.0.1:" + port + "/-/ready")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}, time.Minute, 200*time.Millisecond, "prometheus does not become ready")
}

func (p *prometheus) signal(s os.Signal) { require.NoError(p.t, p.cmd.Process.Signal(s)) }

func (p *prometheus) stop() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	p.cmd = nil
}
