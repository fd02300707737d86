// What transactions do to the rows, by TiKV's rules: two phases, one phase, asynchronous commit, pessimistic locks.
package main

import (
	"bytes"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
)

const (
	keyLimit = 8192

	// How long a pessimistic lock waits for its holder when the request says nothing, and at most.
	lockWait = time.Second
)

type keyError = kvrpcpb.KeyError

func isLocked(key []byte, l *lock) *keyError { return &keyError{Locked: l.info(key)} }

func (l *lock) info(key []byte) *kvrpcpb.LockInfo {
	return &kvrpcpb.LockInfo{
		Key: key, PrimaryLock: l.primary, LockVersion: l.start, LockTtl: l.ttl, TxnSize: l.size, LockType: l.op,
		LockForUpdateTs: l.forUpdate, UseAsyncCommit: l.async, MinCommitTs: l.minCommit, Secondaries: l.secondaries,
	}
}

func conflict(start uint64, key, primary []byte, with version, why kvrpcpb.WriteConflict_Reason) *keyError {
	return &keyError{Conflict: &kvrpcpb.WriteConflict{
		StartTs: start, ConflictTs: with.start, ConflictCommitTs: with.commit, Key: key, Primary: primary, Reason: why,
	}}
}

func lockNotFound(start, commit uint64, key []byte) *keyError {
	return &keyError{Retryable: fmt.Sprintf("TxnLockNotFound { start_ts: %d, commit_ts: %d, key: %x }", start, commit, key)}
}

// encodedSize is the length of a key as TiKV stores it: groups of 8 and a marker, a timestamp, a prefix.
func encodedSize(key []byte) int { return (len(key)/8+1)*9 + 9 }

func (s *store) prewrite(r *kvrpcpb.PrewriteRequest) *kvrpcpb.PrewriteResponse {
	out := &kvrpcpb.PrewriteResponse{}
	s.write(func() {
		var settled uint64
		for i := range r.Mutations {
			commit, err := s.checkMutation(r, i)
			if err != nil && err.Locked == nil {
				out.Errors = []*keyError{err}
				return
			}
			if err != nil {
				out.Errors = append(out.Errors, err)
			}
			settled = max(settled, commit)
		}
		switch {
		case len(out.Errors) > 0:
		case settled > 0:
			s.repeatPrewrite(r, out, settled)
		case !r.TryOnePc || !s.commitAtOnce(r, out):
			s.placeLocks(r, out)
		}
	})
	return out
}

// checkMutation tells why a mutation cannot be prewritten, or that its transaction is committed already.
func (s *store) checkMutation(r *kvrpcpb.PrewriteRequest, i int) (settled uint64, failure *keyError) {
	m, action := r.Mutations[i], kvrpcpb.PrewriteRequest_SKIP_PESSIMISTIC_CHECK
	if i < len(r.PessimisticActions) {
		action = r.PessimisticActions[i]
	}
	if size := encodedSize(m.Key); size > keyLimit {
		return 0, &keyError{Abort: fmt.Sprintf("KeyTooLarge { size: %d, limit: %d }", size, keyLimit)}
	}
	mustHold := action == kvrpcpb.PrewriteRequest_DO_PESSIMISTIC_CHECK
	e := s.find(m.Key)
	if e == nil {
		e = &row{key: m.Key}
	}
	if e.lock != nil && e.lock.start == r.StartVersion {
		return 0, nil
	}
	if e.lock != nil && !mustHold {
		return 0, isLocked(m.Key, e.lock)
	}
	if done := e.committed(r.StartVersion); done != nil {
		return done.commit, nil
	}
	if e.isRolledBack(r.StartVersion) {
		mark := version{start: r.StartVersion, commit: r.StartVersion}
		return 0, conflict(r.StartVersion, m.Key, r.PrimaryLock, mark, kvrpcpb.WriteConflict_SelfRolledBack)
	}
	if mustHold {
		return 0, &keyError{Abort: fmt.Sprintf("PessimisticLockNotFound { start_ts: %d, key: %x }", r.StartVersion, m.Key)}
	}
	if r.ForUpdateTs > 0 && action == kvrpcpb.PrewriteRequest_SKIP_PESSIMISTIC_CHECK {
		return 0, nil
	}
	if last := e.newest(); last != nil && last.commit > r.StartVersion {
		return 0, conflict(r.StartVersion, m.Key, r.PrimaryLock, *last, kvrpcpb.WriteConflict_Optimistic)
	}
	if m.Op == kvrpcpb.Op_Insert || m.Op == kvrpcpb.Op_CheckNotExists {
		if _, exists := e.at(math.MaxUint64); exists {
			return 0, &keyError{AlreadyExist: &kvrpcpb.AlreadyExist{Key: m.Key}}
		}
	}
	return 0, nil
}

