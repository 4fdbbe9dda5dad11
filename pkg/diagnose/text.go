package diagnose

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode/utf8"
)

// TextOptions are how a report is shown in a terminal.
type TextOptions struct {
	Color bool
	// ASCII draws with what every terminal has.
	ASCII bool
}

// sliceWidth is the width of a memory slice in the terminal, with its left border: eight of them fit 80 columns.
const sliceWidth = 9

// WriteText shows a report in a terminal.
func (r *Report) WriteText(w io.Writer, o TextOptions) error {
	t := &text{TextOptions: o}
	t.line("%s", r.heading())
	for _, g := range r.GPUs {
		t.line("")
		t.gpu(g)
	}
	if err := t.claims(r.Claims); err != nil {
		return err
	}
	t.line("")
	t.findings(r.Checks)
	for _, n := range r.NotLookedAt {
		t.line("not looked at: %s", n)
	}
	if r.SelfCheck != nil {
		t.selfCheck(r.SelfCheck)
	}
	t.line("")
	t.line("%s", r.verdict())
	_, err := io.WriteString(w, t.out.String())
	return err
}

func (r *Report) heading() string {
	words := []string{"node " + r.Node.Name}
	if r.Node.Name == "" {
		words[0] = "node"
	}
	if n := len(r.GPUs); n > 0 {
		words = append(words, plural(n, "GPU"))
	}
	if r.Node.DriverVersion != "" {
		words = append(words, "driver "+r.Node.DriverVersion, "CUDA "+r.Node.CUDAVersion)
	}
	if r.Node.Server != "" {
		words = append(words, "Kubernetes "+r.Node.Server)
	}
	if r.Node.Simulated {
		words = append(words, "SIMULATED")
	}
	return strings.Join(words, ", ")
}

