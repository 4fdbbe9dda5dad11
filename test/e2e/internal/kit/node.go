package kit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// Where the node keeps what a claim can leave behind.
const (
	cdiDir     = "/var/run/cdi"
	journalDir = "/run/kerf"
)

// Board is a simulated GPU as "kerf sim list" tells of it.
type Board struct {
	UUID      string         `json:"uuid"`
	Minor     int            `json:"minor"`
	MIG       bool           `json:"mig"`
	TimeSlice gpu.TimeSlice  `json:"timeSlice"`
	Instances []gpu.Instance `json:"instances"`
}

// Reboot is what a node's reboot does, but for its kernel: everything ends at once, what lies on a tmpfs is gone, the
// boards are reset, and the kubelet finds its pods dead.
func (e *Env) Reboot() {
	e.t.Helper()
	kubelets, err := processes("kubelet")
	require.NoError(e.t, err)
	require.Len(e.t, kubelets, 1)
	// It must not see its pods die one after the other.
	require.NoError(e.t, unix.Kill(kubelets[0], unix.SIGSTOP))
	defer e.command(nil, "bin/cluster", "restart", "--name", os.Getenv("KERF_CLUSTER_NAME"), "kubelet")
	for task := range strings.Lines(e.command(nil, "ctr", "tasks", "list")) {
		var id, status string
		var pid int
		if n, _ := fmt.Sscan(task, &id, &pid, &status); n == 3 && status == "RUNNING" {
			require.NoError(e.t, unix.Kill(pid, unix.SIGKILL), id)
		}
	}
	e.Sim("reboot")
	for _, pattern := range []string{journalDir + "/*", cdiDir + "/*kerf*"} {
		files, err := filepath.Glob(pattern)
		require.NoError(e.t, err)
		for _, file := range files {
			require.NoError(e.t, os.RemoveAll(file))
		}
	}
}

// ReplaceDriver puts another file in the place of the driver's library, as an installation does.
func (e *Env) ReplaceDriver() {
	e.t.Helper()
	libraries, err := filepath.Glob(e.Shape.stateDir() + "/driver/usr/lib/*/libnvidia-ml.so.*.*")
	require.NoError(e.t, err)
	require.Len(e.t, libraries, 1)
	data, err := os.ReadFile(libraries[0])
	require.NoError(e.t, err)
	require.NoError(e.t, os.WriteFile(libraries[0]+".new", data, 0o755))
	require.NoError(e.t, os.Rename(libraries[0]+".new", libraries[0]))
}

// processes are those of the node whose program has that name.
func processes(name string) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return nil, err
	}
	var found []int
	for _, file := range files {
		comm, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(comm)) != name {
			continue // it may have ended meanwhile
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return nil, err
		}
		found = append(found, pid)
	}
	return found, nil
}

// Sim runs "kerf sim" on the node's simulated hardware: the outside world.
func (e *Env) Sim(args ...string) string {
	e.t.Helper()
	return e.command(nil, "bin/kerf", append([]string{"sim", "--state", e.Shape.stateDir()}, args...)...)
}

// Boards are the simulated GPUs as they are now.
func (e *Env) Boards() ([]Board, error) {
	if _, err := os.Stat(e.Shape.stateDir() + "/state.json"); err != nil {
		return nil, fmt.Errorf("the plugin has not made its boards yet: %w", err)
	}
	var boards []Board
	return boards, json.Unmarshal([]byte(e.Sim("list", "--output", "json")), &boards)
}

