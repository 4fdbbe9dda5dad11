package diagnose_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/kerf-project/kerf/pkg/journal"
)

// role is what this program does instead of running tests: it is started again as somebody else on the node.
const role = "KERF_TEST_ROLE"

func TestMain(m *testing.M) {
	what, rest, _ := strings.Cut(os.Getenv(role), " ")
	switch what {
	case "register":
		socket, endpoint, _ := strings.Cut(rest, " ")
		serveRegistration(fatal{}, socket, endpoint)
	case "lock":
		holdLocks(rest)
	default:
		os.Exit(m.Run())
	}
	fmt.Println("ready")
	select {} // Until it is killed.
}

// fatal ends the program where a test would fail.
type fatal struct{}

func (fatal) Errorf(format string, args ...any) { fmt.Fprintf(os.Stderr, format, args...) }
func (fatal) FailNow()                          { os.Exit(1) }

// holdLocks takes every lock of a journal that a working plugin can hold.
func holdLocks(rest string) {
	words := strings.Fields(rest)
	j, err := journal.Open(words[0])
	require.NoError(fatal{}, err)
	_, err = j.LockPublisher(context.Background())
	require.NoError(fatal{}, err)
	_, err = j.LockClaim(context.Background(), words[1])
	require.NoError(fatal{}, err)
	_, err = j.LockGPUs(context.Background(), words[2:]...)
	require.NoError(fatal{}, err)
}

// start runs this program as somebody else until the returned function is called.
func start(t *testing.T, words ...string) (pid int, stop func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), role+"="+strings.Join(words, " "))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(stop)
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)
	return cmd.Process.Pid, stop
}

// plugin is a DRA plugin as far as the kubelet's registration goes.
type plugin struct {
	registerapi.UnimplementedRegistrationServer
	endpoint string
}

func registerPlugin(s *grpc.Server, endpoint string) {
	registerapi.RegisterRegistrationServer(s, plugin{endpoint: endpoint})
}

func (p plugin) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{Type: registerapi.DRAPlugin, Name: driver, Endpoint: p.endpoint, SupportedVersions: []string{"v1.DRAPlugin"}}, nil
}