// repeatPrewrite answers a request whose transaction was committed by its first try: that answer was lost.
func (s *store) repeatPrewrite(r *kvrpcpb.PrewriteRequest, out *kvrpcpb.PrewriteResponse, commit uint64) {
	if r.TryOnePc {
		out.OnePcCommitTs = commit
	} else if r.UseAsyncCommit {
		out.MinCommitTs = commit
	}
}

// ownCommit is the lowest timestamp at which the transaction may be committed without asking PD.
func (s *store) ownCommit(r *kvrpcpb.PrewriteRequest) uint64 {
	lowest := atomic.LoadUint64(&s.maxTS) + 1
	for _, least := range []uint64{r.StartVersion + 1, r.ForUpdateTs + 1, r.MinCommitTs} {
		if least > lowest {
			lowest = least
		}
	}
	return lowest
}

// commitAtOnce does all of a transaction in one phase, if nothing stands against it.
func (s *store) commitAtOnce(r *kvrpcpb.PrewriteRequest, out *kvrpcpb.PrewriteResponse) bool {
	commit := s.ownCommit(r)
	if r.MaxCommitTs > 0 && commit > r.MaxCommitTs {
		return false
	}
	for _, m := range r.Mutations {
		if e := s.find(m.Key); e != nil && e.lock != nil && e.lock.op != kvrpcpb.Op_PessimisticLock {
			return false
		}
	}
	for _, m := range r.Mutations {
		if m.Op == kvrpcpb.Op_CheckNotExists {
			continue
		}
		e := s.ensure(m.Key)
		s.unlock(e)
		s.addVersion(e, version{commit: commit, start: r.StartVersion, kind: kindOf(m.Op), value: m.Value})
	}
	out.OnePcCommitTs = commit
	return true
}

func kindOf(op kvrpcpb.Op) kind {
	switch op {
	case kvrpcpb.Op_Put, kvrpcpb.Op_Insert:
		return kindPut
	case kvrpcpb.Op_Del:
		return kindDelete
	}
	return kindLock
}

func (s *store) placeLocks(r *kvrpcpb.PrewriteRequest, out *kvrpcpb.PrewriteResponse) {
	l := lock{
		start: r.StartVersion, ttl: r.LockTtl, forUpdate: r.ForUpdateTs, minCommit: r.MinCommitTs, size: r.TxnSize,
		primary: r.PrimaryLock,
	}
	if own := s.ownCommit(r); r.UseAsyncCommit && (r.MaxCommitTs == 0 || own <= r.MaxCommitTs) {
		l.async, l.minCommit, out.MinCommitTs = true, own, own
	}
	for _, m := range r.Mutations {
		if m.Op == kvrpcpb.Op_CheckNotExists {
			continue
		}
		placed := s.placeLock(m, l, r.Secondaries)
		if !placed.async {
			out.MinCommitTs = 0
		} else if out.MinCommitTs > 0 && placed.minCommit > out.MinCommitTs {
			out.MinCommitTs = placed.minCommit
		}
	}
}

// placeLock leaves a lock of an earlier try as it is, and keeps what a pessimistic lock had got.
func (s *store) placeLock(m *kvrpcpb.Mutation, l lock, secondaries [][]byte) *lock {
	if e := s.find(m.Key); e != nil && e.lock != nil {
		if e.lock.op != kvrpcpb.Op_PessimisticLock {
			return e.lock
		}
		l.ttl = max(l.ttl, e.lock.ttl)
		l.minCommit = max(l.minCommit, e.lock.minCommit)
	}
	l.op, l.value = m.Op, m.Value
	if l.op == kvrpcpb.Op_Insert {
		l.op = kvrpcpb.Op_Put
	}
	if l.async && bytes.Equal(m.Key, l.primary) {
		l.secondaries = secondaries
	}
	s.setLock(m.Key, &l)
	return &l
}

func max(a, b uint64) uint64 {
	if a > b {
		return a
	}
	return b
}

