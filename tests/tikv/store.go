// The rows of the cluster: every version of every key, the locks on them, and reads of a snapshot.
//
// One store serves all regions and both listeners, behind one read-write lock: a read takes microseconds. What a
// transaction does to it is in txn.go, what makes it last in journal.go.
package main

import (
	"bytes"
	"math"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/google/btree"
	"github.com/pingcap/kvproto/pkg/kvrpcpb"
)

type kind byte

const (
	kindPut kind = iota
	kindDelete
	kindLock // the key was locked and not changed: it conflicts as a change does
)

// A lock-only version, or the mark of a transaction that was rolled back, serves those who ask how a transaction
// ended; after so many milliseconds nobody does, and a key that is guarded often would only grow.
const forgetAfter = 60_000

type version struct {
	commit, start uint64
	kind          kind
	value         []byte
}

type lock struct {
	start, ttl, forUpdate, minCommit, size uint64
	op                                     kvrpcpb.Op
	async                                  bool
	primary, value                         []byte
	secondaries                            [][]byte
}

type row struct {
	key        []byte
	lock       *lock
	versions   []version // by commit timestamp, the newest last
	rolledBack []uint64  // start timestamps, in order
}

type store struct {
	mu      sync.RWMutex
	rows    *btree.BTreeG[*row]
	locked  *btree.BTreeG[*row]
	journal *journal

	// No read was served at a higher timestamp: a commit that picks its own timestamp picks one above.
	maxTS uint64

	waits    map[uint64]uint64 // who waits for whom, by start timestamp
	released chan struct{}     // closed, and made anew, whenever a lock goes
}

func newStore(j *journal) *store {
	less := func(a, b *row) bool { return bytes.Compare(a.key, b.key) < 0 }
	return &store{
		rows:     btree.NewG(64, less),
		locked:   btree.NewG(16, less),
		journal:  j,
		waits:    map[uint64]uint64{},
		released: make(chan struct{}),
	}
}

// saw notes a read at ts.
func (s *store) saw(ts uint64) {
	if ts == math.MaxUint64 {
		return
	}
	for {
		seen := atomic.LoadUint64(&s.maxTS)
		if seen >= ts || atomic.CompareAndSwapUint64(&s.maxTS, seen, ts) {
			return
		}
	}
}

// write runs a change; it is in the journal as a whole or not at all.
func (s *store) write(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	s.journal.flush()
}

func (s *store) find(key []byte) *row {
	found, _ := s.rows.Get(&row{key: key})
	return found
}

func (s *store) ensure(key []byte) *row {
	r := s.find(key)
	if r == nil {
		r = &row{key: key}
		s.rows.ReplaceOrInsert(r)
	}
	return r
}

func (s *store) setLock(key []byte, l *lock) {
	r := s.ensure(key)
	r.lock = l
	s.locked.ReplaceOrInsert(r)
	s.journal.setLock(key, l)
}

func (s *store) unlock(r *row) {
	if r.lock == nil {
		return
	}
	r.lock = nil
	s.locked.Delete(r)
	s.journal.unlock(r.key)
	if len(s.waits) > 0 {
		close(s.released)
		s.released = make(chan struct{})
	}
}

func (s *store) addVersion(r *row, v version) {
	at := len(r.versions)
	for at > 0 && r.versions[at-1].commit > v.commit {
		at--
	}
	r.versions = append(r.versions, version{})
	copy(r.versions[at+1:], r.versions[at:])
	r.versions[at] = v
	if n := len(r.versions); n >= 64 && n&(n-1) == 0 {
		r.forget(v.commit)
	}
	s.journal.addVersion(r.key, v)
}

// forget drops lock-only versions that nobody asks for any more.
func (r *row) forget(now uint64) {
	kept := r.versions[:0]
	for _, v := range r.versions {
		if v.kind != kindLock || physical(v.commit)+forgetAfter > physical(now) {
			kept = append(kept, v)
		}
	}
	r.versions = kept
}

