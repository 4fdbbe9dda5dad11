package dcgm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
)

// maxScrape bounds what is read of an exporter. A node of eight GPUs with seven instances each has about 1.1 MB.
const maxScrape = 32 << 20

// Scrape reads the rows of one exporter. The context bounds the time. An answer
// that is not whole is an error: half of the rows would look like idle GPUs.
func Scrape(ctx context.Context, client *http.Client, url string) ([]Row, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("scrape: %w", err)
	}
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("scrape: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("scrape %s: %s", url, resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxScrape+1))
	if err != nil {
		return nil, fmt.Errorf("scrape %s: %w", url, err)
	}
	if len(data) > maxScrape {
		return nil, fmt.Errorf("scrape %s: more than %d MiB: this is no DCGM exporter", url, maxScrape>>20)
	}
	rows, err := Parse(data, time.Now())
	if err != nil {
		return nil, fmt.Errorf("scrape %s: %w", url, err)
	}
	return rows, nil
}

// Parse reads the text format, of which only our metrics become rows. Rows without a time of their own are given that of the scrape.
func Parse(text []byte, at time.Time) ([]Row, error) {
	// The last line has an end too. Without, the text was cut, maybe within a number.
	if len(text) > 0 && text[len(text)-1] != '\n' {
		return nil, fmt.Errorf("the text ends within a line: %w", io.ErrUnexpectedEOF)
	}
	var (
		rows   []Row
		lset   labels.Labels
		parser = textparse.NewPromParser(text, labels.NewSymbolTable(), false)
		all    = Metrics()
	)
	for {
		entry, err := parser.Next()
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return nil, err
		}
		if entry != textparse.EntrySeries {
			continue
		}
		series, ms, value := parser.Series()
		// Most rows are of other metrics: their labels are not looked at.
		name, _, _ := strings.Cut(string(series[:min(len(series), 64)]), "{")
		if !slices.Contains(all, Metric(name)) {
			continue
		}
		parser.Labels(&lset)
		when := at
		if ms != nil {
			when = time.UnixMilli(*ms)
		}
		if row, ok := newRow(name, lset.Get, value, when); ok {
			rows = append(rows, row)
		}
	}
}
