//go:build sweep

package main

import (
	"os"

	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/claims/crash"
)

// instrument makes the process die, or its engine wrong, where the crash sweep wants it.
func instrument(h claims.Hardware, j claims.Journal, s claims.Specs) (claims.Hardware, claims.Journal, claims.Specs, error) {
	return crash.Instrument(crash.Options{
		At: os.Getenv("KERF_SWEEP_AT"), Log: os.Getenv("KERF_SWEEP_LOG"), Break: crash.Break(os.Getenv("KERF_SWEEP_BREAK")),
	}, h, j, s)
}
