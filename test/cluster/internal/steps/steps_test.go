package steps

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
)

func TestAllListsEveryStepOnce(t *testing.T) {
	seen := map[Step]bool{}
	for i, s := range All() {
		if s == "" || seen[s] {
			t.Errorf("step %d, %q, is empty or listed twice", i+1, s)
		}
		seen[s] = true
		if Index(s) != i+1 {
			t.Errorf("Index(%q) = %d, want %d", s, Index(s), i+1)
		}
	}
	if Index("nonsense") != 0 {
		t.Error("an unknown step has an index")
	}
}

func TestFollowShowsTheStream(t *testing.T) {
	var stream bytes.Buffer
	send := NewSender(&stream)
	if err := send.Do(Etcd, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	send.Send(Event{Up: true})

	clock := time.Unix(0, 0)
	var out strings.Builder
	var began []Step
	p := NewPrinter(&out, func() time.Time { clock = clock.Add(500 * time.Millisecond); return clock },
		func(s Step) { began = append(began, s) })
	if err := p.Follow(&stream); err != nil {
		t.Fatal(err)
	}
	want := "[ 8/14] etcd                                 0.5s  (total 1.5s)\n"
	if out.String() != want {
		t.Errorf("shown:\n%q\nwant:\n%q", out.String(), want)
	}
	if len(began) != 1 || began[0] != Etcd {
		t.Errorf("hook was called for %v", began)
	}
}

func TestFollowFails(t *testing.T) {
	for name, c := range map[string]struct{ stream, want string }{
		"an error event":        {`{"step":"etcd"}` + "\n" + `{"error":"etcd has ended"}`, "etcd has ended"},
		"the end of the stream": {`{"step":"etcd"}`, "ended before the cluster was up"},
		"an unknown step":       {`{"step":"nonsense"}`, "not in the list"},
		"garbage":               {`nonsense`, "read the progress"},
	} {
		t.Run(name, func(t *testing.T) {
			err := NewPrinter(io.Discard, time.Now, nil).Follow(strings.NewReader(c.stream))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}
