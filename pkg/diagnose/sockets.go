package diagnose

import (
	"context"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kerf-project/kerf/pkg/plugin"
)

// ours are the registrations of this driver that kerf's plugins hold, and rivals those that others do.
func (f *facts) ours() (ours, rivals []plugin.Registration) {
	return plugin.Rivals(f.registrations, f.Driver, self)
}

// devicePluginsIn are the sockets of NVIDIA's device plugins that are alive.
func devicePluginsIn(ctx context.Context, dir string) []string {
	sockets, err := filepath.Glob(filepath.Join(dir, "nvidia-*.sock"))
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(sockets, func(path string) bool { return plugin.Dial(ctx, path) != nil })
}

// askReady asks the plugin for its readiness: the kubelet has registered it, and its pool is published.
func (f *facts) askReady(ctx context.Context) {
	if f.Readyz == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, socketTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, f.Readyz, nil)
	if err != nil {
		f.skip("the plugin's readiness: %v", err)
		return
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		f.notReady = err.Error()
		return
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1000))
	if answer.StatusCode != http.StatusOK || err != nil {
		f.notReady = orDefault(strings.TrimSpace(string(text)), answer.Status)
	}
}
