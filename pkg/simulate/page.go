package simulate

import (
	_ "embed" // for the page
	"fmt"
	"html/template"
	"io"
	"strings"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{"share": share}).Parse(pageText))

// The size of a chart, in its own units, and how many points it draws at most.
const (
	chartWidth, chartHeight = 1000, 200
	chartPoints             = 500
)

// WriteHTML writes one page that needs nothing else: no script, no other file.
func (r Report) WriteHTML(out io.Writer) error { return page.Execute(out, r) }

// Chart is a timeline as areas: slices in use, and above them those that are stranded.
type Chart struct {
	Width, Height  int
	Used, Stranded string
	// Waiting is a line, scaled by MostWaiting.
	Waiting     string
	MostWaiting int
	End         Seconds
}

// Chart draws the timeline.
func (r *Result) Chart() Chart {
	c := Chart{Width: chartWidth, Height: chartHeight}
	points := thin(r.Timeline)
	if len(points) == 0 {
		return c
	}
	c.End = points[len(points)-1].At
	for _, p := range points {
		c.MostWaiting = max(c.MostWaiting, p.Waiting)
	}
	var used, sum, waiting []string
	step := func(path *[]string, i int, value, of int) {
		from, to := points[i].At, c.End
		if i+1 < len(points) {
			to = points[i+1].At
		}
		x := func(at Seconds) float64 {
			if c.End == 0 { // All came at once.
				return map[bool]float64{true: 0, false: chartWidth}[len(*path)%2 == 0]
			}
			return chartWidth * float64(at) / float64(c.End)
		}
		y := float64(chartHeight)
		if of > 0 {
			y -= chartHeight * float64(value) / float64(of)
		}
		for _, at := range []Seconds{from, to} {
			*path = append(*path, fmt.Sprintf("%.1f,%.1f", x(at), y))
		}
	}
	for i, p := range points {
		step(&used, i, p.Used, r.Slices)
		step(&sum, i, p.Used+p.Stranded, r.Slices)
		step(&waiting, i, p.Waiting, c.MostWaiting)
	}
	area := func(path []string) string {
		return fmt.Sprintf("0,%d %s %d,%d", chartHeight, strings.Join(path, " "), chartWidth, chartHeight)
	}
	c.Used, c.Stranded = area(used), area(sum)
	if c.MostWaiting > 0 {
		c.Waiting = strings.Join(waiting, " ")
	}
	return c
}

// thin leaves points out, evenly, and keeps the last.
func thin(all []Point) []Point {
	if len(all) <= chartPoints {
		return all
	}
	points := make([]Point, 0, chartPoints)
	for i := range chartPoints - 1 {
		points = append(points, all[i*len(all)/chartPoints])
	}
	return append(points, all[len(all)-1])
}
