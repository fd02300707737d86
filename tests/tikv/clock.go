// Timestamps as PD gives them: milliseconds since 1970 and an 18-bit counter, never twice, always rising.
package main

import (
	"sync"
	"time"
)

const logicalBits = 18

func physical(ts uint64) uint64 { return ts >> logicalBits }

type clock struct {
	mu   sync.Mutex
	last uint64
}

// next reserves count consecutive timestamps of one millisecond and returns the last of them.
func (c *clock) next(count uint32) uint64 {
	if count == 0 {
		count = 1
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	first := uint64(time.Now().UnixMilli()) << logicalBits
	if first <= c.last {
		first = c.last + 1
	}
	if last := first + uint64(count) - 1; physical(last) != physical(first) {
		first = physical(last) << logicalBits
	}
	c.last = first + uint64(count) - 1
	return c.last
}

// past sees to it that no timestamp up to this one is given again.
func (c *clock) past(ts uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = max(c.last, ts)
}