// nodes are the character devices of the simulated host, "/dev/nvidia0": "195:0".
func (e *Env) nodes() (map[string]string, error) {
	root := filepath.Join(e.Shape.stateDir(), "root")
	nodes := map[string]string{}
	err := filepath.WalkDir(filepath.Join(root, "dev"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var stat unix.Stat_t
		if err := unix.Lstat(path, &stat); err != nil {
			return err
		}
		if stat.Mode&unix.S_IFMT != unix.S_IFCHR {
			return fmt.Errorf("%s is no character device", path)
		}
		nodes[strings.TrimPrefix(path, root)] = fmt.Sprintf("%d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
		return nil
	})
	return nodes, err
}

// capability is the path of the node that admits to a part of a GPU, "gpu0/gi7/access", by the simulated driver's table.
func (e *Env) capability(name string) (string, error) {
	table, err := os.ReadFile(filepath.Join(e.Shape.stateDir(), "root/proc/driver/nvidia-caps/mig-minors"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(table)) {
		if minor, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			return "/dev/nvidia-caps/nvidia-cap" + minor, nil
		}
	}
	return "", fmt.Errorf("the driver has no capability %s", name)
}

// SpecFiles are the CDI specs that name a claim.
func SpecFiles(claim types.UID) ([]string, error) {
	return filepath.Glob(filepath.Join(cdiDir, "*"+string(claim)+"*"))
}

// Released says whether nothing on the node is left of a claim: no CDI spec, no record of it, none of an instance of its.
func (e *Env) Released(claim types.UID) error {
	specs, err := SpecFiles(claim)
	if err != nil {
		return err
	}
	left, err := recorded()
	if err != nil {
		return err
	}
	for path := range left {
		if left[path] == string(claim) {
			specs = append(specs, path)
		}
	}
	if len(specs) > 0 {
		return fmt.Errorf("left of claim %s: %s", claim, specs)
	}
	return nil
}

// Clean says whether nothing on the node is left of any claim. Instances that are kept for the next claim do not count.
func (e *Env) Clean() error {
	specs, err := filepath.Glob(filepath.Join(cdiDir, "*"))
	if err != nil {
		return err
	}
	left, err := recorded()
	if err != nil {
		return err
	}
	if len(specs) > 0 || len(left) > 0 {
		return fmt.Errorf("left behind: %s %v", specs, left)
	}
	return e.CheckInstances(context.Background())
}

// recorded maps the path of every record in the journal to the UID of the claim that it is of. Idle instances are nobody's.
func recorded() (map[string]string, error) {
	left := map[string]string{}
	for _, kind := range []string{"claims", "instances"} {
		all, err := records[struct{ UID, Claim, State string }](kind)
		if err != nil {
			return nil, err
		}
		for path, r := range all {
			if r.State != string(journal.InstanceIdle) {
				left[path] = r.UID + r.Claim
			}
		}
	}
	return left, nil
}

// records reads all records of a kind. They are renamed into place, so each is whole; one may go while they are listed.
func records[T any](kind string) (map[string]T, error) {
	paths, err := filepath.Glob(filepath.Join(journalDir, kind, "*.json"))
	if err != nil {
		return nil, err
	}
	all := map[string]T{}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var record T
		if err := json.Unmarshal(raw, &record); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all[path] = record
	}
	return all, nil
}

// CheckInstances compares the simulated hardware with the API: a GPU instance exists exactly while a claim that is in use
// is allocated it. Those that kerf keeps idle may be there beyond that.
func (e *Env) CheckInstances(ctx context.Context) error {
	boards, err := e.Boards()
	if err != nil {
		return err
	}
	known, err := records[journal.Instance]("instances")
	if err != nil {
		return err
	}
	idle := sets.New[string]()
	for _, r := range known {
		if r.State == journal.InstanceIdle {
			idle.Insert(place(r.Instance.GPU, r.Instance.Profile, r.Instance.Placement))
		}
	}
	got := sets.New[string]()
	for _, b := range boards {
		for _, i := range b.Instances {
			got.Insert(place(b.UUID, i.Profile, i.Placement))
		}
	}
	want := sets.New[string]()
	claims, err := e.Client.ResourceV1().ResourceClaims(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, c := range claims.Items {
		if len(c.Status.ReservedFor) == 0 {
			continue
		}
		devices, err := e.Devices(ctx, &c)
		if err != nil {
			return err
		}
		for _, d := range devices {
			if d.Type() == gpu.TypeMIG {
				want.Insert(place(d.Parent(), d.Profile(), d.Placement()))
			}
		}
	}
	return compare("the GPU instances", want, got.Difference(idle.Difference(want)))
}

func place(board, profile string, at gpu.Placement) string {
	return fmt.Sprintf("%s at %s of %s", profile, at, board)
}