// verdict sums the checks up.
func (r *Report) verdict() string {
	count := map[Status]int{}
	for _, c := range r.Checks {
		count[c.Status]++
	}
	switch r.Status {
	case Fail:
		return fmt.Sprintf("not sound: %s, %s", plural(count[Fail], "failure"), plural(count[Warn], "warning"))
	case Warn:
		return fmt.Sprintf("works, with %s", plural(count[Warn], "warning"))
	default:
		return fmt.Sprintf("sound: %s, all good", plural(count[OK], "check"))
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// gpuLine describes a board in words.
func (g GPU) gpuLine() string {
	words := []string{fmt.Sprintf("GPU %d", g.Index), g.Name, g.ProductName, g.PCIBusID}
	if g.Unread == "" || g.ProductName != "" {
		words = append(words, g.MIG.String())
	}
	if g.Celsius != nil {
		words = append(words, fmt.Sprintf("%d °C", *g.Celsius))
	}
	if g.UsedBytes != nil {
		words = append(words, fmt.Sprintf("%.1f of %.1f GiB used", gib(*g.UsedBytes), gib(g.MemoryBytes)))
	}
	var present []string
	for _, word := range words {
		if word != "" {
			present = append(present, word)
		}
	}
	return strings.Join(append(present, g.healthWord()), "  ")
}

func (g GPU) healthWord() string {
	switch {
	case g.Unread != "":
		return "NOT READ"
	case len(g.Conditions) == 0:
		return "healthy"
	default:
		var reasons []string
		for _, c := range g.Conditions {
			reasons = append(reasons, c.Reason)
		}
		return strings.Join(reasons, ", ")
	}
}

func gib(bytes uint64) float64 { return float64(bytes) / (1 << 30) }

// text collects the lines.
type text struct {
	TextOptions
	out strings.Builder
}

func (t *text) line(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	if t.ASCII {
		line = strings.ReplaceAll(line, "°", "")
	}
	t.out.WriteString(strings.TrimRight(line, " ") + "\n")
}

// The colours of terminals (ECMA-48, SGR).
const (
	red     = "31"
	green   = "32"
	yellow  = "33"
	magenta = "35"
	cyan    = "36"
	faint   = "2"
)

func (t *text) paint(color, s string) string {
	if !t.Color || color == "" {
		return s
	}
	return "\x1b[" + color + "m" + s + "\x1b[0m"
}

var (
	useColors    = map[Use]string{Free: faint, Unknown: red, Claimed: green, Allocated: green, Idle: cyan, Foreign: yellow, Releasing: magenta}
	statusColors = map[Status]string{OK: green, Warn: yellow, Fail: red}
)

func (t *text) gpu(g GPU) {
	line := g.gpuLine()
	if word := g.healthWord(); word != "healthy" {
		line = strings.TrimSuffix(line, word) + t.paint(red, word)
	}
	t.line("%s", line)
	if g.Unread != "" {
		t.line("  %s", g.Unread)
	}
	for _, row := range g.Rows {
		t.row(row, g.Slices)
	}
	for _, c := range g.Conditions {
		t.line("  %s on %s since %s (%s): %s", t.paint(red, c.Reason), c.Device, c.Since.UTC().Format("2006-01-02 15:04:05Z"), c.Effect, c.Message)
	}
	for _, row := range g.Rows {
		for _, s := range row {
			if !s.empty() {
				t.line("  %s", t.paint(useColors[s.Use], s.legend(g.Slices)))
			}
		}
	}
}

// legend tells all of a span.
func (s Span) legend(width int) string {
	words := []string{fmt.Sprintf("%d:%d", s.Start, s.Size), s.what(), s.who()}
	if width == 1 {
		words = words[1:]
	}
	if s.ClaimState != "" {
		words = append(words, s.ClaimState)
	} else if s.Use == Allocated {
		words = append(words, string(Allocated))
	}
	if s.GPUInstance != nil {
		words = append(words, fmt.Sprintf("GPU instance %d", *s.GPUInstance))
	}
	return strings.Join(words, "  ")
}

// border are the signs of a row: left, joint, right, horizontal, vertical, for the line above and the line below.
type border struct{ topLeft, topJoint, topRight, lowLeft, lowJoint, lowRight, across, down, dot string }

var (
	drawn = border{"┌", "┬", "┐", "└", "┴", "┘", "─", "│", "·"}
	plain = border{"+", "+", "+", "+", "+", "+", "-", "|", "."}
)

// row draws spans as boxes, each as wide as its slices.
func (t *text) row(row []Span, width int) {
	b := drawn
	if t.ASCII {
		b = plain
	}
	// A board without MIG is as wide as one with.
	scale := sliceWidth
	if width == 1 {
		scale *= 8
	}
	top, what, who, low := b.topLeft, b.down, b.down, b.lowLeft
	for i, s := range row {
		n := s.Size*scale - 1
		joint, end := b.topJoint, b.lowJoint
		if i == len(row)-1 {
			joint, end = b.topRight, b.lowRight
		}
		top += strings.Repeat(b.across, n) + joint
		low += strings.Repeat(b.across, n) + end
		first, second := s.what(), s.who()
		if s.empty() {
			dot := b.dot
			if s.Use == Unknown {
				dot = "?"
			}
			cell := strings.Repeat(" ", scale/2) + dot + strings.Repeat(" ", scale-scale/2-1)
			first = strings.TrimSuffix(strings.Repeat(cell, s.Size), " ")
		}
		what += t.paint(useColors[s.Use], fit(first, n, t.ASCII)) + b.down
		who += t.paint(useColors[s.Use], fit(second, n, t.ASCII)) + b.down
	}
	for _, line := range []string{top, what, who, low} {
		t.line("  %s", line)
	}
}

// fit cuts or fills a text to a width. Of a claim's name the end tells more than its namespace.
func fit(s string, width int, ascii bool) string {
	if over := utf8.RuneCountInString(s) - width; over > 0 {
		if _, name, ok := strings.Cut(s, "/"); ok {
			if len(name) <= width {
				return fit(name, width, ascii)
			}
			s = name
		}
		dots := "…"
		if ascii {
			dots = "~"
		}
		return string([]rune(s)[:width-1]) + dots
	}
	return s + strings.Repeat(" ", width-utf8.RuneCountInString(s))
}

func (t *text) claims(claims []Claim) error {
	if len(claims) == 0 {
		return nil
	}
	t.line("")
	var out strings.Builder
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CLAIM\tSTATE\tRECORD\tDEVICES\tPODS")
	or := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	for _, c := range claims {
		fmt.Fprintf(table, "%s/%s\t%s\t%s\t%s\t%s\n", c.Namespace, c.Name, or(c.State), or(string(c.Record)), or(strings.Join(c.Devices, ",")), or(strings.Join(c.Pods, ",")))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(out.String()) {
		t.line("%s", strings.TrimSuffix(line, "\n"))
	}
	return nil
}

func (t *text) findings(all []Finding) {
	for _, f := range all {
		about := ""
		if f.About != "" {
			about = f.About + ": "
		}
		t.line("%s  %-15s  %s%s", t.paint(statusColors[f.Status], fmt.Sprintf("%-4s", f.Status)), f.Check, about, f.Cause)
		if f.Cure != "" {
			t.line("%23scure: %s", "", f.Cure)
		}
	}
}
