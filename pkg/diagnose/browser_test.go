package diagnose_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// browser finds a headless browser, or skips the test.
func browser(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("no chromium here, so the page is not opened: make packages installs it")
	return ""
}

// proxy is where a browser sends all that it asks of the network.
type proxy struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string
}

func newProxy(t *testing.T) *proxy {
	p := &proxy{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.asked = append(p.asked, r.Host)
		http.Error(w, "nothing is outside", http.StatusBadGateway)
	}))
	t.Cleanup(p.Close)
	return p
}

// pageHosts are the hosts that were asked, but for those that the browser itself asks for its own sake.
func (p *proxy) pageHosts() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	own := regexp.MustCompile(`(^|\.)(google|googleapis|gvt1|gstatic|chromium)\.(com|org)(:\d+)?$`)
	var hosts []string
	for _, host := range p.asked {
		if !own.MatchString(host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// open loads a page in a window 1280 px wide and returns its document when its scripts have run.
func open(t *testing.T, through *proxy, dark bool, page string) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "page.html")
	require.NoError(t, os.WriteFile(path, []byte(page), 0o644))
	scheme := 1
	if dark {
		scheme = 0
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, browser(t), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars",
		"--user-data-dir="+filepath.Join(dir, "profile"), "--proxy-server="+through.URL, "--window-size=1280,900",
		fmt.Sprintf("--blink-settings=preferredColorScheme=%d", scheme), "--dump-dom", "file://"+path)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s", &stderr)
	return string(out)
}

// measured is what a browser makes of a page.
type measured struct {
	// Wide is how wide all of the page is, Window how wide what one sees.
	Wide, Window float64
	Background   string
	Text         string
	// Pictures are the sizes of the boards' pictures.
	Pictures []struct{ Width, Height float64 }
	Spans    int
	// Overflowing are texts of the picture that are wider than their boxes.
	Overflowing []string
	// Smallest is the size of the smallest letters, on the screen.
	Smallest float64
}

const script = `<script>
const pictures = [...document.querySelectorAll("svg")], style = getComputedStyle(document.body);
const scale = svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
const result = {
  Wide: document.documentElement.scrollWidth, Window: innerWidth, Background: style.backgroundColor, Text: style.color,
  Pictures: pictures.map(s => { const r = s.getBoundingClientRect(); return {Width: r.width, Height: r.height}; }),
  Spans: document.querySelectorAll("svg rect").length,
  Overflowing: [...document.querySelectorAll("svg text")].filter(t => t.getBBox().width > t.parentNode.querySelector("rect").getBBox().width).map(t => t.textContent),
  Smallest: Math.min(...[...document.querySelectorAll("p,td,th,h1,h2,h3")].map(e => parseFloat(getComputedStyle(e).fontSize)),
    ...pictures.flatMap(s => [...s.querySelectorAll("text")].map(t => parseFloat(getComputedStyle(t).fontSize) * scale(s)))),
};
document.title = JSON.stringify(result);
</script>`

func measure(t *testing.T, through *proxy, dark bool, page string) measured {
	t.Helper()
	// The page itself forbids scripts; the one that measures needs leave.
	page = strings.Replace(page, "default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'", 1)
	require.Contains(t, page, "</body>")
	document := open(t, through, dark, strings.Replace(page, "</body>", script+"</body>", 1))
	_, rest, _ := strings.Cut(document, "<title>")
	title, _, _ := strings.Cut(rest, "</title>")
	var m measured
	require.NoError(t, json.Unmarshal([]byte(html.UnescapeString(title)), &m), title)
	return m
}

// The page shows the picture, asks nobody for anything, fits a window of 1280 px, and is dark where the reader wants that.
func TestPageInABrowser(t *testing.T) {
	browser(t)
	text, err := os.ReadFile("testdata/foreign.html")
	require.NoError(t, err)
	page, through := string(text), newProxy(t)
	light, dark := measure(t, through, false, page), measure(t, through, true, page)
	for _, m := range []measured{light, dark} {
		require.EqualValues(t, 1280, m.Window)
		require.LessOrEqual(t, m.Wide, m.Window, "nothing is cut off at the side")
		require.Len(t, m.Pictures, 4)
		for _, p := range m.Pictures {
			require.Greater(t, p.Width, 1000.)
			require.GreaterOrEqual(t, p.Height, 50.)
		}
		require.Equal(t, strings.Count(page, "<rect"), m.Spans)
		require.Greater(t, m.Spans, 8)
		require.Empty(t, m.Overflowing)
		require.GreaterOrEqual(t, m.Smallest, 11.5)
	}
	require.Equal(t, "rgb(255, 255, 255)", light.Background)
	require.Equal(t, "rgb(21, 24, 27)", dark.Background)
	require.NotEqual(t, light.Text, dark.Text)
	// The page as it is, without what measures.
	open(t, through, false, page)
	require.Empty(t, through.pageHosts())
}

// A page that asks somebody is found out, else the test above shows nothing.
func TestRequestsAreSeen(t *testing.T) {
	browser(t)
	through := newProxy(t)
	open(t, through, false, `<!DOCTYPE html><html><body><img src="http://elsewhere.example/pixel.png"></body></html>`)
	require.Equal(t, []string{"elsewhere.example"}, through.pageHosts())
}

// Without a browser, too: nothing in the page refers to anything outside it, and its policy forbids it.
func TestPageRefersToNothing(t *testing.T) {
	for _, name := range []string{"sound", "foreign"} {
		page, err := os.ReadFile(filepath.Join("testdata", name+".html"))
		require.NoError(t, err)
		require.Contains(t, string(page), `content="default-src 'none'; style-src 'unsafe-inline'"`)
		require.NotRegexp(t, `(?i)(src|href|action|data)\s*=|url\(|@import|<script|<link|<iframe|https?://`, string(page))
	}
}