func (s *store) commit(r *kvrpcpb.CommitRequest) *kvrpcpb.CommitResponse {
	out := &kvrpcpb.CommitResponse{CommitVersion: r.CommitVersion}
	s.write(func() {
		var held []*row
		for _, key := range r.Keys {
			e := s.find(key)
			switch {
			case e != nil && e.lock != nil && e.lock.start == r.StartVersion:
				if e.lock.minCommit > r.CommitVersion {
					out.Error = &keyError{CommitTsExpired: &kvrpcpb.CommitTsExpired{
						StartTs: r.StartVersion, AttemptedCommitTs: r.CommitVersion, Key: key, MinCommitTs: e.lock.minCommit,
					}}
					return
				}
				held = append(held, e)
			case e == nil || e.committed(r.StartVersion) == nil:
				out.Error = lockNotFound(r.StartVersion, r.CommitVersion, key)
				return
			}
		}
		for _, e := range held {
			s.commitLock(e, r.CommitVersion)
		}
	})
	return out
}

func (s *store) commitLock(e *row, commit uint64) {
	l := e.lock
	s.unlock(e)
	s.addVersion(e, version{commit: commit, start: l.start, kind: kindOf(l.op), value: l.value})
}

// rollBack ends a transaction on a row for ever; a commit timestamp says that it was committed before.
func (s *store) rollBack(key []byte, start uint64) (committed uint64) {
	e := s.ensure(key)
	if done := e.committed(start); done != nil {
		return done.commit
	}
	if e.lock != nil && e.lock.start == start {
		s.unlock(e)
	}
	s.addRollback(e, start)
	return 0
}

func (s *store) batchRollback(r *kvrpcpb.BatchRollbackRequest) *kvrpcpb.BatchRollbackResponse {
	out := &kvrpcpb.BatchRollbackResponse{}
	s.write(func() {
		for _, key := range r.Keys {
			if commit := s.rollBack(key, r.StartVersion); commit > 0 {
				out.Error = &keyError{Abort: fmt.Sprintf("Committed { commit_ts: %d }", commit)}
				return
			}
		}
	})
	return out
}

func (l *lock) expired(now uint64) bool { return physical(l.start)+l.ttl < physical(now) }

func (s *store) cleanup(r *kvrpcpb.CleanupRequest) *kvrpcpb.CleanupResponse {
	out := &kvrpcpb.CleanupResponse{}
	s.write(func() {
		e := s.find(r.Key)
		alive := e != nil && e.lock != nil && e.lock.start == r.StartVersion && r.CurrentTs != 0 && !e.lock.expired(r.CurrentTs)
		if alive {
			out.Error = isLocked(r.Key, e.lock)
			return
		}
		out.CommitVersion = s.rollBack(r.Key, r.StartVersion)
	})
	return out
}

func (s *store) checkTxnStatus(r *kvrpcpb.CheckTxnStatusRequest) *kvrpcpb.CheckTxnStatusResponse {
	out := &kvrpcpb.CheckTxnStatusResponse{}
	s.saw(r.LockTs)
	s.saw(r.CurrentTs)
	s.saw(r.CallerStartTs)
	s.write(func() {
		e := s.find(r.PrimaryKey)
		switch {
		case e != nil && e.lock != nil && e.lock.start == r.LockTs:
			s.checkHeldPrimary(e, r, out)
		case e != nil && e.committed(r.LockTs) != nil:
			out.CommitVersion = e.committed(r.LockTs).commit
		case e != nil && e.isRolledBack(r.LockTs):
		case !r.RollbackIfNotExist:
			out.Error = &keyError{TxnNotFound: &kvrpcpb.TxnNotFound{StartTs: r.LockTs, PrimaryKey: r.PrimaryKey}}
		case r.ResolvingPessimisticLock:
			out.Action = kvrpcpb.Action_LockNotExistDoNothing
		default:
			s.rollBack(r.PrimaryKey, r.LockTs)
			out.Action = kvrpcpb.Action_LockNotExistRollback
		}
	})
	return out
}

