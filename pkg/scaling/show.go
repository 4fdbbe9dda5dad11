package scaling

import (
	"embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"
	"text/tabwriter"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

//go:embed replay.svg.tmpl
var templates embed.FS

// WriteTable writes a line for each change of what a replay says: of the replicas that are desired, or of the reason.
func WriteTable(w io.Writer, steps []Step) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "TIME\tUTIL\tREADY\tREPLICAS\tREASON\tWHY")
	var last v1alpha1.Reason
	var least, most int
	var gpuTime float64
	for i, s := range steps {
		h := s.Hint
		if i == 0 {
			least, most = h.Current, h.Current
		} else {
			gpuTime += float64(steps[i-1].Hint.Current) * h.At.Sub(steps[i-1].Hint.At).Hours()
		}
		least, most = min(least, h.Desired), max(most, h.Desired)
		if h.Direction == v1alpha1.DirectionHold && h.Reason == last {
			continue
		}
		last = h.Reason
		replicas := fmt.Sprint(h.Current)
		if h.Desired != h.Current {
			replicas = fmt.Sprintf("%d -> %d", h.Current, h.Desired)
		}
		fmt.Fprintf(out, "%s\t%s\t%d\t%s\t%s\t%s\n", h.At.Format("15:04:05"), percent(s.Utilization), s.Ready, replicas, h.Reason, h.Message)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d to %d replicas, %.1f replica hours\n", least, most, gpuTime)
	return err
}

func percent(u float64) string {
	if math.IsNaN(u) {
		return "-"
	}
	return fmt.Sprintf("%.0f %%", u)
}

// The size of the plot, in pixels, and of the margin around it.
const plotWidth, plotHeight, plotMargin = 960.0, 360.0, 40.0

// WriteSVG draws a replay: the utilization with the two thresholds, the replicas,
// and a mark with its reason, as a tooltip, at each change.
func WriteSVG(w io.Writer, p Policy, steps []Step) error {
	if len(steps) == 0 {
		return fmt.Errorf("there is nothing to draw")
	}
	begin := steps[0].Hint.At
	span := max(1, steps[len(steps)-1].Hint.At.Sub(begin).Seconds())
	most := 1
	for _, s := range steps {
		most = max(most, s.Hint.Current, s.Hint.Desired)
	}
	y := func(share float64) float64 { return plotMargin + plotHeight*(1-share) }
	type mark struct {
		X, Y  float64
		Up    bool
		Title string
	}
	var utilization, replicas strings.Builder
	var marks []mark
	gap := true
	for i, s := range steps {
		x := plotMargin + plotWidth*s.Hint.At.Sub(begin).Seconds()/span
		if math.IsNaN(s.Utilization) {
			gap = true
		} else {
			fmt.Fprintf(&utilization, "%c%.1f %.1f", map[bool]rune{true: 'M', false: 'L'}[gap], x, y(s.Utilization/100))
			gap = false
		}
		level := y(float64(s.Hint.Current) / float64(most))
		if i == 0 {
			fmt.Fprintf(&replicas, "M%.1f %.1f", x, level)
		} else {
			fmt.Fprintf(&replicas, "H%.1fV%.1f", x, level)
		}
		if s.Hint.Direction != v1alpha1.DirectionHold {
			marks = append(marks, mark{x, level, s.Hint.Desired > s.Hint.Current,
				fmt.Sprintf("%s: %d to %d, %s: %s", s.Hint.At.Format("15:04:05"), s.Hint.Current, s.Hint.Desired, s.Hint.Reason, s.Hint.Message)})
		}
	}
	t, err := template.ParseFS(templates, "replay.svg.tmpl")
	if err != nil {
		return err
	}
	return t.Execute(w, map[string]any{
		"Width": plotWidth + 2*plotMargin, "Height": plotHeight + 2*plotMargin, "Left": plotMargin, "Right": plotMargin + plotWidth,
		"Top": y(1), "Bottom": y(0), "Up": y(p.UpAbove / 100), "Down": y(p.DownBelow / 100), "Most": most,
		"UpAbove": p.UpAbove, "DownBelow": p.DownBelow, "Utilization": utilization.String(), "Replicas": replicas.String(), "Marks": marks,
		"Begin": begin.Format("2006-01-02 15:04"), "End": steps[len(steps)-1].Hint.At.Format("2006-01-02 15:04"),
	})
}
