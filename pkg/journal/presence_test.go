package journal_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/journal"
)

func TestOneProcessPublishesAndTheNextTakesOver(t *testing.T) {
	j, dir := open(t)
	other, err := journal.Open(dir)
	require.NoError(t, err)
	unlock, err := j.LockPublisher(t.Context())
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = other.LockPublisher(ctx)
	require.ErrorIs(t, err, context.Canceled)

	took := make(chan error)
	go func() {
		unlock, err := other.LockPublisher(t.Context())
		if err == nil {
			unlock()
		}
		took <- err
	}()
	unlock()
	require.NoError(t, <-took)
}

func TestTheLastToLeaveIsTold(t *testing.T) {
	j, dir := open(t)
	other, err := journal.Open(dir)
	require.NoError(t, err)
	first, err := j.Enter()
	require.NoError(t, err)
	second, err := other.Enter()
	require.NoError(t, err)
	last, err := first.Leave()
	require.NoError(t, err)
	require.False(t, last)
	last, err = second.Leave()
	require.NoError(t, err)
	require.True(t, last)
}
