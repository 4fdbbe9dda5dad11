package steps

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Event is one line of the stream from the guardian and the box's init to the command that waits for them.
type Event struct {
	// Step has begun, or is done.
	Step Step `json:"step,omitempty"`
	Done bool `json:"done,omitempty"`
	// Error ends the start.
	Error string `json:"error,omitempty"`
	// Up says that the cluster is complete.
	Up bool `json:"up,omitempty"`
}

// Sender writes events; its reader may be gone, which is no reason to fail.
type Sender struct {
	mu  sync.Mutex
	out io.Writer
}

// NewSender returns a sender that writes one JSON object a line.
func NewSender(out io.Writer) *Sender { return &Sender{out: out} }

// Send writes one event. The other end may have been killed: then the guardian learns of it elsewhere.
func (s *Sender) Send(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line, err := json.Marshal(e)
	if err != nil {
		return // an Event always marshals
	}
	_, _ = s.out.Write(append(line, '\n'))
}

// Do sends the begin of a step, does it and sends its end, or the error.
func (s *Sender) Do(step Step, do func() error) error {
	s.Send(Event{Step: step})
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	s.Send(Event{Step: step, Done: true})
	return nil
}

// Printer shows steps to a person: "[ 3/14] guardian  0.1s".
type Printer struct {
	out   io.Writer
	now   func() time.Time
	begin time.Time
	step  time.Time
	open  bool
	// atStep is called when a step begins; tests interrupt a start there.
	atStep func(Step)
}

// NewPrinter starts the clock. atStep may be nil.
func NewPrinter(out io.Writer, now func() time.Time, atStep func(Step)) *Printer {
	return &Printer{out: out, now: now, begin: now(), atStep: atStep}
}

// Begin shows that a step has begun.
func (p *Printer) Begin(step Step) error {
	n := Index(step)
	if n == 0 {
		return fmt.Errorf("step %q is not in the list of steps", step)
	}
	p.Break()
	p.step = p.now()
	_, err := fmt.Fprintf(p.out, "[%2d/%d] %-34s", n, len(All()), step)
	p.open = true
	if p.atStep != nil {
		p.atStep(step)
	}
	return err
}

// Done shows that the step has ended, and how long it took.
func (p *Printer) Done() {
	if !p.open {
		_, _ = fmt.Fprintf(p.out, "%42s", "")
	}
	_, _ = fmt.Fprintf(p.out, "%6.1fs  (total %.1fs)\n", p.now().Sub(p.step).Seconds(), p.now().Sub(p.begin).Seconds())
	p.open = false
}

// Break ends an unfinished line, so that something else can be printed.
func (p *Printer) Break() {
	if p.open {
		_, _ = fmt.Fprintln(p.out)
		p.open = false
	}
}

// Do shows a step around what it does.
func (p *Printer) Do(step Step, do func() error) error {
	if err := p.Begin(step); err != nil {
		return err
	}
	if err := do(); err != nil {
		p.Break()
		return fmt.Errorf("%s: %w", step, err)
	}
	p.Done()
	return nil
}

// Follow shows the events of a stream until the cluster is up. A stream that ends before is an error.
func (p *Printer) Follow(in io.Reader) error {
	decoder := json.NewDecoder(in)
	for {
		var e Event
		if err := decoder.Decode(&e); err != nil {
			p.Break()
			if errors.Is(err, io.EOF) {
				return errors.New("the guardian ended before the cluster was up")
			}
			return fmt.Errorf("read the progress of the start: %w", err)
		}
		switch {
		case e.Error != "":
			p.Break()
			return errors.New(e.Error)
		case e.Up:
			return nil
		case e.Done:
			p.Done()
		default:
			if err := p.Begin(e.Step); err != nil {
				return err
			}
		}
	}
}
