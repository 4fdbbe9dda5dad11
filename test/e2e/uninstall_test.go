//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// Uninstalling the chart removes all that it made but the kinds of hints, with which all hints would go. The kubelet
// removes the slices of a driver that does not come back.
func TestUninstallLeavesNothing(t *testing.T) {
	e := kit.New(t, controlled(map[string]any{"deletionCosts": true}))
	said, err := e.Kubectl(`
apiVersion: scaling.kerf.dev/v1alpha1
kind: GPUScalingHint
metadata: {name: kept}
spec: {targetRef: {apiVersion: apps/v1, kind: Deployment, name: serving}, class: Realtime, maxReplicas: 4}
`, "create", "--namespace", e.Namespace, "--filename", "-")
	require.NoError(t, err, said)
	e.Pod("instance", kit.Requests("mig-1g.10gb.gpu.nvidia.com"))
	e.Delete(e.Running("instance")...)
	e.Uninstall()

	e.Eventually("the plugin and the controllers to have ended", func(ctx context.Context) error {
		pods, err := e.Client.CoreV1().Pods(kit.SystemNamespace).List(ctx, ofKerf)
		return none(len(pods.Items), err)
	})
	// Nor does an instance stay that was kept for a next claim.
	boards, err := e.Boards()
	require.NoError(t, err)
	for _, b := range boards {
		require.Empty(t, b.Instances, "instances on %s", b.UUID)
	}
	said, err = e.Kubectl("", "get", "gsh", "kept", "--namespace", e.Namespace)
	require.NoError(t, err, said)
	// What is not in the release's namespace outlives it.
	classes, err := e.Client.ResourceV1().DeviceClasses().List(t.Context(), ofKerf)
	require.NoError(t, none(len(classes.Items), err))
	roles, err := e.Client.RbacV1().ClusterRoles().List(t.Context(), ofKerf)
	require.NoError(t, none(len(roles.Items), err))
	bindings, err := e.Client.RbacV1().ClusterRoleBindings().List(t.Context(), ofKerf)
	require.NoError(t, none(len(bindings.Items), err))
	localRoles, err := e.Client.RbacV1().Roles("").List(t.Context(), ofKerf)
	require.NoError(t, none(len(localRoles.Items), err))
	localBindings, err := e.Client.RbacV1().RoleBindings("").List(t.Context(), ofKerf)
	require.NoError(t, none(len(localBindings.Items), err))
	policies, err := e.Client.AdmissionregistrationV1().ValidatingAdmissionPolicies().List(t.Context(), ofKerf)
	require.NoError(t, none(len(policies.Items), err))
	policyBindings, err := e.Client.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().List(t.Context(), ofKerf)
	require.NoError(t, none(len(policyBindings.Items), err))
	e.Eventually("the slices to be gone", func(ctx context.Context) error {
		slices, err := e.Slices(ctx)
		return none(len(slices), err)
	})
}

// ofKerf selects what the chart made.
var ofKerf = metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=kerf"}

func none(left int, err error) error {
	if err == nil && left > 0 {
		err = fmt.Errorf("%d are left", left)
	}
	return err
}
