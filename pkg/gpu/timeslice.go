package gpu

import (
	"fmt"
	"slices"
)

// TimeSlice is for how long one process of a GPU may compute before it is the
// next one's turn. The driver has these four and says of none how long it is.
type TimeSlice string

// The time slices. A GPU comes up with TimeSliceDefault.
const (
	TimeSliceDefault TimeSlice = "Default"
	TimeSliceShort   TimeSlice = "Short"
	TimeSliceMedium  TimeSlice = "Medium"
	TimeSliceLong    TimeSlice = "Long"
)

// TimeSlices are all of them, in the order in which the driver numbers them, from 0.
func TimeSlices() []TimeSlice {
	return []TimeSlice{TimeSliceDefault, TimeSliceShort, TimeSliceMedium, TimeSliceLong}
}

// Validate refuses what is no time slice. An empty one, which states nothing, is good.
func (s TimeSlice) Validate() error {
	if s != "" && !slices.Contains(TimeSlices(), s) {
		return fmt.Errorf("%q is none of %q", s, TimeSlices())
	}
	return nil
}
