package box

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
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

// serve answers on a socket in the run directory, until the box ends: a path works across network namespaces, where no
// address would. GET / tells the status, POST /restart/NAME restarts a component.
func serve(socket string, s *supervisor, c *client) error {
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("listen for requests: %w", err)
	}
	handler := http.NewServeMux()
	handler.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		err := settled(r.Context(), s, c)
		status := Status{Components: s.states()}
		if err != nil {
			status.Problem = err.Error()
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(status) // the asker is gone if this fails
	})
	handler.HandleFunc("POST /restart/{name}", func(w http.ResponseWriter, r *http.Request) {
		if err := s.restart(r.PathValue("name")); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: handler}
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
	body, err := ask(ctx, socket, http.MethodGet, "/")
	if err != nil {
		return Status{}, err
	}
	var status Status
	if err := json.Unmarshal(body, &status); err != nil {
		return Status{}, fmt.Errorf("read the status: %w", err)
	}
	return status, nil
}

// Restart has the box's init kill a component and start it again.
func Restart(ctx context.Context, socket, component string) error {
	_, err := ask(ctx, socket, http.MethodPost, "/restart/"+component)
	return err
}

func ask(ctx context.Context, socket, method, path string) ([]byte, error) {
	client := &http.Client{
		Timeout: settleTime + 10*time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
		},
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://box"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask the box: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoBox, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("read the box's answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the box answers %s: %s", response.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}
