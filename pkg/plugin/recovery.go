package plugin

import (
	"context"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/kerf-project/kerf/pkg/journal"
)

// retryEvery is how often leftovers are looked for, at least, while somebody blocks a release.
const retryEvery = 5 * time.Second

// Recover repeats an engine's recovery until the context ends, with a call of
// then after each.
func Recover(ctx context.Context, every time.Duration, recover func(context.Context) error, records Records, then func()) {
	ticker := time.NewTicker(min(every, retryEvery))
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if time.Since(last) < every && !anyBlocked(records) {
			continue
		}
		if err := recover(ctx); err != nil {
			klog.FromContext(ctx).Error(err, "Leftovers could not be cleaned up; it is tried again")
		}
		then()
		last = time.Now()
	}
}

func anyBlocked(records Records) bool {
	// What cannot be read is not blocked, and recovery looks after it.
	claims, _ := records.Claims()
	return slices.ContainsFunc(claims, func(c *journal.Claim) bool { return c.Blocked != "" })
}
