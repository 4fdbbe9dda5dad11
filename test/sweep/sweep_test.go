//go:build sweep

package sweep

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/claims/crash"
)

// scenarios are all cases of a shape. With beside, which is nil for a shape that
// toggles nothing, two processes keep each other from preparing its claim.
func scenarios(s shape, alone operations, beside *operations, b crash.Break, afters ...aftermath) []scenario {
	var all []scenario
	add := func(o operations, from, to int, unprepare bool, after aftermath) {
		for at := from; at < to; at++ {
			for _, late := range []bool{false, true} {
				done := at
				if late {
					done++
				}
				if after == paused && late || after == swapped && !o.swappable(s.devices[0], done) {
					continue // There is no such case.
				}
				all = append(all, scenario{shape: s, unprepare: unprepare, at: at, name: o.all[at], late: late, after: after, broken: b})
			}
		}
	}
	for _, after := range afters {
		if o := alone; beside != nil && (after == second || after == paused) {
			add(*beside, beside.prepare, len(beside.all), false, after)
		} else {
			add(o, o.prepare, o.unprepare, false, after)
		}
		add(alone, alone.unprepare, len(alone.all), true, after)
	}
	return all
}

// every is how many cases there are for each that is run.
func every() int {
	if os.Getenv("SWEEP") == "quick" {
		return 5
	}
	return 1
}

// A process that is killed at any operation leaves nothing wrong.
func TestSweep(t *testing.T) {
	afters := []aftermath{retried, released, second, paused, swapped}
	var table []string
	var planned int
	var passed atomic.Int64
	t.Run("cases", func(t *testing.T) {
		for _, s := range shapes() {
			alone := enumerate(t, s, "")
			t.Logf("%s: Prepare\n  %s\nUnprepare\n  %s", s.name, strings.Join(alone.all[alone.prepare:alone.unprepare], "\n  "), strings.Join(alone.all[alone.unprepare:], "\n  "))
			var beside *operations
			if s.toggles {
				o := enumerateBeside(t, s, "")
				beside = &o
				t.Logf("%s: Prepare beside a second process, which is refused and undone\n  %s", s.name, strings.Join(o.all[o.prepare:], "\n  "))
			}
			counts := map[aftermath]int{}
			for i, c := range scenarios(s, alone, beside, "", afters...) {
				if i%every() != 0 {
					continue
				}
				counts[c.after]++
				planned++
				t.Run(fmt.Sprintf("%s/%s/%s", s.name, c.after, c), func(t *testing.T) {
					t.Parallel()
					require.Empty(t, c.run(t))
					passed.Add(1)
				})
			}
			line := fmt.Sprintf("%-40s %3d + %-3d", s.name, alone.unprepare-alone.prepare, len(alone.all)-alone.unprepare)
			for _, after := range afters {
				line += fmt.Sprintf(" %4d", counts[after])
			}
			table = append(table, line)
		}
	})
	t.Logf("operations of Prepare + Unprepare, and the cases of each kind: %q\n  %s\n%d cases, %d without a violation", afters, strings.Join(table, "\n  "), planned, passed.Load())
}

// The sweep notices an engine that breaks one of its promises.
func TestBrokenEnginesAreCaught(t *testing.T) {
	// After what each of them shows, if anything does.
	tell := map[crash.Break]aftermath{crash.NoIntent: retried, crash.NoUndo: retried, crash.NoLock: paused, crash.NoVerify: swapped}
	for _, b := range crash.Breaks() {
		t.Run(string(b), func(t *testing.T) {
			s := shapes()[0]
			all := scenarios(s, enumerate(t, s, b), nil, b, tell[b])
			var mu sync.Mutex
			var caught []string
			t.Run("cases", func(t *testing.T) {
				for _, c := range all {
					t.Run(c.String(), func(t *testing.T) {
						t.Parallel()
						if wrong := c.run(t); len(wrong) > 0 {
							mu.Lock()
							defer mu.Unlock()
							caught = append(caught, fmt.Sprintf("%s: %s", c, wrong))
						}
					})
				}
			})
			require.NotEmpty(t, caught, "none of %d cases has found anything", len(all))
			t.Logf("%s: %d of %d cases have found it:\n  %s", b, len(caught), len(all), strings.Join(caught, "\n  "))
		})
	}
}
