// Package scaling owns the decision how many replicas a workload on GPUs should
// have, of which shape, and whether that can be had: observations, a policy and
// what was seen before in, a hint with its evidence out. It is pure: it reads no
// clock, no metrics and no API, and asks about placements through Placer.
package scaling

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

// Policy is the thresholds and bounds of one workload.
type Policy struct {
	// UpAbove and DownBelow are mean utilizations in percent. Between them nothing is done.
	UpAbove, DownBelow float64
	// Cooldown is how long nothing new is decided after a change of the replicas was seen.
	Cooldown time.Duration
	// Min and Max bound the replicas, Fallback is what there should be at least when the metrics cannot be read.
	Min, Max, Fallback int
	// Interval is that in which the metrics are collected. What is older than three of them is stale.
	Interval time.Duration
}

// The limits of change. They are those of an HPA with its default behaviour for
// growth, and a gentler one for shrinking.
const (
	// upSustained is how long the utilization must have been high. With readings every 15 s it is two of them, so that
	// no single one adds GPUs.
	upSustained = 15 * time.Second
	// upPeriod is that in which the replicas may double, or grow by upReplicas if that is more.
	upPeriod   = 15 * time.Second
	upReplicas = 4
	// downSustained is how long the utilization must have been low.
	downSustained = 300 * time.Second
	// downPeriod is that in which one in downShare replicas may go, or one replica if that is more.
	downPeriod = 60 * time.Second
	downShare  = 4
	// spareSustained is how long replicas must have been more than needed before others may have them.
	spareSustained = 60 * time.Second
	// staleIntervals is the number of collections after which a measurement is stale.
	staleIntervals = 3
	// minCoverage is the share of the ready replicas that must have a measurement.
	minCoverage = 0.5
	// failedReads in a row are what the fallback is for.
	failedReads = 3
	// DefaultInterval is that of the DCGM exporter.
	DefaultInterval = 30 * time.Second
)

// classes are the thresholds of each kind of work.
func classes(c v1alpha1.Class) (up, down float64, cooldown time.Duration) {
	switch c {
	case v1alpha1.ClassRealtime:
		return 70, 30, 60 * time.Second
	case v1alpha1.ClassBatch:
		return 85, 40, 300 * time.Second
	case v1alpha1.ClassConversational:
		return 60, 25, 30 * time.Second
	default:
		return 80, 20, 60 * time.Second
	}
}

// PolicyOf is the policy that a hint's spec asks for. The spec is one that the
// API server has accepted and completed with its defaults.
func PolicyOf(spec *v1alpha1.GPUScalingHintSpec, interval time.Duration) Policy {
	p := Policy{Min: int(spec.MinReplicas), Max: int(spec.MaxReplicas), Fallback: int(spec.FallbackReplicas), Interval: interval}
	p.UpAbove, p.DownBelow, p.Cooldown = classes(spec.Class)
	if t := spec.Thresholds; t != nil {
		p.UpAbove, p.DownBelow = float64(t.ScaleUpAbove), float64(t.ScaleDownBelow)
		if t.CooldownSeconds != nil {
			p.Cooldown = time.Duration(*t.CooldownSeconds) * time.Second
		}
	}
	return p
}

// Check refuses a spec that the API server would refuse, for specs that it has
// not seen. A test of the chart compares the two.
func Check(spec *v1alpha1.GPUScalingHintSpec) error {
	known := []v1alpha1.Class{v1alpha1.ClassRealtime, v1alpha1.ClassBatch, v1alpha1.ClassConversational, v1alpha1.ClassConservative}
	switch t := spec.Thresholds; {
	case (spec.Class != "") == (t != nil):
		return errors.New("give either a class or thresholds of your own")
	case t == nil && !slices.Contains(known, spec.Class):
		return fmt.Errorf("%q is no class: expected one of %q", spec.Class, known)
	case t != nil && (t.ScaleDownBelow < 0 || t.ScaleUpAbove > 99 || t.ScaleDownBelow >= t.ScaleUpAbove):
		return fmt.Errorf("thresholds %d and %d: expected 0 to 99 percent, and scaleDownBelow below scaleUpAbove", t.ScaleDownBelow, t.ScaleUpAbove)
	case spec.MinReplicas < 1 || spec.MaxReplicas < spec.MinReplicas:
		return fmt.Errorf("%d to %d replicas: expected 1 or more, and the maximum not below the minimum", spec.MinReplicas, spec.MaxReplicas)
	}
	return nil
}

// target is the utilization that a change aims at, the middle of the two
// thresholds. Growing and shrinking aim at the same, so that neither undoes the other.
func (p Policy) target() float64 { return (p.UpAbove + p.DownBelow) / 2 }
