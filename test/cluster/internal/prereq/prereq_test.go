package prereq

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindListsAllThatIsMissing(t *testing.T) {
	bare := Finder{
		Root:     t.TempDir(),
		LookPath: func(string) (string, error) { return "", errors.New("not found") },
		UID:      func() int { return 1000 },
		OS:       "linux",
	}
	_, err := bare.Find(true)
	if err == nil {
		t.Fatal("a bare machine has everything")
	}
	for _, want := range []string{
		"root: ", "overlayfs: ", "iptables-restore (Debian package iptables)", "the go command in PATH",
		"apt-get install -y --no-install-recommends busybox-static containernetworking-plugins gcc iptables libseccomp-dev mount pkg-config",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in:\n%v", want, err)
		}
	}
	if _, err := bare.Find(false); strings.Contains(err.Error(), "gcc") {
		t.Errorf("compilers are asked for though nothing is to be built:\n%v", err)
	}
}

func TestFindOnAnotherSystem(t *testing.T) {
	_, err := Finder{Root: t.TempDir(), OS: "darwin"}.Find(false)
	if err == nil || !strings.Contains(err.Error(), "this is darwin") {
		t.Errorf("error %v does not name the system", err)
	}
}

func TestFindCNI(t *testing.T) {
	root := t.TempDir()
	f := Finder{Root: root}
	for _, file := range []string{"usr/lib/cni/bridge", "opt/cni/bin/bridge", "opt/cni/bin/host-local", "opt/cni/bin/loopback"} {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, file), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got := f.cni(); got != "/opt/cni/bin" {
		t.Errorf("found the plugins in %q; the first directory lacks two of them", got)
	}
}