func (s *store) addRollback(r *row, start uint64) {
	at := sort.Search(len(r.rolledBack), func(i int) bool { return r.rolledBack[i] >= start })
	if at < len(r.rolledBack) && r.rolledBack[at] == start {
		return
	}
	old := 0
	for old < at && physical(r.rolledBack[old])+forgetAfter < physical(start) {
		old++
	}
	kept := append([]uint64{}, r.rolledBack[old:at]...)
	r.rolledBack = append(append(kept, start), r.rolledBack[at:]...)
	s.journal.addRollback(r.key, start)
}

func (r *row) isRolledBack(start uint64) bool {
	at := sort.Search(len(r.rolledBack), func(i int) bool { return r.rolledBack[i] >= start })
	return at < len(r.rolledBack) && r.rolledBack[at] == start
}

// committed finds what the transaction left on this row; its commit timestamp is above its start.
func (r *row) committed(start uint64) *version {
	for i := len(r.versions) - 1; i >= 0 && r.versions[i].commit > start; i-- {
		if r.versions[i].start == start {
			return &r.versions[i]
		}
	}
	return nil
}

// newest is the last version's commit timestamp.
func (r *row) newest() *version {
	if len(r.versions) == 0 {
		return nil
	}
	return &r.versions[len(r.versions)-1]
}

// at is the value at ts, whatever locks there are.
func (r *row) at(ts uint64) (value []byte, found bool) {
	last := len(r.versions) - 1
	if last >= 0 && r.versions[last].commit > ts {
		last = sort.Search(len(r.versions), func(i int) bool { return r.versions[i].commit > ts }) - 1
	}
	for ; last >= 0; last-- {
		switch r.versions[last].kind {
		case kindPut:
			return r.versions[last].value, true
		case kindDelete:
			return nil, false
		}
	}
	return nil, false
}

// read is the value at ts, or the lock that the reader must resolve first.
func (r *row) read(ts uint64, c *kvrpcpb.Context) (value []byte, found bool, blocked *lock) {
	l := r.lock
	if l == nil || c.GetIsolationLevel() == kvrpcpb.IsolationLevel_RC || !l.blocks(ts) || contains(c.GetResolvedLocks(), l.start) {
		value, found = r.at(ts)
		return value, found, nil
	}
	if contains(c.GetCommittedLocks(), l.start) {
		if l.op == kvrpcpb.Op_Put {
			return l.value, true, nil
		}
		return nil, false, nil
	}
	if ts == math.MaxUint64 && !l.async && bytes.Equal(l.primary, r.key) {
		value, found = r.at(l.start - 1)
		return value, found, nil
	}
	return nil, false, l
}

func (l *lock) blocks(ts uint64) bool {
	return l.start <= ts && l.minCommit <= ts && (l.op == kvrpcpb.Op_Put || l.op == kvrpcpb.Op_Del)
}

func contains(all []uint64, one uint64) bool {
	for _, each := range all {
		if each == one {
			return true
		}
	}
	return false
}

func (s *store) get(r *kvrpcpb.GetRequest) *kvrpcpb.GetResponse {
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.saw(r.Version)
	found := s.find(r.Key)
	if found == nil {
		return &kvrpcpb.GetResponse{NotFound: true}
	}
	value, ok, blocked := found.read(r.Version, r.Context)
	if blocked != nil {
		return &kvrpcpb.GetResponse{Error: isLocked(r.Key, blocked)}
	}
	return &kvrpcpb.GetResponse{Value: value, NotFound: !ok}
}

func (s *store) batchGet(r *kvrpcpb.BatchGetRequest) *kvrpcpb.BatchGetResponse {
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.saw(r.Version)
	out := &kvrpcpb.BatchGetResponse{}
	for _, key := range r.Keys {
		if found := s.find(key); found != nil {
			out.Pairs = found.appendTo(out.Pairs, r.Version, r.Context, false)
		}
	}
	return out
}

// appendTo adds the pair that a reader gets for this row, if any.
func (r *row) appendTo(pairs []*kvrpcpb.KvPair, ts uint64, c *kvrpcpb.Context, keyOnly bool) []*kvrpcpb.KvPair {
	value, found, blocked := r.read(ts, c)
	switch {
	case blocked != nil:
		return append(pairs, &kvrpcpb.KvPair{Key: r.key, Error: isLocked(r.key, blocked)})
	case !found:
		return pairs
	case keyOnly:
		return append(pairs, &kvrpcpb.KvPair{Key: r.key})
	}
	return append(pairs, &kvrpcpb.KvPair{Key: r.key, Value: value})
}

