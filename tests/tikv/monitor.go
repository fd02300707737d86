// What a test sees and does to the calls: how many there were, how long they take, and which of them fail how.
package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The calls, by the service that answers them.
var services = map[string][]string{
	"kv": {
		"get", "batch_get", "scan", "prewrite", "commit", "cleanup", "batch_rollback", "pessimistic_lock",
		"pessimistic_rollback", "txn_heart_beat", "check_txn_status", "check_secondary_locks", "scan_lock",
		"resolve_lock", "gc", "delete_range", "unsafe_destroy_range", "physical_scan_lock",
	},
	"pd": {
		"tso", "get_members", "get_region", "get_prev_region", "get_region_by_id", "scan_regions", "get_store",
		"get_all_stores", "get_gc_safe_point", "update_gc_safe_point", "update_service_gc_safe_point", "etcd",
	},
}

// The calls to a store as a whole: no region can refuse them.
var storewide = []string{"unsafe_destroy_range", "physical_scan_lock"}

// The kinds of faults, by the service that knows them.
var kinds = map[string][]string{
	"kv": {
		"drop_before", "drop_after", "hang", "hang_after",
		"not_leader", "epoch_not_match", "server_is_busy", "stale_command", "region_not_found",
	},
	"pd": {"drop_before", "drop_after", "hang", "hang_after", "leaderless", "refuse"},
}

type fault struct {
	ID      int     `json:"id"`
	Call    string  `json:"call"` // a call, or a service for all of its calls
	Kind    string  `json:"kind"`
	Times   int     `json:"times"`    // how many calls it meets, 0: all until it is cleared
	Skip    int     `json:"skip"`     // how many it lets through before
	DelayMs float64 `json:"delay_ms"` // of a hang, 0: until it is cleared
	Store   uint64  `json:"store"`    // only calls to this store, 0: to any
	Region  uint64  `json:"region"`   // only calls to this region, 0: to any
	Hits    int     `json:"hits"`     // how many it met

	cleared chan struct{}
}

type count struct{ calls, keys uint64 }

type monitor struct {
	service map[string]string // of a call
	counts  map[string]*count
	delays  map[string]*int64 // of a service, in nanoseconds

	armed  int32 // how many faults there are: without any, a call takes no lock
	mu     sync.Mutex
	faults []*fault
	lastID int
}

func newMonitor() *monitor {
	m := &monitor{service: map[string]string{}, counts: map[string]*count{}, delays: map[string]*int64{}}
	for service, calls := range services {
		m.delays[service] = new(int64)
		for _, call := range calls {
			m.service[call] = service
			m.counts[call] = &count{}
		}
	}
	return m
}

func (m *monitor) count(call string, keys int) {
	c := m.counts[call]
	atomic.AddUint64(&c.calls, 1)
	atomic.AddUint64(&c.keys, uint64(keys))
}

func (m *monitor) delay(call string) time.Duration {
	return time.Duration(atomic.LoadInt64(m.delays[m.service[call]]))
}

func (m *monitor) reset() {
	for _, c := range m.counts {
		atomic.StoreUint64(&c.calls, 0)
		atomic.StoreUint64(&c.keys, 0)
	}
}

// add arms a fault, or says what is wrong with it.
func (m *monitor) add(f *fault) error {
	service := f.Call
	if _, whole := services[service]; !whole {
		service = m.service[f.Call]
	}
	if service == "" {
		return fmt.Errorf("there is no call %q", f.Call)
	}
	if !knows(kinds[service], f.Kind) {
		return fmt.Errorf("there is no fault %q for %s: %v", f.Kind, service, kinds[service])
	}
	if f.Kind == "leaderless" && f.Call != "pd" && !namesLeaders(f.Call) {
		return fmt.Errorf("the answer to %s names no leader", f.Call)
	}
	if knows(storewide, f.Call) && regional(f.Kind) {
		return fmt.Errorf("%s goes to no region, it cannot fail with %s", f.Call, f.Kind)
	}
	if service == "pd" && (f.Store != 0 || f.Region != 0) {
		return fmt.Errorf("calls to PD go to no store and no region")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lastID++
	f.ID, f.Hits, f.cleared = m.lastID, 0, make(chan struct{})
	m.faults = append(m.faults, f)
	atomic.AddInt32(&m.armed, 1)
	return nil
}

func knows(all []string, one string) bool {
	for _, each := range all {
		if each == one {
			return true
		}
	}
	return false
}

// regional kinds are region errors.
func regional(kind string) bool {
	return knows(kinds["kv"], kind) && !knows([]string{"drop_before", "drop_after", "hang", "hang_after"}, kind)
}

func namesLeaders(call string) bool {
	return knows([]string{"get_region", "get_prev_region", "get_region_by_id", "scan_regions"}, call)
}

// clear disarms one fault, or with 0 all of them; calls that hang by it go on.
func (m *monitor) clear(id int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var kept []*fault
	for _, f := range m.faults {
		if id != 0 && f.ID != id {
			kept = append(kept, f)
			continue
		}
		close(f.cleared)
	}
	m.faults = kept
	atomic.StoreInt32(&m.armed, int32(len(kept)))
}

func (m *monitor) list() []fault {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := []fault{}
	for _, f := range m.faults {
		out = append(out, *f)
	}
	return out
}

// meet is the fault that this call runs into, nil for none; an exhausted one stays listed until it is cleared.
func (m *monitor) meet(call string, store, region uint64) *fault {
	if atomic.LoadInt32(&m.armed) == 0 {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.faults {
		switch {
		case f.Call != call && f.Call != m.service[call]:
		case f.Store != 0 && f.Store != store, f.Region != 0 && f.Region != region:
		case f.Kind == "leaderless" && !namesLeaders(call), regional(f.Kind) && knows(storewide, call):
		case f.Times > 0 && f.Hits >= f.Times:
		case f.Skip > 0:
			f.Skip--
		default:
			f.Hits++
			return f
		}
	}
	return nil
}

// through runs a call under its fault; what the fault leaves to the caller is in the kind.
func (m *monitor) through(ctx context.Context, call string, f *fault, run func()) (kind string, err error) {
	if delay := m.delay(call); delay > 0 {
		time.Sleep(delay)
	}
	return m.under(ctx, call, f, run)
}

// under is through without the delay.
func (m *monitor) under(ctx context.Context, call string, f *fault, run func()) (kind string, err error) {
	if f == nil {
		run()
		return "", nil
	}
	lost := status.Errorf(codes.Unavailable, "the connection was lost during %s, as a test wants it", call)
	switch f.Kind {
	case "drop_before":
		return "", lost
	case "drop_after":
		run()
		return "", lost
	case "hang":
		if err := f.hang(ctx); err != nil {
			return "", err
		}
		run()
		return "", nil
	case "hang_after":
		run()
		return "", f.hang(ctx)
	case "leaderless":
		run()
	}
	return f.Kind, nil
}

func (f *fault) hang(ctx context.Context) error {
	var enough <-chan time.Time
	if f.DelayMs > 0 {
		timer := time.NewTimer(time.Duration(f.DelayMs * float64(time.Millisecond)))
		defer timer.Stop()
		enough = timer.C
	}
	select {
	case <-enough:
	case <-f.cleared:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}
