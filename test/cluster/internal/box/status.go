package box

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// settleTime is how long a problem has to last before it is one. The controller that taints nodes looks every five
// seconds, and one that became ready while it looked has the taint "not-ready" until it looks again.
const settleTime = 8 * time.Second

// ComponentStatus tells of one component.
type ComponentStatus struct {
	Name string `json:"name"`
	// Pid is that inside the box.
	Pid int `json:"pid"`
	// State is "running" or how the component ended.
	State string `json:"state"`
}

// Status tells whether the cluster can be used.
type Status struct {
	Components []ComponentStatus `json:"components"`
	// Problem is empty when everything runs and the node is ready.
	Problem string `json:"problem,omitempty"`
}

// serveStatus answers on a socket in the run directory, until the box ends: a path works across network namespaces, where
// no address would.
func serveStatus(socket string, s *supervisor, c *client) error {
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("listen for status requests: %w", err)
	}
	server := &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			err := settled(r.Context(), s, c)
			status := Status{Components: s.states()}
			if err != nil {
				status.Problem = err.Error()
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(status) // the asker is gone if this fails
		}),
	}
	go func() { _ = server.Serve(listener) }()
	return nil
}

// settled returns what keeps the cluster from being used, and does not do so before it is sure.
func settled(ctx context.Context, s *supervisor, c *client) error {
	for deadline := time.Now().Add(settleTime); ; {
		if err := s.died(); err != nil {
			return err
		}
		err := c.usable(ctx)
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// ErrNoBox says that no box answers.
var ErrNoBox = errors.New("no box answers")

// AskStatus asks the box's init through its socket, from outside.
func AskStatus(ctx context.Context, socket string) (Status, error) {
	client := &http.Client{
		Timeout: settleTime + 10*time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
		},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://box/", nil)
	if err != nil {
		return Status{}, fmt.Errorf("ask for the status: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return Status{}, fmt.Errorf("%w: %w", ErrNoBox, err)
	}
	defer response.Body.Close()
	var status Status
	if err := json.NewDecoder(response.Body).Decode(&status); err != nil {
		return Status{}, fmt.Errorf("read the status: %w", err)
	}
	return status, nil
}
