package scaling

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"
)

// ReadSamples reads a recorded series: CSV with the header
// time,utilization,replicas. The time is RFC 3339 or seconds since 1970, the
// utilization the mean over the replicas in percent, empty where there was no data.
func ReadSamples(r io.Reader) ([]Sample, error) {
	in := csv.NewReader(r)
	in.FieldsPerRecord = 3
	header, err := in.Read()
	if err != nil {
		return nil, fmt.Errorf("series: %w", err)
	}
	if header[0] != "time" || header[1] != "utilization" || header[2] != "replicas" {
		return nil, fmt.Errorf("series: the first line is %q: expected time,utilization,replicas", header)
	}
	var all []Sample
	for {
		record, err := in.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("series: %w", err)
		}
		line, _ := in.FieldPos(0)
		s, err := sample(record)
		if err != nil {
			return nil, fmt.Errorf("series: line %d: %w", line, err)
		}
		if n := len(all); n > 0 && !s.At.After(all[n-1].At) {
			return nil, fmt.Errorf("series: line %d: %s is not after the line before", line, record[0])
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		return nil, errors.New("series: there is no line of data")
	}
	return all, nil
}

func sample(record []string) (Sample, error) {
	s := Sample{Utilization: math.NaN()}
	var err error
	if seconds, notNumber := strconv.ParseFloat(record[0], 64); notNumber == nil {
		s.At = time.UnixMilli(int64(seconds * 1000)).UTC()
	} else if s.At, err = time.Parse(time.RFC3339, record[0]); err != nil {
		return Sample{}, fmt.Errorf("time: %w", err)
	}
	if record[1] != "" {
		if s.Utilization, err = strconv.ParseFloat(record[1], 64); err != nil || s.Utilization < 0 || s.Utilization > 100 {
			return Sample{}, fmt.Errorf("utilization: %q is no number from 0 to 100", record[1])
		}
	}
	if s.Replicas, err = strconv.Atoi(record[2]); err != nil || s.Replicas < 0 {
		return Sample{}, fmt.Errorf("replicas: %q is no number from 0", record[2])
	}
	return s, nil
}
