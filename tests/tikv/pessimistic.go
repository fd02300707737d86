// Pessimistic locks: taken before the commit, waited for, with deadlocks found.
package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
)

// pessimisticLock takes all locks of the request or none; it waits while another transaction holds one.
func (s *store) pessimisticLock(ctx context.Context, r *kvrpcpb.PessimisticLockRequest) *kvrpcpb.PessimisticLockResponse {
	if r.WakeUpMode != kvrpcpb.PessimisticLockWakeUpMode_WakeUpModeNormal {
		return &kvrpcpb.PessimisticLockResponse{Errors: []*keyError{{Abort: "wake-up mode: not supported by the test server"}}}
	}
	s.saw(r.ForUpdateTs)
	timeout := time.NewTimer(waitTime(r.WaitTimeout))
	defer timeout.Stop()
	for {
		out, holder, released := s.tryLock(r)
		if holder == 0 || r.WaitTimeout < 0 {
			return out
		}
		gaveUp := false
		select {
		case <-released:
		case <-timeout.C:
			gaveUp = true
		case <-ctx.Done():
			gaveUp = true
		}
		s.mu.Lock()
		delete(s.waits, r.StartVersion)
		s.mu.Unlock()
		if gaveUp {
			return out
		}
	}
}

func waitTime(milliseconds int64) time.Duration {
	asked := time.Duration(milliseconds) * time.Millisecond
	if asked <= 0 || asked > lockWait {
		return lockWait
	}
	return asked
}

// tryLock answers now; the holder is the transaction that is in the way, and released is closed when a lock goes.
func (s *store) tryLock(r *kvrpcpb.PessimisticLockRequest) (out *kvrpcpb.PessimisticLockResponse, holder uint64, released chan struct{}) {
	out = &kvrpcpb.PessimisticLockResponse{}
	s.write(func() {
		for _, m := range r.Mutations {
			failure := s.checkLockable(r, m)
			if failure == nil {
				continue
			}
			out.Errors = []*keyError{failure}
			if failure.Locked != nil && r.WaitTimeout >= 0 {
				holder = failure.Locked.LockVersion
				if s.deadlocks(r.StartVersion, holder) {
					out.Errors = []*keyError{{Deadlock: &kvrpcpb.Deadlock{LockTs: holder, LockKey: m.Key}}}
					holder = 0
					return
				}
				s.waits[r.StartVersion] = holder
				released = s.released
			}
			return
		}
		for _, m := range r.Mutations {
			s.takeLock(r, m, out)
		}
	})
	return out, holder, released
}

func (s *store) deadlocks(waiter, holder uint64) bool {
	for next, waiting := holder, true; waiting; next, waiting = s.waits[next] {
		if next == waiter {
			return true
		}
	}
	return false
}

func (s *store) checkLockable(r *kvrpcpb.PessimisticLockRequest, m *kvrpcpb.Mutation) *keyError {
	if size := encodedSize(m.Key); size > keyLimit {
		return &keyError{Abort: fmt.Sprintf("KeyTooLarge { size: %d, limit: %d }", size, keyLimit)}
	}
	e := s.find(m.Key)
	if e == nil {
		return nil
	}
	if e.lock != nil && e.lock.start != r.StartVersion {
		return isLocked(m.Key, e.lock)
	}
	if e.isRolledBack(r.StartVersion) {
		mark := version{start: r.StartVersion, commit: r.StartVersion}
		return conflict(r.StartVersion, m.Key, r.PrimaryLock, mark, kvrpcpb.WriteConflict_SelfRolledBack)
	}
	if last := e.newest(); last != nil && last.commit > r.ForUpdateTs {
		return conflict(r.StartVersion, m.Key, r.PrimaryLock, *last, kvrpcpb.WriteConflict_PessimisticRetry)
	}
	if _, exists := e.at(math.MaxUint64); exists && m.Assertion == kvrpcpb.Assertion_NotExist {
		return &keyError{AlreadyExist: &kvrpcpb.AlreadyExist{Key: m.Key}}
	}
	return nil
}

func (s *store) takeLock(r *kvrpcpb.PessimisticLockRequest, m *kvrpcpb.Mutation, out *kvrpcpb.PessimisticLockResponse) {
	var value []byte
	exists := false
	e := s.find(m.Key)
	if e != nil {
		value, exists = e.at(math.MaxUint64)
	}
	if r.ReturnValues {
		out.Values = append(out.Values, value)
	}
	if r.ReturnValues || r.CheckExistence {
		out.NotFounds = append(out.NotFounds, !exists)
	}
	if r.LockOnlyIfExists && !exists {
		return
	}
	if e != nil && e.lock != nil && (e.lock.op != kvrpcpb.Op_PessimisticLock || e.lock.forUpdate >= r.ForUpdateTs) {
		return
	}
	s.setLock(m.Key, &lock{
		start: r.StartVersion, ttl: r.LockTtl, forUpdate: r.ForUpdateTs, minCommit: r.MinCommitTs,
		op: kvrpcpb.Op_PessimisticLock, primary: r.PrimaryLock,
	})
}

func (s *store) pessimisticRollback(r *kvrpcpb.PessimisticRollbackRequest) *kvrpcpb.PessimisticRollbackResponse {
	s.write(func() {
		for _, key := range r.Keys {
			e := s.find(key)
			if e != nil && e.lock != nil && e.lock.op == kvrpcpb.Op_PessimisticLock &&
				e.lock.start == r.StartVersion && e.lock.forUpdate <= r.ForUpdateTs {
				s.unlock(e)
			}
		}
	})
	return &kvrpcpb.PessimisticRollbackResponse{}
}
