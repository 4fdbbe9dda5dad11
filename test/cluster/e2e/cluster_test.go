//go:build e2e

package e2e

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const workloads = `
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 600
  containers:
  - {name: c, image: "workload:v1", command: [sh, -c, "echo hello; exec idle"]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 600
      containers:
      - name: c
        image: web:test
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
`

// TestCluster uses one cluster for all that needs a working one.
func TestCluster(t *testing.T) {
	up(t, clusterName)
	kubectl := func(t *testing.T, args ...string) string {
		t.Helper()
		return must(t, append([]string{"kubectl", "--name", clusterName, "--"}, args...)...)
	}
	t.Run("up is a no-op", func(t *testing.T) {
		if out := must(t, "up", "--name", clusterName); out != "cluster "+clusterName+" is up\n" {
			t.Errorf("it does more than to look:\n%s", out)
		}
		if out, err := try(t, "up", "--name", clusterName, "--feature-gates", "A=true"); err == nil || !strings.Contains(out, "other settings") {
			t.Errorf("other settings are ignored: %v\n%s", err, out)
		}
	})
	t.Run("exec", testExec)
	t.Run("image", testImage)
	t.Run("pods and services", func(t *testing.T) {
		manifest := filepath.Join(t.TempDir(), "workloads.yaml")
		if err := os.WriteFile(manifest, []byte(workloads), 0o644); err != nil {
			t.Fatal(err)
		}
		kubectl(t, "apply", "-f", manifest)
		kubectl(t, "wait", "--for=condition=Ready", "pod/client", "--timeout=60s")
		kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")
		if log := kubectl(t, "logs", "client"); log != "hello\n" {
			t.Errorf("the log is %q", log)
		}
		address := kubectl(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
		for _, from := range []string{"node", "pod"} {
			call := []string{"kubectl", "exec", "client", "--", "wget", "-qO-", "http://" + address}
			if from == "node" {
				call = []string{"busybox", "wget", "-qO-", "http://" + address}
			}
			if out := must(t, append([]string{"exec", "--name", clusterName, "--"}, call...)...); out != "served\n" {
				t.Errorf("the service answers the %s with %q", from, out)
			}
		}
		// The pods have more time to end than this waits.
		kubectl(t, "delete", "-f", manifest, "--wait", "--timeout=100s")
	})
	t.Run("a passing taint is no problem", func(t *testing.T) {
		kubectl(t, "taint", "node", "--all", "node.kubernetes.io/not-ready:NoExecute")
		must(t, "status", "--name", clusterName)
		kubectl(t, "taint", "node", "--all", "example.com/lasting:NoSchedule")
		if out, err := try(t, "status", "--name", clusterName); err == nil || !strings.Contains(out, "the taint example.com/lasting") {
			t.Errorf("a lasting taint is not reported: %v\n%s", err, out)
		}
		kubectl(t, "taint", "node", "--all", "example.com/lasting:NoSchedule-")
	})
	t.Run("a dead component is reported", func(t *testing.T) {
		must(t, "exec", "--name", clusterName, "--", "sh", "-c", "kill -9 $(pidof kube-scheduler)")
		deadline := time.Now().Add(patience)
		for {
			out, err := try(t, "status", "--name", clusterName)
			if err != nil && strings.Contains(out, "kube-scheduler has ended: killed by signal 9") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("status says %v\n%s", err, out)
			}
		}
		must(t, "restart", "--name", clusterName, "kube-scheduler")
		must(t, "status", "--name", clusterName)
		if out, err := try(t, "restart", "--name", clusterName, "kube-nothing"); err == nil || !strings.Contains(out, "no component") {
			t.Errorf("a component that there is not is restarted: %v\n%s", err, out)
		}
	})
}

func testExec(t *testing.T) {
	enter := func(args ...string) *exec.Cmd {
		return command(t, append([]string{"exec", "--name", clusterName, "--"}, args...)...)
	}
	t.Run("exit code", func(t *testing.T) {
		var exit *exec.ExitError
		if err := enter("sh", "-c", "exit 7").Run(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
			t.Errorf("%v, want exit code 7", err)
		}
	})
	t.Run("directory, environment and input", func(t *testing.T) {
		dir := t.TempDir()
		cmd := enter("sh", "-c", `cat; echo "$PWD $MARK $(hostname)"; test -s "$KUBECONFIG"; test -d /var/lib/kubelet/plugins_registry`)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "MARK=mark")
		cmd.Stdin = strings.NewReader("input ")
		out, err := cmd.CombinedOutput()
		if want := "input " + dir + " mark kerf-node\n"; err != nil || string(out) != want {
			t.Errorf("%q, %v; want %q", out, err, want)
		}
	})
	t.Run("files of the node are not the host's", func(t *testing.T) {
		for _, dir := range []string{"/etc", "/opt", "/var/lib", "/run", "/dev/shm"} {
			path := filepath.Join(dir, clusterName+"-file")
			if out, err := enter("touch", path).CombinedOutput(); err != nil {
				t.Errorf("%v %s", err, out)
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the host has %s: %v", path, errors.Join(err, os.Remove(path)))
			}
		}
	})
	t.Run("signals", func(t *testing.T) {
		cmd := enter("sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 9 {
			t.Errorf("%v, want the trap's exit code 9", err)
		}
	})
	t.Run("ends with its caller", func(t *testing.T) {
		cmd := enter("sleep", "987")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		running := func() bool { return enter("pidof", "sleep").Run() == nil }
		for !running() {
			time.Sleep(20 * time.Millisecond)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for deadline := time.Now().Add(patience); running(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the command outlives its caller")
			}
		}
	})
}

// testImage makes an image whose program is dynamically linked: the libraries must have come along.
func testImage(t *testing.T) {
	shell, err := exec.LookPath("bash")
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "serve")
	text := "#!/bin/bash\nset -e\nbusybox mkdir /www\necho served > /www/index.html\n" +
		"trap 'exit 0' TERM\nbusybox httpd -f -p 8080 -h /www &\nwait\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"image", "--name", clusterName, "--tag", "web:test", "--entrypoint", "/bin/serve",
		script + ":/bin/", shell + ":/bin/bash", busybox + ":/bin/busybox",
	}
	if out := must(t, args...); !strings.Contains(out, "imported") {
		t.Errorf("image says %q", out)
	}
	if out := must(t, args...); !strings.Contains(out, "is there already") {
		t.Errorf("image, again, says %q", out)
	}
}

func TestTwoClustersSideBySide(t *testing.T) {
	before := take(t)
	names := []string{clusterName + "-a", clusterName + "-b"}
	for _, name := range names {
		up(t, name)
	}
	must(t, "kubectl", "--name", names[0], "--", "create", "namespace", "only-a")
	if out, err := try(t, "kubectl", "--name", names[1], "--", "get", "namespace", "only-a"); err == nil {
		t.Errorf("the second cluster has the first one's namespace:\n%s", out)
	}
	must(t, "down", "--name", names[0])
	must(t, "status", "--name", names[1])
	must(t, "down", "--name", names[1])
	expectSame(t, before, 0)
}
