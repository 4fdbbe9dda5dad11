package cdispec

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseMajors(t *testing.T) {
	f, err := os.Open("testdata/host/proc/devices")
	require.NoError(t, err)
	defer f.Close()
	majors, err := parseMajors(f)
	require.NoError(t, err)
	require.Equal(t, int64(195), majors["nvidia"])
	require.Equal(t, int64(238), majors["nvidia-caps"])
	require.Equal(t, int64(508), majors["nvidia-uvm"])
	require.NotContains(t, majors, "loop", "block devices have majors of their own")

	majors, err = parseMajors(strings.NewReader("Character devices:\n  5 one thing\n 6 one thing\n"))
	require.NoError(t, err)
	require.Equal(t, map[string]int64{"one thing": 5}, majors)
	for _, bad := range []string{"Character devices:\nnvidia 195\n", "Character devices:\n195\n", "Character devices:\n-1 nvidia\n"} {
		_, err = parseMajors(strings.NewReader(bad))
		require.Error(t, err, bad)
	}
}

func TestParseMIGMinors(t *testing.T) {
	minors, err := parseMIGMinors(strings.NewReader("config 1\n\ngpu0/gi0/access 3\ngpu0/gi0/ci0/access 4\n"))
	require.NoError(t, err)
	require.Equal(t, map[string]int64{"config": 1, "gpu0/gi0/access": 3, "gpu0/gi0/ci0/access": 4}, minors)
	for _, bad := range []string{"config\n", "config one\n", "config -1\n", "config 1 2\n"} {
		_, err = parseMIGMinors(strings.NewReader(bad))
		require.ErrorContains(t, err, strings.TrimSpace(bad))
	}
}

func TestBoardMajorOfOldDrivers(t *testing.T) {
	for devices, want := range map[string]int64{
		"Character devices:\n200 nvidia-frontend\n":             200,
		"Character devices:\n200 nvidia-frontend\n201 nvidia\n": 201,
		"Character devices:\n  1 mem\n":                         gpuMajor,
	} {
		root := t.TempDir()
		require.NoError(t, os.MkdirAll(root+"/proc", 0o755))
		require.NoError(t, os.WriteFile(root+"/"+devicesFile, []byte(devices), 0o644))
		h := hostFiles{root: root}
		got, err := h.boards()
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func FuzzParseMajors(f *testing.F) {
	text, err := os.ReadFile("testdata/host/proc/devices")
	require.NoError(f, err)
	f.Add(string(text))
	f.Fuzz(func(t *testing.T, text string) {
		majors, err := parseMajors(strings.NewReader(text))
		if err != nil {
			require.Nil(t, majors)
			return
		}
		for name, major := range majors {
			require.GreaterOrEqual(t, major, int64(0))
			require.Contains(t, text, name)
		}
	})
}

func FuzzParseMIGMinors(f *testing.F) {
	text, err := os.ReadFile("testdata/host/proc/driver/nvidia-caps/mig-minors")
	require.NoError(f, err)
	f.Add(string(text[:400]))
	f.Fuzz(func(t *testing.T, text string) {
		minors, err := parseMIGMinors(strings.NewReader(text))
		if err != nil {
			require.Nil(t, minors)
			return
		}
		for name, minor := range minors {
			require.GreaterOrEqual(t, minor, int64(0))
			require.Contains(t, text, name)
		}
	})
}