// scan reads within the region; backwards, the request names the upper bound first.
func (s *store) scan(r *kvrpcpb.ScanRequest, g *region) *kvrpcpb.ScanResponse {
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.saw(r.Version)
	out := &kvrpcpb.ScanResponse{}
	take := func(each *row) bool {
		if len(out.Pairs) >= int(r.Limit) {
			return false
		}
		out.Pairs = each.appendTo(out.Pairs, r.Version, r.Context, r.KeyOnly)
		return true
	}
	if r.Reverse {
		s.descend(later(r.EndKey, g.start), earlierEnd(r.StartKey, g.end), take)
	} else {
		s.ascend(later(r.StartKey, g.start), earlierEnd(r.EndKey, g.end), take)
	}
	return out
}

// ascend visits the rows of [from, to) in order, an empty `to` is the end of all.
func (s *store) ascend(from, to []byte, visit func(*row) bool) {
	s.rows.AscendGreaterOrEqual(&row{key: from}, func(each *row) bool {
		return (len(to) == 0 || bytes.Compare(each.key, to) < 0) && visit(each)
	})
}

func (s *store) descend(from, to []byte, visit func(*row) bool) {
	step := func(each *row) bool {
		if len(to) > 0 && bytes.Equal(each.key, to) {
			return true
		}
		return bytes.Compare(each.key, from) >= 0 && visit(each)
	}
	if len(to) == 0 {
		s.rows.Descend(step)
	} else {
		s.rows.DescendLessOrEqual(&row{key: to}, step)
	}
}

func later(a, b []byte) []byte {
	if bytes.Compare(a, b) > 0 {
		return a
	}
	return b
}

func earlierEnd(a, b []byte) []byte {
	if len(b) == 0 || len(a) > 0 && bytes.Compare(a, b) < 0 {
		return a
	}
	return b
}

// load commits a pair without a transaction.
func (s *store) load(keys, values [][]byte, commit uint64) {
	s.write(func() {
		for i, key := range keys {
			s.addVersion(s.ensure(key), version{commit: commit, start: commit - 1, kind: kindPut, value: values[i]})
		}
	})
}

// collect drops in [from, to) what nobody can read at or after the safe point.
func (s *store) collect(from, to []byte, safe uint64) {
	const step = 20_000 // rows between two chances for others
	for next := append([]byte{}, from...); next != nil; {
		s.write(func() {
			next = s.collectSome(next, to, safe, step)
		})
	}
}

func (s *store) collectSome(from, to []byte, safe uint64, most int) (next []byte) {
	var empty []*row
	visited := 0
	s.ascend(from, to, func(each *row) bool {
		if visited++; visited > most {
			next = each.key
			return false
		}
		each.collect(safe)
		if each.lock == nil && len(each.versions) == 0 && len(each.rolledBack) == 0 {
			empty = append(empty, each)
		}
		return true
	})
	for _, each := range empty {
		s.rows.Delete(each)
	}
	s.journal.collect(from, next, to, safe)
	return next
}

func (r *row) collect(safe uint64) {
	old := sort.Search(len(r.versions), func(i int) bool { return r.versions[i].commit > safe })
	var kept []version
	for i := old - 1; i >= 0 && kept == nil; i-- {
		if r.versions[i].kind == kindPut {
			kept = []version{r.versions[i]}
		} else if r.versions[i].kind == kindDelete {
			break
		}
	}
	if len(kept) < old {
		r.versions = append(kept, r.versions[old:]...)
	}
	gone := sort.Search(len(r.rolledBack), func(i int) bool { return r.rolledBack[i] > safe })
	r.rolledBack = append([]uint64(nil), r.rolledBack[gone:]...)
}

// drop removes [from, to) with all versions and locks.
func (s *store) drop(from, to []byte) {
	s.write(func() {
		var gone []*row
		s.ascend(from, to, func(each *row) bool {
			gone = append(gone, each)
			return true
		})
		for _, each := range gone {
			s.unlock(each)
			s.rows.Delete(each)
		}
		s.journal.drop(from, to)
	})
}
