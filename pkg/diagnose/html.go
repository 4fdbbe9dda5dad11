package diagnose

import (
	_ "embed"
	"html/template"
	"io"
	"strings"
)

//go:embed report.html.tmpl
var pageText string

// The picture of a board, in the units of its SVG.
const (
	svgWidth  = 1120
	svgRow    = 52
	svgGap    = 8
	svgMargin = 2
	// svgLetter is the width of a letter of the picture's font of 12 px: monospaced ones have 0.6 of their size.
	svgLetter = 7.3
)

// box is a span of the picture.
type box struct {
	Span
	X, Y, Width, Height int
	What, Who           string
}

// boxes lays the rows of a board out. Where nothing is, each slice has a box.
func (g GPU) boxes() []box {
	var all []box
	for n, row := range g.Rows {
		for _, s := range bySlice(row) {
			left, right := g.x(s.Start), g.x(s.Start+s.Size)
			b := box{Span: s, X: left + svgMargin, Y: n * (svgRow + svgGap), Width: right - left - 2*svgMargin, Height: svgRow}
			letters := int(float64(b.Width-12) / svgLetter)
			b.What, b.Who = cut(s.what(), letters), cut(s.who(), letters)
			all = append(all, b)
		}
	}
	return all
}

func bySlice(row []Span) []Span {
	var all []Span
	for _, s := range row {
		if !s.empty() {
			all = append(all, s)
			continue
		}
		for slice := range s.Size {
			all = append(all, Span{Start: s.Start + slice, Size: 1, Use: s.Use})
		}
	}
	return all
}

func (g GPU) x(slice int) int { return svgWidth * slice / g.Slices }

// height is that of the picture.
func (g GPU) height() int { return len(g.Rows)*(svgRow+svgGap) - svgGap }

// title tells all of a span, in a tooltip and for those who do not see the picture.
func (b box) title() string {
	if b.empty() {
		return string(b.Use)
	}
	return b.legend(2)
}

// cut cuts a text to a number of letters.
func cut(s string, letters int) string {
	return strings.TrimRight(fit(s, letters, false), " ")
}

// WriteHTML writes the report as one page that refers to nothing outside itself.
func (r *Report) WriteHTML(w io.Writer) error {
	t, err := template.New("page").Funcs(template.FuncMap{
		"heading": r.heading, "verdict": r.verdict, "join": strings.Join, "shown": Claim.shown,
		"line": GPU.gpuLine, "boxes": GPU.boxes, "width": func() int { return svgWidth }, "height": GPU.height,
		"title": box.title, "middle": func(b box) int { return b.X + b.Width/2 }, "below": func(b box, by int) int { return b.Y + by },
	}).Parse(pageText)
	if err != nil {
		return err
	}
	return t.Execute(w, r)
}
