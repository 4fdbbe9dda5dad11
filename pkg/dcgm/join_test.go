package dcgm

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The names of the exporter's series.
const (
	gpuUtil      = "DCGM_FI_DEV_GPU_UTIL"
	engineActive = "DCGM_FI_PROF_GR_ENGINE_ACTIVE"
	fbUsed       = "DCGM_FI_DEV_FB_USED"
	fbFree       = "DCGM_FI_DEV_FB_FREE"
)

const (
	gpuA     = "GPU-5f7f2ab1-0000-4000-8000-000000000001"
	interval = 30 * time.Second
)

var now = time.Date(2026, 1, 5, 9, 0, 0, 0, time.UTC)

// line is a row as the exporter writes it.
func line(metric, instance, rest string, value any) string {
	if instance != "" {
		instance = fmt.Sprintf(`,GPU_I_PROFILE="1g.10gb",GPU_I_ID="%s"`, instance)
	}
	return fmt.Sprintf("%s{gpu=\"0\",UUID=\"%s\",pci_bus_id=\"00000000:18:00.0\",device=\"nvidia0\",modelName=\"NVIDIA H100 80GB HBM3\"%s%s} %v\n",
		metric, gpuA, instance, rest, value)
}

// ours is a row as kerf's plugin writes it.
func ours(metric string, instance int, value any) string {
	return fmt.Sprintf("kerf_instance_%s{GPU_I_ID=\"%d\",UUID=\"%s\"} %v\n", metric, instance, gpuA, value)
}

// plain is the first value of a series in a text: what who greps for it finds, and 0 without one.
func plain(text, metric, label string) float64 {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, metric+"{") && strings.Contains(line, label) {
			value, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndex(line, " "):]), 64)
			if err == nil {
				return value
			}
		}
	}
	return 0
}

func parse(t *testing.T, at time.Time, lines ...string) []Row {
	t.Helper()
	rows, err := Parse([]byte(strings.Join(lines, "")), at)
	require.NoError(t, err)
	return rows
}

func whole(prepared time.Time) Device {
	return Device{Claim: "ns/a", Key: Key{gpuA, NoInstance}, PreparedAt: prepared}
}

func mig(instance int, prepared time.Time) Device {
	return Device{Claim: "ns/a", Key: Key{gpuA, instance}, PreparedAt: prepared}
}

// Each trap: what a reader that does not know it makes of the rows, and what we make.
func TestTraps(t *testing.T) {
	hourAgo := now.Add(-time.Hour)
	// sample is a text and when it was scraped.
	type sample struct {
		text string
		at   time.Time
	}
	one := func(lines ...string) []sample { return []sample{{strings.Join(lines, ""), now}} }
	// naive looks for a value of GPU_UTIL with the UUID, and takes nothing for 0.
	naive := func(text string) float64 { return plain(text, gpuUtil, gpuA) }
	// naiveInstance knows instances, but not time.
	naiveInstance := func(id int) func(string) float64 {
		return func(text string) float64 { return plain(text, engineActive, fmt.Sprintf(`GPU_I_ID="%d"`, id)) * 100 }
	}
	for name, c := range map[string]struct {
		scraped   []sample
		naive     func(string) float64
		naiveSays float64
		device    Device
		state     State
		want      float64
	}{
		"a MIG instance has no GPU_UTIL": {
			one(line(gpuUtil, "", "", 93), line(engineActive, "3", "", 0.42), line(engineActive, "", "", 0.9)),
			naive, 93, mig(3, hourAgo), OK, 42,
		},
		"the whole GPU is not one of its instances": {
			one(line(engineActive, "3", "", 0.9)),
			naiveInstance(3), 90, whole(hourAgo), NoSeries, math.NaN(),
		},
		"an instance made after the exporter's start has no row": {
			one(line(engineActive, "3", "", 0.42)),
			naiveInstance(5), 0, mig(5, hourAgo), NoSeries, math.NaN(),
		},
		"an id is given again": {
			one(line(engineActive, "3", "", 0.97)),
			naiveInstance(3), 97, mig(3, now.Add(time.Second)), Earlier, math.NaN(),
		},
		"what is scraped after the preparation was collected before": {
			one(line(engineActive, "3", "", 0.97)),
			naiveInstance(3), 97, mig(3, now.Add(-10*time.Second)), Earlier, math.NaN(),
		},
		"old rows": {
			[]sample{{line(gpuUtil, "", "", 12), now.Add(-3*interval - time.Second)}},
			naive, 12, whole(hourAgo), Stale, math.NaN(),
		},
		"rows of a clock that is ahead": {
			[]sample{{line(gpuUtil, "", "", 12), now.Add(interval + time.Second)}},
			naive, 12, whole(hourAgo), Stale, math.NaN(),
		},
		"DCGM's other blanks": {
			one(line(gpuUtil, "", "", 2147483632)),
			naive, 2147483632, whole(hourAgo), NoValue, math.NaN(),
		},
		"a whole GPU has engines too, which are no utilization": {
			one(line(engineActive, "", "", 0.9)),
			naive, 0, whole(hourAgo), NoSeries, math.NaN(),
		},
		"GPU_UTIL of an instance is not the instance's": {
			one(line(gpuUtil, "3", "", 93), line(engineActive, "3", "", 0.42)),
			naive, 93, mig(3, hourAgo), OK, 42,
		},
		"kerf knows what the exporter does not list": {
			one(line(engineActive, "3", "", 0.42), ours("engine_active_ratio", 5, 0.75)),
			naiveInstance(5), 0, mig(5, hourAgo), OK, 75,
		},
		"kerf knows what the exporter has no value for": {
			one(line(engineActive, "5", "", "NaN"), ours("engine_active_ratio", 5, 0.75)),
			naiveInstance(5), math.NaN(), mig(5, hourAgo), OK, 75,
		},
		"the exporter's value wins, although kerf's is higher": {
			one(line(engineActive, "5", "", 0.25), ours("engine_active_ratio", 5, 0.75)),
			func(text string) float64 { return plain(text, "kerf_instance_engine_active_ratio", `"5"`) * 100 }, 75, mig(5, hourAgo), OK, 25,
		},
		"kerf's is new where the exporter's is old": {
			[]sample{{line(engineActive, "5", "", 0.25), now.Add(-4 * interval)}, {ours("engine_active_ratio", 5, 0.75), now}},
			naiveInstance(5), 25, mig(5, hourAgo), OK, 75,
		},
		"kerf's too can be of who had the id before": {
			one(ours("engine_active_ratio", 5, 0.75)),
			func(text string) float64 { return plain(text, "kerf_instance_engine_active_ratio", `"5"`) * 100 }, 75, mig(5, now.Add(time.Second)), Earlier, math.NaN(),
		},
		"memory is no utilization": {
			one(ours("memory_used_bytes", 5, 0)),
			naiveInstance(5), 0, mig(5, hourAgo), NoSeries, math.NaN(),
		},
		"two rows, the newer second": {
			[]sample{{line(gpuUtil, "", "", 12), now.Add(-interval)}, {line(gpuUtil, "", "", 80), now}},
			naive, 12, whole(hourAgo), OK, 80,
		},
		"two rows of one moment": {
			one(line(gpuUtil, "", `,pod="a"`, 12), line(gpuUtil, "", `,pod="b"`, 80)),
			naive, 12, whole(hourAgo), OK, 80,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var rows []Row
			for _, sample := range c.scraped {
				rows = append(rows, parse(t, sample.at, sample.text)...)
			}
			requireSame(t, c.naiveSays, c.naive(c.scraped[0].text))
			got := Join([]Device{c.device}, rows, now, interval)[0]
			require.Equal(t, c.state, got.State)
			requireSame(t, c.want, got.Utilization)
		})
	}
}

