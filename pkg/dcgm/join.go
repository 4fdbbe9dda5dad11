package dcgm

import (
	"math"
	"time"
)

// Device is what a claim was prepared with: what its status says.
type Device struct {
	// Claim is its namespace/name.
	Claim string
	Key
	// Shared is true for a time-slice replica: the GPU has other users.
	Shared bool
	// PreparedAt is when the claim got it. Ids of instances are given again.
	PreparedAt time.Time
}

// State says whether there is a measurement of a device, and if not, why.
type State string

// The states.
const (
	// OK: measured.
	OK State = "OK"
	// NoSeries: there is no row. The exporter lists the instances that existed when it started or reloaded, and no
	// later ones; those, kerf's plugin measures only where the board can.
	NoSeries State = "NoSeries"
	// Stale: the latest row is too old, or from the future: the exporter, the scrape or a clock is at fault.
	Stale State = "Stale"
	// Earlier: the latest row may belong to who had the device before. A new one comes with the next collection.
	Earlier State = "Earlier"
	// NoValue: there is a row, and DCGM had no value for it.
	NoValue State = "NoValue"
)

// Reading is what is known of a device. Numbers are NaN where they are not known.
type Reading struct {
	Device
	State State
	At    time.Time
	// Utilization is in percent of the device. Where the device is shared it is that of all users together:
	// it is to be attributed to none, and not to be added up.
	Utilization float64
	// MemoryUsed and MemoryTotal are in MiB.
	MemoryUsed, MemoryTotal float64
}

// Join gives every device its rows. Interval is that in which the exporter
// collects; a row is stale after three of them. Where the exporter has no
// measurement of a device, that of kerf's plugin is taken.
func Join(devices []Device, rows []Row, now time.Time, interval time.Duration) []Reading {
	type series struct {
		Metric
		Key
		own bool
	}
	latest := make(map[series]Row, len(rows))
	for _, r := range rows {
		s := series{r.Metric, r.Key, r.Own}
		have, ok := latest[s]
		// The same series can come twice: from two exporters, or once a pod of those that share a GPU. Of equally old
		// ones the higher is taken, because taking away is what has to be sure.
		if !ok || r.At.After(have.At) || r.At.Equal(have.At) && (math.IsNaN(have.Value) || r.Value > have.Value) {
			latest[s] = r
		}
	}
	look := func(d Device, m Metric, own bool) (Row, State) {
		r, ok := latest[series{m, d.Key, own}]
		switch {
		case !ok:
			return Row{Value: math.NaN()}, NoSeries
		case now.Sub(r.At) > 3*interval || r.At.Sub(now) > interval:
			return r, Stale
		// What is scraped was collected up to an interval before.
		case r.At.Add(-interval).Before(d.PreparedAt):
			return r, Earlier
		case math.IsNaN(r.Value):
			return r, NoValue
		default:
			return r, OK
		}
	}
	pick := func(d Device, m Metric) (Row, State) {
		r, state := look(d, m, false)
		if state == OK {
			return r, state
		}
		if ours, own := look(d, m, true); own == OK || state == NoSeries {
			return ours, own
		}
		return r, state
	}
	readings := make([]Reading, 0, len(devices))
	for _, d := range devices {
		row, state := pick(d, Utilization)
		out := Reading{Device: d, State: state, At: row.At, Utilization: math.NaN(), MemoryUsed: math.NaN(), MemoryTotal: math.NaN()}
		if state == OK {
			out.Utilization = row.Value
		}
		used, usedState := pick(d, MemoryUsed)
		free, freeState := pick(d, MemoryFree)
		if usedState == OK && freeState == OK {
			out.MemoryUsed, out.MemoryTotal = used.Value, used.Value+free.Value
		}
		readings = append(readings, out)
	}
	return readings
}
