package kit

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// patience bounds every wait. It says nothing about speed: a busy machine is slow, and nothing may hang for ever.
	patience = 2 * time.Minute
	interval = 200 * time.Millisecond
)

// Env is what one test works with: a cluster on whose node kerf runs, and a namespace that ends with the test.
type Env struct {
	t testing.TB
	// Config is the administrator's access to the API server.
	Config *rest.Config
	Client kubernetes.Interface
	// Namespace is the test's own.
	Namespace string
	// Shape is what the node is made of.
	Shape Shape
	// reported is set when the failure of the test was explained.
	reported bool
}

// New installs kerf on a node of that shape, unless it is there already, and makes a namespace. At the end of the test
// the namespace is deleted, and the node has to be as if nothing had ever run on it.
func New(t testing.TB, shape Shape) *Env {
	t.Helper()
	return newIn(t, shape, metav1.ObjectMeta{GenerateName: "e2e-"})
}

// NewIn is New with a namespace of that name, for manifests that name it.
func NewIn(t testing.TB, shape Shape, namespace string) *Env {
	t.Helper()
	return newIn(t, shape, metav1.ObjectMeta{Name: namespace})
}

func newIn(t testing.TB, shape Shape, meta metav1.ObjectMeta) *Env {
	t.Helper()
	e := Connect(t)
	e.Shape = shape
	t.Cleanup(e.report)
	e.install()
	namespace, err := e.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: meta}, metav1.CreateOptions{})
	require.NoError(t, err)
	e.Namespace = namespace.Name
	t.Cleanup(e.end)
	// What a pod needs that comes with a namespace a moment later.
	e.Eventually("the default service account", func(ctx context.Context) error {
		_, err := e.Client.CoreV1().ServiceAccounts(e.Namespace).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	return e
}

// Connect is access to the cluster that the tests run in.
func Connect(t testing.TB) *Env {
	t.Helper()
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	require.NoError(t, err, "these tests run inside the local cluster: use \"make e2e\"")
	config.QPS, config.Burst = 100, 200
	client, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	return &Env{t: t, Config: config, Client: client}
}

// end deletes all that the test made, and looks for leftovers.
func (e *Env) end() {
	// While there still is something to be seen.
	e.report()
	namespaces := e.Client.CoreV1().Namespaces()
	// The test's own context is over.
	require.NoError(e.t, namespaces.Delete(context.Background(), e.Namespace, metav1.DeleteOptions{}))
	e.Eventually("the namespace to be gone", func(ctx context.Context) error {
		_, err := namespaces.Get(ctx, e.Namespace, metav1.GetOptions{})
		return Gone("namespace "+e.Namespace, err)
	})
	e.Eventually("the node to be clean", func(context.Context) error { return e.Clean() })
}

// Eventually waits until check returns no error, and fails the test with the last error after a long time.
func (e *Env) Eventually(what string, check func(context.Context) error) {
	e.t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(context.Background(), interval, patience, true, func(ctx context.Context) (bool, error) {
		last = check(ctx)
		return last == nil, nil
	})
	require.NoError(e.t, err, "waiting for %s: %v", what, last)
}

// Gone is nil for the error of a read that found nothing.
func Gone(what string, err error) error {
	switch {
	case err == nil:
		return fmt.Errorf("%s is still there", what)
	case apierrors.IsNotFound(err):
		return nil
	}
	return err
}