// checkHeldPrimary decides about a transaction whose primary lock is there: alive, too old, or to be asked further.
func (s *store) checkHeldPrimary(e *row, r *kvrpcpb.CheckTxnStatusRequest, out *kvrpcpb.CheckTxnStatusResponse) {
	changed := *e.lock
	if changed.async && !r.ForceSyncCommit {
		out.LockTtl, out.LockInfo = changed.ttl, changed.info(e.key)
		return
	}
	if changed.expired(r.CurrentTs) {
		out.Action = kvrpcpb.Action_TTLExpireRollback
		if changed.op == kvrpcpb.Op_PessimisticLock && r.ResolvingPessimisticLock {
			s.unlock(e)
			out.Action = kvrpcpb.Action_TTLExpirePessimisticRollback
		} else {
			s.rollBack(e.key, r.LockTs)
		}
		return
	}
	forever := r.CallerStartTs == math.MaxUint64
	if changed.minCommit > 0 && !forever && r.CallerStartTs >= changed.minCommit {
		changed.minCommit = max(r.CallerStartTs+1, r.CurrentTs)
		s.setLock(e.key, &changed)
	}
	if forever || r.CallerStartTs > 0 && changed.minCommit > r.CallerStartTs {
		out.Action = kvrpcpb.Action_MinCommitTSPushed
	}
	out.LockTtl, out.LockInfo = changed.ttl, changed.info(e.key)
}

// checkSecondaryLocks tells how far an asynchronous commit got: all locks, or a commit timestamp, or rolled back.
func (s *store) checkSecondaryLocks(r *kvrpcpb.CheckSecondaryLocksRequest) *kvrpcpb.CheckSecondaryLocksResponse {
	out := &kvrpcpb.CheckSecondaryLocksResponse{}
	s.saw(r.StartVersion)
	s.write(func() {
		for _, key := range r.Keys {
			e := s.find(key)
			if e != nil && e.lock != nil && e.lock.start == r.StartVersion && e.lock.op != kvrpcpb.Op_PessimisticLock {
				out.Locks = append(out.Locks, e.lock.info(key))
				continue
			}
			out.Locks = nil
			out.CommitTs = s.rollBack(key, r.StartVersion)
			return
		}
	})
	return out
}

func (s *store) txnHeartBeat(r *kvrpcpb.TxnHeartBeatRequest) *kvrpcpb.TxnHeartBeatResponse {
	out := &kvrpcpb.TxnHeartBeatResponse{}
	s.write(func() {
		e := s.find(r.PrimaryLock)
		if e == nil || e.lock == nil || e.lock.start != r.StartVersion {
			out.Error = lockNotFound(r.StartVersion, 0, r.PrimaryLock)
			return
		}
		if r.AdviseLockTtl > e.lock.ttl {
			changed := *e.lock
			changed.ttl = r.AdviseLockTtl
			s.setLock(e.key, &changed)
		}
		out.LockTtl = e.lock.ttl
	})
	return out
}

// scanLock lists the locks of [from, to) that started at or before max; 0 is no limit.
func (s *store) scanLock(from, to []byte, max uint64, limit uint32) []*kvrpcpb.LockInfo {
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.saw(max)
	var out []*kvrpcpb.LockInfo
	s.locked.AscendGreaterOrEqual(&row{key: from}, func(e *row) bool {
		if len(to) > 0 && bytes.Compare(e.key, to) >= 0 || limit > 0 && len(out) >= int(limit) {
			return false
		}
		if e.lock.start <= max {
			out = append(out, e.lock.info(e.key))
		}
		return true
	})
	return out
}

// resolveLock ends transactions in a region as it was decided: committed at a timestamp, or rolled back at 0.
func (s *store) resolveLock(r *kvrpcpb.ResolveLockRequest, g *region) *kvrpcpb.ResolveLockResponse {
	status := map[uint64]uint64{}
	for _, each := range r.TxnInfos {
		status[each.Txn] = each.Status
	}
	if len(r.TxnInfos) == 0 {
		status[r.StartVersion] = r.CommitVersion
	}
	s.write(func() {
		for _, e := range s.lockedRows(r.Keys, g) {
			if e.lock == nil { // a key that was named twice
				continue
			}
			commit, decided := status[e.lock.start]
			if !decided {
				continue
			}
			if commit > 0 {
				s.commitLock(e, commit)
			} else {
				s.rollBack(e.key, e.lock.start)
			}
		}
	})
	return &kvrpcpb.ResolveLockResponse{}
}

// lockedRows are those of the keys that are locked, or without keys all of the region.
func (s *store) lockedRows(keys [][]byte, g *region) []*row {
	var out []*row
	for _, key := range keys {
		if e := s.find(key); e != nil && e.lock != nil {
			out = append(out, e)
		}
	}
	if len(keys) == 0 {
		s.locked.AscendGreaterOrEqual(&row{key: g.start}, func(e *row) bool {
			if len(g.end) > 0 && bytes.Compare(e.key, g.end) >= 0 {
				return false
			}
			out = append(out, e)
			return true
		})
	}
	return out
}
