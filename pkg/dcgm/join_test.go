package dcgm

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	gpuA     = "GPU-5f7f2ab1-0000-4000-8000-000000000001"
	interval = 30 * time.Second
)

var now = time.Date(2026, 1, 5, 9, 0, 0, 0, time.UTC)

// line is a row as the exporter writes it.
func line(metric Metric, instance, rest string, value any) string {
	if instance != "" {
		instance = fmt.Sprintf(`,GPU_I_PROFILE="1g.10gb",GPU_I_ID="%s"`, instance)
	}
	return fmt.Sprintf("%s{gpu=\"0\",UUID=\"%s\",pci_bus_id=\"00000000:18:00.0\",device=\"nvidia0\",modelName=\"NVIDIA H100 80GB HBM3\"%s%s} %v\n",
		metric, gpuA, instance, rest, value)
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
	// naive looks for a value of GPU_UTIL with the UUID, and takes nothing for 0.
	naive := func(rows []Row) float64 {
		for _, r := range rows {
			if r.Metric == GPUUtil && r.GPU == gpuA {
				return r.Value
			}
		}
		return 0
	}
	// naiveInstance knows instances, but not time.
	naiveInstance := func(id int) func([]Row) float64 {
		return func(rows []Row) float64 {
			for _, r := range rows {
				if r.Metric == EngineActive && r.Instance == id {
					return r.Value * 100
				}
			}
			return 0
		}
	}
	for name, c := range map[string]struct {
		rows      []Row
		naive     func([]Row) float64
		naiveSays float64
		device    Device
		state     State
		want      float64
	}{
		"a MIG instance has no GPU_UTIL": {
			parse(t, now, line(GPUUtil, "", "", 93), line(EngineActive, "3", "", 0.42), line(EngineActive, "", "", 0.9)),
			naive, 93, mig(3, hourAgo), OK, 42,
		},
		"the whole GPU is not one of its instances": {
			parse(t, now, line(EngineActive, "3", "", 0.9)),
			naiveInstance(3), 90, whole(hourAgo), NoSeries, math.NaN(),
		},
		"an instance made after the exporter's start has no row": {
			parse(t, now, line(EngineActive, "3", "", 0.42)),
			naiveInstance(5), 0, mig(5, hourAgo), NoSeries, math.NaN(),
		},
		"an id is given again": {
			parse(t, now, line(EngineActive, "3", "", 0.97)),
			naiveInstance(3), 97, mig(3, now.Add(time.Second)), Earlier, math.NaN(),
		},
		"what is scraped after the preparation was collected before": {
			parse(t, now, line(EngineActive, "3", "", 0.97)),
			naiveInstance(3), 97, mig(3, now.Add(-10*time.Second)), Earlier, math.NaN(),
		},
		"old rows": {
			parse(t, now.Add(-3*interval-time.Second), line(GPUUtil, "", "", 12)),
			naive, 12, whole(hourAgo), Stale, math.NaN(),
		},
		"rows of a clock that is ahead": {
			parse(t, now.Add(interval+time.Second), line(GPUUtil, "", "", 12)),
			naive, 12, whole(hourAgo), Stale, math.NaN(),
		},
		"DCGM's other blanks": {
			parse(t, now, line(GPUUtil, "", "", 2147483632)),
			naive, 2147483632, whole(hourAgo), NoValue, math.NaN(),
		},
		"two rows, the newer second": {
			append(parse(t, now.Add(-interval), line(GPUUtil, "", "", 12)), parse(t, now, line(GPUUtil, "", "", 80))...),
			naive, 12, whole(hourAgo), OK, 80,
		},
		"two rows of one moment": {
			parse(t, now, line(GPUUtil, "", `,pod="a"`, 12), line(GPUUtil, "", `,pod="b"`, 80)),
			naive, 12, whole(hourAgo), OK, 80,
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.naiveSays, c.naive(c.rows))
			got := Join([]Device{c.device}, c.rows, now, interval)[0]
			require.Equal(t, c.state, got.State)
			if math.IsNaN(c.want) {
				require.True(t, math.IsNaN(got.Utilization), "%v", got.Utilization)
			} else {
				require.Equal(t, c.want, got.Utilization)
			}
		})
	}
}

// DCGM writes its blank as a number, which no filter of NaN sees.
func TestBlankIsNoValue(t *testing.T) {
	text := line(GPUUtil, "", "", "9223372036854775794")
	require.Contains(t, text, " 9223372036854775794\n")
	rows := parse(t, now, text)
	require.True(t, math.IsNaN(rows[0].Value))
	require.Equal(t, NoValue, Join([]Device{whole(now.Add(-time.Hour))}, rows, now, interval)[0].State)
}

// NaN is above no threshold, so who only asks for that takes it for idle.
func TestNaNIsNoValue(t *testing.T) {
	rows := parse(t, now, line(GPUUtil, "", "", "NaN"), line(GPUUtil, "", `,pod="b"`, 80))
	const upAbove = 70
	require.False(t, rows[0].Value > upAbove)
	require.Equal(t, NoValue, Join([]Device{whole(now.Add(-time.Hour))}, rows[:1], now, interval)[0].State)
	require.Equal(t, 80.0, Join([]Device{whole(now.Add(-time.Hour))}, rows, now, interval)[0].Utilization, "of two rows the one that has a value")
}

// Each of the pods that share a GPU has the GPU's own value: their sum is nonsense, and the device is marked.
func TestSharedIsMarkedAndNotSummed(t *testing.T) {
	var lines []string
	var devices []Device
	for i := range 4 {
		lines = append(lines, line(GPUUtil, "", fmt.Sprintf(`,pod="p%d"`, i), 55))
		d := whole(now.Add(-time.Hour))
		d.Claim, d.Shared = fmt.Sprintf("ns/c%d", i), true
		devices = append(devices, d)
	}
	rows := parse(t, now, lines...)
	sum := 0.0
	for _, r := range rows {
		sum += r.Value
	}
	require.Equal(t, 220.0, sum, "the naive sum")
	for _, r := range Join(devices, rows, now, interval) {
		require.Equal(t, 55.0, r.Utilization)
		require.True(t, r.Shared)
	}
}

func TestMemory(t *testing.T) {
	rows := parse(t, now, line(EngineActive, "3", "", 0.5), line(MemoryUsed, "3", "", 6000), line(MemoryFree, "3", "", 3984), line(MemoryUsed, "", "", 70000))
	got := Join([]Device{mig(3, now.Add(-time.Hour)), whole(now.Add(-time.Hour))}, rows, now, interval)
	require.Equal(t, 6000.0, got[0].MemoryUsed)
	require.Equal(t, 9984.0, got[0].MemoryTotal)
	require.True(t, math.IsNaN(got[1].MemoryUsed), "without what is free nothing is known of the total")
}
