//go:build sweep

package sweep

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// patience is for a machine that does several things at once. Nothing is proven by it.
const patience = time.Minute

// call is what the kubelet asks a process for one claim.
type call func(ctx context.Context, p *process, uid string) error

// prepare is NodePrepareResources for one claim.
func prepare(ctx context.Context, p *process, uid string) error {
	return p.call(ctx, func(ctx context.Context, kubelet drapb.DRAPluginClient) error {
		answer, err := kubelet.NodePrepareResources(ctx, &drapb.NodePrepareResourcesRequest{Claims: request(uid)}, grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		switch claim := answer.Claims[uid]; {
		case claim == nil:
			return fmt.Errorf("no answer for claim %s", uid)
		case claim.Error != "":
			return errors.New(claim.Error)
		case len(claim.Devices) == 0:
			return fmt.Errorf("no devices for claim %s", uid)
		}
		return nil
	})
}

// unprepare is NodeUnprepareResources for one claim.
func unprepare(ctx context.Context, p *process, uid string) error {
	return p.call(ctx, func(ctx context.Context, kubelet drapb.DRAPluginClient) error {
		answer, err := kubelet.NodeUnprepareResources(ctx, &drapb.NodeUnprepareResourcesRequest{Claims: request(uid)}, grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		switch claim := answer.Claims[uid]; {
		case claim == nil:
			return fmt.Errorf("no answer for claim %s", uid)
		case claim.Error != "":
			return errors.New(claim.Error)
		}
		return nil
	})
}

func request(uid string) []*drapb.Claim {
	return []*drapb.Claim{{Namespace: namespace, Name: uid, Uid: uid}}
}

// ready waits until a process serves the kubelet.
func ready(ctx context.Context, p *process) error {
	return p.call(ctx, func(ctx context.Context, kubelet drapb.DRAPluginClient) error {
		_, err := kubelet.NodeUnprepareResources(ctx, &drapb.NodeUnprepareResourcesRequest{}, grpc.WaitForReady(true))
		return err
	})
}

// call talks to a process. It ends with the process.
func (p *process) call(ctx context.Context, do func(context.Context, drapb.DRAPluginClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	defer context.AfterFunc(p.alive, cancel)()
	quick := backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.2, MaxDelay: 100 * time.Millisecond}
	conn, err := grpc.NewClient("unix://"+filepath.Join(p.dir, "plugins", driverName, "dra.sock"),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick, MinConnectTimeout: time.Second}))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return do(ctx, drapb.NewDRAPluginClient(conn))
}

// pods is the kubelet's list of what its pods hold.
type pods struct {
	podresources.UnimplementedPodResourcesListerServer

	mu    sync.Mutex
	given []string
	asked int
}

func newPods(t *testing.T, dir string) *pods {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o700))
	listener, err := net.Listen("unix", filepath.Join(dir, "kubelet.sock"))
	require.NoError(t, err)
	p, server := &pods{}, grpc.NewServer()
	podresources.RegisterPodResourcesListerServer(server, p)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
	return p
}

// List answers with one pod that has been given the CDI devices.
func (p *pods) List(context.Context, *podresources.ListPodResourcesRequest) (*podresources.ListPodResourcesResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	resource := &podresources.ClaimResource{DriverName: driverName}
	for _, device := range p.given {
		resource.CdiDevices = append(resource.CdiDevices, &podresources.CDIDevice{Name: device})
	}
	container := &podresources.ContainerResources{Name: "c", DynamicResources: []*podresources.DynamicResource{{ClaimResources: []*podresources.ClaimResource{resource}}}}
	return &podresources.ListPodResourcesResponse{PodResources: []*podresources.PodResources{{Name: "p", Namespace: namespace, Containers: []*podresources.ContainerResources{container}}}}, nil
}

// give sets the CDI devices that the node's pods have.
func (p *pods) give(devices ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.given = devices
}

// times is how often the kubelet was asked.
func (p *pods) times() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}
