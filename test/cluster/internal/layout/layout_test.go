package layout

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	for _, name := range []string{"a", "e2e-1", strings.Repeat("a", 32)} {
		c, err := New(name)
		if err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if filepath.Dir(c.Dir()) != Base {
			t.Errorf("%q lies in %s", name, c.Dir())
		}
	}
	for _, name := range []string{"", "-a", "a-", "A", "a/b", "..", "a b", strings.Repeat("a", 33)} {
		if _, err := New(name); err == nil {
			t.Errorf("%q is taken for a name", name)
		}
	}
}

func TestCache(t *testing.T) {
	t.Setenv("KERF_CACHE", "/cache")
	if dir, err := Cache(); err != nil || dir != "/cache" {
		t.Errorf("%q, %v; want what KERF_CACHE says", dir, err)
	}
	t.Setenv("KERF_CACHE", "")
	t.Setenv("XDG_CACHE_HOME", "/xdg")
	if dir, err := Cache(); err != nil || dir != "/xdg/kerf" {
		t.Errorf("%q, %v; want /xdg/kerf", dir, err)
	}
}
