//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// A device on which a claim can never be prepared sends its pod away, and the pod that comes in its place gets another.
func TestAPrepareThatNeverSucceedsSendsThePodElsewhere(t *testing.T) {
	e := kit.New(t, kit.Shape{Name: "foreign", Boards: "1xH100-SXM5-80GB,mig=on"})
	// Between two looks of the plugin an administrator takes the place that the scheduler gives out first.
	made := e.Sim("create-instance", "0", "1g.10gb", "--start", "6", "--size", "1", "--no-compute-instance")
	t.Cleanup(func() { e.Sim("destroy-instance", "0", instanceID(t, e)) })
	require.Contains(t, made, "6:1")

	e.Template("small", kit.Requests("mig-1g.10gb.gpu.nvidia.com"))
	pods := e.RunningPods(1, e.Deployment("wanders", "small", 1))
	require.NoError(t, e.Verify(pods[0]))
	require.NotEqual(t, "6:1", devices(t, e, pods...)[0].Placement().String())
}

// instanceID is the id of the board's one instance without a compute instance.
func instanceID(t *testing.T, e *kit.Env) string {
	t.Helper()
	for _, i := range instances(t, e) {
		if len(i.Compute) == 0 {
			return fmt.Sprint(i.ID)
		}
	}
	t.Fatal("the foreign instance is gone")
	return ""
}

// What a claim holds is in its status, and leaves it with the claim's release.
func TestStatusOfAClaim(t *testing.T) {
	e := kit.New(t, fleet)
	e.Claim("shown", kit.Requests("mig-1g.10gb.gpu.nvidia.com"))
	e.PodOfClaim("first", "shown")
	pods := e.Running("first")
	var status []resourceapi.AllocatedDeviceStatus
	read := func(ctx context.Context) error {
		c, err := e.Client.ResourceV1().ResourceClaims(e.Namespace).Get(ctx, "shown", metav1.GetOptions{})
		if err != nil {
			return err
		}
		status = c.Status.Devices
		return nil
	}
	e.Eventually("the device in the status", func(ctx context.Context) error {
		if err := read(ctx); err != nil || len(status) == 1 {
			return err
		}
		return fmt.Errorf("it has %d", len(status))
	})
	made := instances(t, e)
	require.Len(t, made, 1)
	require.Contains(t, string(status[0].Data.Raw), made[0].Compute[0].UUID)
	require.Equal(t, metav1.ConditionTrue, status[0].Conditions[0].Status)
	// The container finds the same in a file.
	text, err := e.Exec(pods[0], "workload", "sh", "-c", "cat /var/run/kubernetes.io/dra-device-attributes/resourceclaims/shown/*/gpu.nvidia.com-metadata.json")
	require.NoError(t, err)
	require.Contains(t, text, made[0].Compute[0].UUID)

	// The claim keeps its allocation.
	e.Delete(pods...)
	e.Eventually("the status to be empty", func(ctx context.Context) error {
		if err := read(ctx); err != nil || len(status) == 0 {
			return err
		}
		return errors.New("the device is still in it")
	})
}