// requireSame takes NaN for equal to NaN.
func requireSame(t *testing.T, want, got float64) {
	t.Helper()
	if !math.IsNaN(want) || !math.IsNaN(got) {
		require.Equal(t, want, got)
	}
}

// DCGM writes its blank as a number, which no filter of NaN sees.
func TestBlankIsNoValue(t *testing.T) {
	text := line(gpuUtil, "", "", "9223372036854775794")
	require.Contains(t, text, " 9223372036854775794\n")
	rows := parse(t, now, text)
	require.True(t, math.IsNaN(rows[0].Value))
	require.Equal(t, NoValue, Join([]Device{whole(now.Add(-time.Hour))}, rows, now, interval)[0].State)
}

// NaN is above no threshold, so who only asks for that takes it for idle.
func TestNaNIsNoValue(t *testing.T) {
	rows := parse(t, now, line(gpuUtil, "", "", "NaN"), line(gpuUtil, "", `,pod="b"`, 80))
	const upAbove = 70
	require.False(t, rows[0].Value > upAbove)
	require.Equal(t, NoValue, Join([]Device{whole(now.Add(-time.Hour))}, rows[:1], now, interval)[0].State)
	require.Equal(t, 80.0, Join([]Device{whole(now.Add(-time.Hour))}, rows, now, interval)[0].Utilization, "of two rows the one that has a value")
}

// Each of the pods that share a GPU has the GPU's own value: their sum is nonsense, and the device is marked.
func TestSharedIsMarkedAndNotSummed(t *testing.T) {
	var lines []string
	sum := 0.0
	var devices []Device
	for i := range 4 {
		lines = append(lines, line(gpuUtil, "", fmt.Sprintf(`,pod="p%d"`, i), 55))
		sum += plain(lines[i], gpuUtil, gpuA)
		d := whole(now.Add(-time.Hour))
		d.Claim, d.Shared = fmt.Sprintf("ns/c%d", i), true
		devices = append(devices, d)
	}
	rows := parse(t, now, lines...)
	require.Equal(t, 220.0, sum, "the naive sum")
	for _, r := range Join(devices, rows, now, interval) {
		require.Equal(t, 55.0, r.Utilization)
		require.True(t, r.Shared)
	}
}

func TestMemory(t *testing.T) {
	rows := parse(t, now, line(engineActive, "3", "", 0.5), line(fbUsed, "3", "", 6000), line(fbFree, "3", "", 3984), line(fbUsed, "", "", 70000),
		ours("memory_used_bytes", 5, 3<<30), ours("memory_free_bytes", 5, 5<<30))
	got := Join([]Device{mig(3, now.Add(-time.Hour)), whole(now.Add(-time.Hour)), mig(5, now.Add(-time.Hour))}, rows, now, interval)
	require.Equal(t, 3072.0, got[2].MemoryUsed)
	require.Equal(t, 8192.0, got[2].MemoryTotal)
	require.Equal(t, 6000.0, got[0].MemoryUsed)
	require.Equal(t, 9984.0, got[0].MemoryTotal)
	require.True(t, math.IsNaN(got[1].MemoryUsed), "without what is free nothing is known of the total")
}
