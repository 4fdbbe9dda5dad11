package simulate

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// Report is one result for each order that was compared.
type Report struct {
	Results []*Result `json:"results"`
}

// Fits reports whether everything was placed, with every order.
func (r Report) Fits() bool {
	return !slices.ContainsFunc(r.Results, func(one *Result) bool { return one.Summary.Never > 0 })
}

// WriteText writes the report for people: the comparison, then the first order's details.
func (r Report) WriteText(out io.Writer) error {
	w := &strings.Builder{}
	first := r.Results[0]
	fmt.Fprintf(w, "%s, %s, %s\n\n", plural(first.Nodes, "node"), plural(first.GPUs, "GPU"), plural(first.Slices, "memory slice"))
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ORDER\tJOBS\tAT ONCE\tWAITED\tNEVER\tLONGEST WAIT\tSLICES USED\tPEAK\tSTRANDED\tPEAK")
	for _, one := range r.Results {
		s := one.Summary
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%s\t%s\t%d\t%s\t%d\n", one.Order, s.Jobs, s.AtOnce, s.Waited, s.Never, s.LongestWait,
			share(s.MeanUsed, one.Slices), s.PeakUsed, share(s.MeanStranded, one.Slices), s.PeakStranded)
	}
	table.Flush()

	fmt.Fprintln(w)
	table = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "WORKLOAD\tJOBS\tAT ONCE\tWAITED\tNEVER\tNODES")
	for _, one := range first.Workloads() {
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%s\n", one.Name, one.Jobs, one.AtOnce, one.Waited, one.Never, one.Nodes)
	}
	table.Flush()
	for _, refusal := range first.Refusals {
		fmt.Fprintf(w, "\n%s did not fit at %s:\n", refusal.Job, refusal.At)
		for _, why := range refusal.Why {
			fmt.Fprintf(w, "  %s\n", why)
		}
	}
	if len(first.Ignored) > 0 {
		fmt.Fprintf(w, "\nignored: %s\n", strings.Join(first.Ignored, ", "))
	}
	_, err := io.WriteString(out, w.String())
	return err
}

// Workload is what came of the jobs of a workload.
type Workload struct {
	Name                        string
	Jobs, AtOnce, Waited, Never int
	// Nodes are the nodes with the number of jobs on them, the fullest first.
	Nodes string
}

// Workloads adds the jobs up by workload, in the order in which these came.
func (r *Result) Workloads() []Workload {
	var all []Workload
	nodes := map[string]map[string]int{}
	for _, j := range r.Jobs {
		i := slices.IndexFunc(all, func(w Workload) bool { return w.Name == j.Workload })
		if i < 0 {
			all, i = append(all, Workload{Name: j.Workload}), len(all)
			nodes[j.Workload] = map[string]int{}
		}
		w := &all[i]
		w.Jobs++
		switch {
		case j.Placed == nil:
			w.Never++
		case *j.Placed == j.At:
			w.AtOnce++
		default:
			w.Waited++
		}
		if j.Placed != nil {
			nodes[j.Workload][j.Node]++
		}
	}
	for i := range all {
		all[i].Nodes = nodesText(nodes[all[i].Name])
	}
	return all
}

// maxNodes bounds the nodes that a line names.
const maxNodes = 4

func nodesText(count map[string]int) string {
	names := slices.SortedFunc(maps.Keys(count), func(a, b string) int { return cmp.Or(count[b]-count[a], cmp.Compare(a, b)) })
	var parts []string
	for i, name := range names {
		if i == maxNodes {
			parts = append(parts, fmt.Sprintf("%d more", len(names)-i))
			break
		}
		parts = append(parts, fmt.Sprintf("%s (%d)", name, count[name]))
	}
	return strings.Join(parts, ", ")
}

func share(n float64, of int) string {
	if of == 0 {
		return "0"
	}
	return fmt.Sprintf("%.1f (%.1f %%)", n, 100*n/float64(of))
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
