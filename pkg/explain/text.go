package explain

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// maxCures bounds the cures in a text; the report has all.
const maxCures = 6

// WriteText writes the report for people.
func (r *Report) WriteText(out io.Writer) error {
	w := &strings.Builder{}
	noun, fit, does, would := "claim ", "fits", "does", "it"
	if len(r.Claims) > 1 {
		noun, fit, does, would = "claims ", "fit", "do", "them"
	}
	who := noun + strings.Join(r.Claims, ", ")
	switch {
	case len(r.Claims) == 0:
		fmt.Fprintln(w, "There are no claims: nothing has to be allocated.")
	case r.Allocated:
		fmt.Fprintf(w, "%s: allocated.\n", who)
	case r.Fits:
		fmt.Fprintf(w, "%s %s on node %s.\n", who, fit, r.firstFit())
	case len(r.Nodes) == 0:
		fmt.Fprintf(w, "%s %s not fit: there are no nodes.\n", who, does)
	case r.firstFit() != "":
		fmt.Fprintf(w, "%s %s not fit, because a selector fails.\n", who, does)
	default:
		fmt.Fprintf(w, "%s %s not fit on %s.\n", who, does, anyOf(len(r.Nodes)))
	}
	if len(r.Devices) > 0 {
		fmt.Fprintln(w)
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "CLAIM\tREQUEST\tDEVICE")
		for _, d := range r.Devices {
			fmt.Fprintf(table, "%s\t%s\t%s\n", d.Claim, d.Request, d.Device)
		}
		table.Flush()
	}
	if len(r.Nodes) > 0 {
		r.writeNodes(w)
	}
	if len(r.Cures) > 0 {
		fmt.Fprintf(w, "\nWhat would make %s fit, each tried with the scheduler's allocator:\n", would)
		for i, c := range r.Cures {
			if i == maxCures {
				fmt.Fprintf(w, "  and %s more: see -o json\n", plural(len(r.Cures)-i, "way"))
				break
			}
			var got []string
			for _, d := range c.Devices {
				got = append(got, d.Device)
			}
			fmt.Fprintf(w, "  - %s: %s on %s\n", c.text(), strings.Join(got, ", "), c.Node)
		}
	}
	for _, h := range r.Hints {
		fmt.Fprintf(w, "\n%s\n", h)
	}
	_, err := io.WriteString(out, w.String())
	return err
}

func (r *Report) writeNodes(w io.Writer) {
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tWHY NOT")
	for _, n := range r.Nodes {
		lines := n.parts()
		if n.Fits {
			lines = []string{"it fits"}
		}
		name := n.Name
		for _, l := range lines {
			fmt.Fprintf(table, "%s\t%s\n", name, l)
			name = ""
		}
	}
	table.Flush()
}

func (r *Report) firstFit() string {
	for _, n := range r.Nodes {
		if n.Fits {
			return n.Name
		}
	}
	return ""
}

func anyOf(nodes int) string {
	if nodes == 1 {
		return "the only node"
	}
	return fmt.Sprintf("any of %d nodes", nodes)
}
