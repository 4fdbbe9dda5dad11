package proc

import (
	"os"
	"testing"
	"time"
)

func TestReaperTellsHowProcessesEnd(t *testing.T) {
	r := NewReaper()
	stop := make(chan struct{})
	defer close(stop)
	go r.Run(stop)
	for script, want := range map[string]string{
		"exit 0":        "",
		"exit 3":        "exit code 3",
		"kill -KILL $$": "killed by signal 9 (SIGKILL)",
	} {
		p, err := r.Start("/bin/sh", []string{"-c", script}, &os.ProcAttr{})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.Done():
		case <-time.After(10 * time.Second):
			t.Fatalf("%q: its end is not noticed", script)
		}
		got := ""
		if err := p.Err(); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %q, want %q", script, got, want)
		}
	}
	if _, err := r.Start("/nonexistent", nil, &os.ProcAttr{}); err == nil {
		t.Error("a program that does not exist was started")
	}
}
